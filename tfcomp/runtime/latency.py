"""How long one inference takes, several files measured in turn so that they compare fairly."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfcomp.errors import TfcompError
from tfcomp.runtime.interpreter import Interpreter


@dataclasses.dataclass(frozen=True)
class Latency:
    """Time of one inference of one file.

    Attributes:
        path: The file.
        median_ms: Median in milliseconds.
        p90_ms: 90th percentile in milliseconds.
        runs: Timed runs.
        warm_up: Runs before them that were not timed.
        threads: Threads of the runtime.
        rows: Rows per run.
    """

    path: pathlib.Path
    median_ms: float
    p90_ms: float
    runs: int
    warm_up: int
    threads: int
    rows: int = 1

    def to_dict(self) -> dict[str, Any]:
        """The same as plain JSON types."""
        return {**dataclasses.asdict(self), "path": str(self.path)}

    def __str__(self) -> str:
        plural = "s" if self.threads > 1 else ""
        return (
            f"{self.path.name}: median {self.median_ms:.3f} ms, p90 {self.p90_ms:.3f} ms "
            f"({self.runs} runs, {self.threads} thread{plural})"
        )


def latency(
    path: str | os.PathLike[str],
    *,
    threads: int = 1,
    runs: int = 100,
    warm_up: int = 10,
    seed: int = 0,
) -> Latency:
    """Median and 90th percentile of one inference of one file, in milliseconds.

    Args:
        path: The `.tflite` file.
        threads: Threads of the runtime.
        runs: Timed runs.
        warm_up: Runs before them, not timed.
        seed: Seed of the random input.

    Returns:
        The latency.

    Raises:
        TfcompError: If the file cannot be run or a count is not sensible.
    """
    return latencies([path], threads=threads, runs=runs, warm_up=warm_up, seed=seed)[0]


def latencies(
    paths: Sequence[str | os.PathLike[str]],
    *,
    threads: int = 1,
    runs: int = 100,
    warm_up: int = 10,
    seed: int = 0,
) -> list[Latency]:
    """Latencies of several files, measured interleaved.

    Each round runs every file once, the first one changing from round to round, so that a slow
    spell of the machine meets all of them alike and their ratios hold.

    Args:
        paths: The `.tflite` files.
        threads: Threads of the runtime.
        runs: Timed rounds.
        warm_up: Rounds before them, not timed.
        seed: Seed of the random inputs.

    Returns:
        One latency per file, in the order given.

    Raises:
        TfcompError: If a file cannot be run or a count is not sensible.
    """
    if runs < 1 or warm_up < 0:
        raise TfcompError(
            f"`runs` must be 1 or more and `warm_up` 0 or more. "
            f"Received: runs={runs}, warm_up={warm_up}."
        )
    interpreters = [Interpreter(path, threads=threads) for path in paths]
    for interpreter in interpreters:
        interpreter.set_inputs(interpreter.random_inputs(seed), raw=True)
    times_ms = np.empty((runs, len(interpreters)))
    for round_ in range(-warm_up, runs):
        for turn in range(len(interpreters)):
            which = (turn + round_) % len(interpreters)
            begin = time.perf_counter_ns()
            interpreters[which].invoke()
            elapsed = (time.perf_counter_ns() - begin) / 1e6
            if round_ >= 0:
                times_ms[round_, which] = elapsed
    return [
        Latency(
            path=interpreter.path,
            median_ms=float(np.median(column)),
            p90_ms=float(np.percentile(column, 90)),
            runs=runs,
            warm_up=warm_up,
            threads=threads,
            rows=interpreter.batch_size or 1,
        )
        for interpreter, column in zip(interpreters, times_ms.T, strict=True)
    ]
