"""Which runtimes know every op of a file, from a table of versions that were tried."""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
from collections.abc import Iterable
from typing import Any

import yaml


@dataclasses.dataclass(frozen=True)
class Compatibility:
    """Where a file is known to run.

    Attributes:
        runs_on: Runtimes that know every op of the file at its version.
        refused_by: For each runtime that does not, the ops that it lacks.
        min_runtime: The TensorFlow Lite version that the converter wrote into the file.
    """

    runs_on: tuple[str, ...]
    refused_by: dict[str, tuple[str, ...]]
    min_runtime: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The same as plain JSON types."""
        return {
            "runs_on": list(self.runs_on),
            "refused_by": {name: list(ops) for name, ops in self.refused_by.items()},
            "min_runtime": self.min_runtime,
        }

    def __str__(self) -> str:
        known = ", ".join(self.runs_on) or "no runtime of the table"
        refused = "".join(
            f"; not on {name} ({', '.join(ops)})" for name, ops in self.refused_by.items()
        )
        stamp = f"; TensorFlow Lite ≥ {self.min_runtime} by its own stamp"
        return known + refused + (stamp if self.min_runtime else "")


def compatibility(ops: Iterable[tuple[str, int]], min_runtime: str | None = None) -> Compatibility:
    """Looks ops and versions up in the table of runtimes.

    Custom ops are told apart: no runtime has them built in.

    Args:
        ops: Names and versions, `("FULLY_CONNECTED", 12)`.
        min_runtime: What the file itself says, passed through.

    Returns:
        The runtimes that run it and those that refuse it.

    Example:
        >>> print(compatibility([("FULLY_CONNECTED", 12)]).refused_by)
        {'tflite-runtime 2.14.0': ('FULLY_CONNECTED version 12',)}
    """
    wanted = sorted(set(ops))
    runs_on, refused = [], {}
    for runtime, known in runtimes().items():
        lacking = tuple(
            f"{op} version {version}" if ":" not in op else f"custom op {op.partition(':')[2]}"
            for op, version in wanted
            if version > known.get(op, 0)
        )
        if lacking:
            refused[runtime] = lacking
        else:
            runs_on.append(runtime)
    return Compatibility(tuple(runs_on), refused, min_runtime)


@functools.cache
def runtimes() -> dict[str, dict[str, int]]:
    """For each runtime of the table, the highest version of each op that it knows."""
    text = importlib.resources.files("tfcomp.conversion").joinpath("runtimes.yaml").read_text()
    table: dict[str, dict[int, list[str]]] = yaml.safe_load(text)
    return {
        runtime: {op: version for version, ops in versions.items() for op in ops}
        for runtime, versions in table.items()
    }
