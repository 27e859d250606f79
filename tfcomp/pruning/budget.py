"""What a smaller model may cost, and what it does cost."""

from __future__ import annotations

import dataclasses
import pathlib
import tempfile
from typing import Any

import keras

from tfcomp.conversion import convert
from tfcomp.conversion.convert import DTYPES
from tfcomp.errors import TfcompError
from tfcomp.profiling import profile

_COUNTS = ("macs", "parameters", "file_bytes")
# Of the runs that a latency is the median of; more than a short benchmark, since a search that
# is misled once does not come back.
_RUNS = 60


@dataclasses.dataclass(frozen=True)
class Spending:
    """A budget, and what came of it.

    Attributes:
        kind: "macs", "parameters", "file_bytes" or "latency_ms".
        limit: The most that was allowed, in the unit of `kind`.
        before: What the model cost.
        after: What the smaller one costs, at most `limit`.
    """

    kind: str
    limit: float
    before: float
    after: float

    def __str__(self) -> str:
        numbers = (f"{n:,.4g}" if n < 1000 else f"{n:,.0f}" for n in self._numbers())
        return "{}: {} -> {}, at most {}".format(self.kind, *numbers)

    def _numbers(self) -> tuple[float, float, float]:
        return self.before, self.after, self.limit


@dataclasses.dataclass(frozen=True)
class Budget:
    """An upper limit on what a model costs; give exactly one.

    Args:
        macs: Multiply-adds of one sample: a number from 1 on, or a fraction in (0, 1) of those of
            the model that is to be shrunk.
        parameters: Number of weights, BatchNormalization statistics included; likewise.
        file_bytes: Bytes of the `.tflite`, not compressed; likewise.
        latency_ms: Milliseconds that one run of the `.tflite` takes on this machine, the median
            of 60 runs in LiteRT with one thread. It is measured after each conversion, a handful
            of them, until the time is at most 2 % below the limit; the outcome is as certain as
            the machine is quiet.
        dtype: What the file computes with, as `tfcomp.convert` takes it, "float32" by default.
        calibration: Examples for `tfcomp.convert`, where `dtype` needs them.

    Raises:
        TfcompError: If none or several limits are given, one is not above 0, or
            `dtype` is not known.

    Example:
        >>> Budget(macs=0.5).describe()
        '0.5 of the MACs'
        >>> Budget(file_bytes=200_000, dtype="float16").describe()
        'at most 200,000 bytes of file'
    """

    macs: float | None = None
    parameters: float | None = None
    file_bytes: float | None = None
    latency_ms: float | None = None
    dtype: str = "float32"
    calibration: Any = dataclasses.field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in (*_COUNTS, "latency_ms")}
        given = {name: value for name, value in given.items() if value is not None}
        if len(given) != 1:
            raise TfcompError(
                "A Budget takes exactly one of macs, parameters, file_bytes and latency_ms. "
                f"Received: {', '.join(given) or 'none'}."
            )
        ((name, value),) = given.items()
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not value > 0:
            raise TfcompError(f"`{name}` must be a number above 0. Received: {value!r}.")
        if self.dtype not in DTYPES:
            raise TfcompError(f"`dtype` must be one of {DTYPES}. Received: {self.dtype!r}.")

    @property
    def kind(self) -> str:
        """The name of the limit that was given."""
        names = (*_COUNTS, "latency_ms")
        return next(name for name in names if getattr(self, name) is not None)

    @property
    def limit(self) -> float:
        """The number that was given."""
        return float(getattr(self, self.kind))

    @property
    def relative(self) -> bool:
        """Whether the limit is a fraction of what the model costs now."""
        return self.kind in _COUNTS and self.limit < 1

    def describe(self) -> str:
        """The limit in words."""
        noun = {
            "macs": "MACs",
            "parameters": "parameters",
            "file_bytes": "bytes of file",
            "latency_ms": "ms",
        }[self.kind]
        if self.relative:
            return f"{self.limit:g} of the {noun}"
        return f"at most {self.limit:,.10g} {noun}"

    def allowance(self, before: float) -> float:
        """The most that a model may cost where it costs `before` now."""
        return self.limit * before if self.relative else self.limit

    def cost(self, model: keras.Model) -> float:
        """What the model costs, in the unit of the limit.

        Raises:
            TfcompError: If its MACs cannot be counted.
            ConversionError: If it cannot be converted.
        """
        if self.kind == "parameters":
            return model.count_params()
        if self.kind == "macs":
            return self._macs(model)
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "model.tflite"
            artifact = convert(model, path, dtype=self.dtype, calibration=self.calibration)
            if self.kind == "file_bytes":
                return path.stat().st_size
            return artifact.benchmark(threads=1, runs=_RUNS).median_ms

    def _macs(self, model: keras.Model) -> float:
        found = profile(model)
        if found.macs is None:
            why = "; ".join(f"{name}: {reason}" for name, reason in found.not_counted.items())
            raise TfcompError(
                f"The MACs of {model.name!r} cannot be counted ({why}). Limit parameters, "
                "file_bytes or latency_ms instead."
            )
        return found.macs
