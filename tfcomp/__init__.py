"""tfcomp: model compression for Keras 3 on TensorFlow.

This is the map: rooms by their names, the verbs that most users need, and the error that all of
them raise. Rooms are imported when they are first used, so that `tfcomp --help` need not
wait for TensorFlow.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tfcomp.version import __version__

if TYPE_CHECKING:
    from tfcomp import (
        architectures,
        callbacks,
        conversion,
        datasets,
        distillation,
        graph,
        profiling,
        pruning,
        quantization,
        recipes,
        reporting,
        runtime,
        sharing,
    )
    from tfcomp.conversion import convert
    from tfcomp.errors import TfcompError
    from tfcomp.profiling import profile

_ROOMS = (
    "architectures",
    "callbacks",
    "conversion",
    "datasets",
    "distillation",
    "graph",
    "profiling",
    "pruning",
    "quantization",
    "recipes",
    "reporting",
    "runtime",
    "sharing",
)
# Where the other names are.
_HOMES = {"TfcompError": "errors", "convert": "conversion", "profile": "profiling"}

__all__ = [
    "TfcompError",
    "__version__",
    "architectures",
    "callbacks",
    "conversion",
    "convert",
    "datasets",
    "distillation",
    "graph",
    "profile",
    "profiling",
    "pruning",
    "quantization",
    "recipes",
    "reporting",
    "runtime",
    "sharing",
]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"tfcomp.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(f"tfcomp.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'tfcomp' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
