"""From a Keras model to a checked `.tflite` file."""

from tfcomp.conversion.artifact import Artifact, LayerParity, OutputParity, Parity
from tfcomp.conversion.audit import Audit, OpInfo, TensorInfo, audit
from tfcomp.conversion.convert import convert

__all__ = [
    "Artifact",
    "Audit",
    "LayerParity",
    "OpInfo",
    "OutputParity",
    "Parity",
    "TensorInfo",
    "audit",
    "convert",
]
