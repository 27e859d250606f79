"""What it costs to raise the sparsity of the masks, by the number of weights.

Four square Dense kernels together, sparsity 0 to 0.8: seconds of the whole update (scores, counts,
masks, zeros), in turns with `numpy.partition` of the same magnitudes in one array, and the peak of
memory beyond what the process held before. Each number of weights in a process of its own, on one
core; what is there with the same budget is not measured again.

    python -m benchmarks.pruning.mask_update [--repeats=5] [--millions=0.1,0.5,2.5,10,50]
"""

from __future__ import annotations

import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from absl import app, flags
from rich.console import Console
from rich.table import Table

from benchmarks import results
from tfcomp.callbacks import PruneWeights
from tfcomp.pruning import NM, Blocks, ConstantSparsity, Filters, Kernels, Unit, Weights
from tfcomp.runtime.machine import hardware

_REPEATS = flags.DEFINE_integer("repeats", 5, "how often each is timed", 1)
_MILLIONS = flags.DEFINE_list("millions", ["0.1", "0.5", "2.5", "10", "50"], "of weights")
_ONE = flags.DEFINE_float("one", None, "measure this many millions and print them as JSON")

NAME = "pruning_mask_update"
KERNELS = 4
UNITS: dict[str, tuple[Unit, float]] = {
    "weights": (Weights(), 0.8),
    "2:4": (NM(2, 4), 0.5),
    "blocks 4×4": (Blocks(4, 4), 0.8),
    "kernels": (Kernels(), 0.8),
    "filters": (Filters(), 0.8),
}


def network(weights: float) -> keras.Model:
    """Dense kernels of that many weights together."""
    width = round(math.sqrt(weights / KERNELS))
    layers = [keras.layers.Dense(width, use_bias=False) for _ in range(KERNELS)]
    model = keras.Sequential([keras.Input((width,)), *layers])
    model.compile("sgd", "mse", jit_compile=False)
    return model


def update(model: keras.Model, unit: Unit, sparsity: float, scope: Any) -> Callable[[], None]:
    """One update of fresh masks; the weights are put back by the caller."""
    prune = PruneWeights(ConstantSparsity(sparsity, begin_step=2), unit=unit, scope=scope)
    prune.set_params({"steps": 2})
    prune.set_model(model)
    prune.on_train_begin()
    prune.on_epoch_begin(0)
    prune.on_train_batch_end(0)
    return lambda: prune.on_train_batch_end(1)


def status(key: str) -> int:
    """A line of the process's status, in bytes."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return 1024 * int(line.split()[1])
    raise SystemExit(f"/proc/self/status has no {key}: memory is measured on Linux alone.")


def timed(call: Callable[[], Any]) -> tuple[float, int]:
    """Seconds of a call, and by how much memory rose meanwhile."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # begins the peak anew
    before = status("VmRSS")
    start = time.perf_counter()
    call()
    seconds = time.perf_counter() - start
    return seconds, max(status("VmHWM") - before, 0)


def measure(millions: float) -> dict[str, Any]:
    """All units and scopes at one size, each in turn with numpy.partition."""
    keras.utils.set_random_seed(0)
    model = network(1e6 * millions)
    start = model.get_weights()
    flat = np.abs(np.concatenate([w.reshape(-1) for w in start]))
    measured: dict[str, list[tuple[float, int]]] = {}
    for _ in range(_REPEATS.value + 1):
        for name, (unit, sparsity) in UNITS.items():
            for scope in ("local", "global"):
                model.set_weights(start)
                once = update(model, unit, sparsity, scope)
                measured.setdefault(f"{name}, {scope}", []).append(timed(once))
        middle = round(0.8 * flat.size) - 1
        measured.setdefault("numpy.partition", []).append(
            timed(lambda middle=middle: np.partition(flat, middle))
        )
    return {
        "weights": flat.size,
        "rows": {
            # The first of each has pages to touch and kernels to choose.
            name: {
                "seconds": statistics.median(seconds for seconds, _ in rows[1:]),
                "extra_bytes": max(extra for _, extra in rows[1:]),
            }
            for name, rows in measured.items()
        },
    }


def show(found: dict[str, Any]) -> None:
    """Seconds and bytes a weight, and the global update over numpy.partition."""
    table = Table(title="Update of the masks")
    for name in ("weights", "what", "seconds", "÷ partition", "extra bytes a weight"):
        table.add_column(name, justify="left" if name == "what" else "right")
    for one in found.values():
        floor = one["rows"]["numpy.partition"]["seconds"]
        for name, row in one["rows"].items():
            table.add_row(
                f"{one['weights']:,}",
                name,
                f"{row['seconds']:.4f}",
                f"{row['seconds'] / floor:.2f}",
                f"{row['extra_bytes'] / one['weights']:.1f}",
            )
    Console().print(table)


def main(_: list[str]) -> None:
    if _ONE.value is not None:
        print(json.dumps(measure(_ONE.value)))
        return
    # Times of several machines are not put into one table.
    budget = {"repeats": _REPEATS.value, "kernels": KERNELS, "cpu": hardware()["cpu"]}
    budget["units"] = list(UNITS)
    saved = results.load(NAME)
    found = saved["results"] if saved is not None and saved["budget"] == budget else {}
    for millions in _MILLIONS.value:
        if millions in found:
            continue
        command = [sys.executable, "-m", "benchmarks.pruning.mask_update", f"--one={millions}"]
        done = subprocess.run(
            [*command, f"--repeats={_REPEATS.value}"],
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        found[millions] = json.loads(done.stdout.splitlines()[-1])
        print(results.save(NAME, seed=0, budget=budget, results=found), millions, flush=True)
    show(found)


if __name__ == "__main__":
    app.run(main)
