"""Quantisation: models that train with integer arithmetic."""

from tfcomp.quantization.layers import FakeQuantize, FakeQuantizeWeights
from tfcomp.quantization.observers import MovingAverageRange
from tfcomp.quantization.quantize_aware import (
    quantization_report,
    quantize_aware,
    strip_quantization,
)
from tfcomp.quantization.tflite8 import Skipped

__all__ = [
    "FakeQuantize",
    "FakeQuantizeWeights",
    "MovingAverageRange",
    "Skipped",
    "quantization_report",
    "quantize_aware",
    "strip_quantization",
]
