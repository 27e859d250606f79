"""From a Keras model to a checked `.tflite` file."""

from tfcomp.conversion.artifact import Artifact, LayerParity, OutputParity, Parity
from tfcomp.conversion.audit import Audit, OpInfo, TensorInfo, audit
from tfcomp.conversion.convert import convert
from tfcomp.conversion.edgetpu import EdgeTpuReport
from tfcomp.conversion.edgetpu_compiler import Compilation, compile_edgetpu

__all__ = [
    "Artifact",
    "Audit",
    "Compilation",
    "EdgeTpuReport",
    "LayerParity",
    "OpInfo",
    "OutputParity",
    "Parity",
    "TensorInfo",
    "audit",
    "compile_edgetpu",
    "convert",
]
