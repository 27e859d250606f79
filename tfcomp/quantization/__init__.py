"""Quantisation: models that train with integer arithmetic."""

from tfcomp.quantization.layers import FakeQuantize, FakeQuantizeWeights
from tfcomp.quantization.observers import MovingAverageRange
from tfcomp.quantization.quantize_aware import (
    is_quantize_aware,
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
    "is_quantize_aware",
    "quantization_report",
    "quantize_aware",
    "strip_quantization",
]
