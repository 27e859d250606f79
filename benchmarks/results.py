"""Benchmark results on disk: JSON with seed, budget, versions and hardware."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.timing import Ratio
from tfcomp.files import write_json
from tfcomp.runtime.machine import hardware, versions

FOLDER = pathlib.Path(__file__).parent / "results"


def save(name: str, *, seed: int, budget: dict[str, Any], results: dict[str, Any]) -> pathlib.Path:
    """Writes `benchmarks/results/NAME.json` and returns its path.

    Args:
        name: The benchmark's, as its script is called.
        seed: What its random numbers start from.
        budget: How long and how often was measured: rounds, steps, epochs, batch size …
        results: The figures; `Ratio`s become mappings.
    """
    path = FOLDER / f"{name}.json"
    plain = {key: _plain(value) for key, value in results.items()}
    value = {"benchmark": name, "seed": seed, "budget": budget, "results": plain}
    write_json(path, {**value, "versions": versions(), "hardware": hardware()})
    return path


def load(name: str) -> dict[str, Any] | None:
    """What `save` wrote under that name; None if there is nothing."""
    path = FOLDER / f"{name}.json"
    if not path.exists():
        return None
    value: dict[str, Any] = json.loads(path.read_text())
    return value


def print_ratios(title: str, ratios: dict[str, Ratio], reach: dict[str, float]) -> None:
    """Prints ratios as a table, beside what they are to reach."""
    table = Table(title=title)
    for name in ("what", "ratio", "quartiles", "ms", "baseline ms", "reach"):
        table.add_column(name, justify="left" if name == "what" else "right")
    for name, r in ratios.items():
        bound = f"≤ {reach[name]:.2f}" if name in reach else "–"
        table.add_row(
            name,
            f"{r.ratio:.3f}",
            f"{r.low:.3f} … {r.high:.3f}",
            f"{r.candidate_ms:.2f}",
            f"{r.baseline_ms:.2f}",
            bound,
        )
    Console().print(table)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value
