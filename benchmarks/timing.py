"""Step times compared fairly: candidates interleaved in one run, with an A/A control."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping

Step = Callable[[], object]


@dataclasses.dataclass(frozen=True)
class Ratio:
    """Time of a candidate over that of the baseline, paired within rounds.

    Attributes:
        ratio: Median over rounds of candidate time / baseline time.
        low: First quartile of the same.
        high: Third quartile of the same.
        candidate_ms: Median milliseconds of one step of the candidate.
        baseline_ms: Median milliseconds of one step of the baseline.
    """

    ratio: float
    low: float
    high: float
    candidate_ms: float
    baseline_ms: float


def interleaved(
    baseline: Step,
    candidates: Mapping[str, Step],
    *,
    rounds: int = 30,
    steps: int = 5,
    warm_up: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Ratio]:
    """Times steps in rounds; in each round every candidate runs beside the baseline.

    The order within a round turns by one from round to round, so that none is always first.
    The result holds an entry `"A/A control"`: the baseline against itself, which tells how
    much of a ratio is noise.

    Args:
        baseline: Runs one step and waits for its result.
        candidates: Steps to compare with it, by name.
        rounds: How many times each is timed.
        steps: Steps in one timing.
        warm_up: Untimed calls of each beforehand (tracing, caches).
        clock: Seconds; `time.process_time` leaves out what else runs on the same cores.

    Returns:
        For each candidate and the control, its ratio to the baseline.
    """
    all_steps: dict[str, Step] = {"baseline": baseline, "A/A control": baseline, **candidates}
    for step in all_steps.values():
        for _ in range(warm_up):
            step()
    times: dict[str, list[float]] = {name: [] for name in all_steps}
    names = list(all_steps)
    for turn in range(rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            step = all_steps[name]
            start = clock()
            for _ in range(steps):
                step()
            times[name].append((clock() - start) / steps * 1e3)
    return {name: _ratio(times[name], times["baseline"]) for name in names if name != "baseline"}


def _ratio(candidate: list[float], baseline: list[float]) -> Ratio:
    ratios = [a / b for a, b in zip(candidate, baseline, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return Ratio(middle, low, high, statistics.median(candidate), statistics.median(baseline))
