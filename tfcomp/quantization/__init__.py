"""Quantisation: models that train with integer arithmetic."""

from tfcomp.quantization.layers import FakeQuantize, FakeQuantizeWeights
from tfcomp.quantization.observers import MovingAverageRange
from tfcomp.quantization.quantize_aware import (
    QuantizationReport,
    is_quantize_aware,
    quantization_report,
    quantize_aware,
    strip_quantization,
)

__all__ = [
    "FakeQuantize",
    "FakeQuantizeWeights",
    "MovingAverageRange",
    "QuantizationReport",
    "is_quantize_aware",
    "quantization_report",
    "quantize_aware",
    "strip_quantization",
]
