"""What it costs to raise the sparsity of the masks, by the number of weights.

Four square Dense kernels together, sparsity 0 to 0.8, or from 0.4 on, where much is masked already:
the processor's seconds for the whole update (scores, counts, masks, zeros), in turns with
`numpy.partition` of the same magnitudes in one array, and the most memory beyond what the process
held before. Each number of weights in processes of its own, on one core; what is there with the
same budget is not measured again.

Memory is measured apart from time, in a process whose allocator gives back all that is freed: else
an update would take what lies about from the one before, and seem to need nothing. What
`numpy.partition` needs, a copy of its array or 4 bytes a weight, shows whether that has worked.

    taskset -c 0 python -m benchmarks.pruning.mask_update [--repeats=9]
        [--millions=0.1,0.5,2.5,10,50]
"""

from __future__ import annotations

import ctypes
import gc
import json
import math
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
from absl import app, flags
from rich.console import Console
from rich.table import Table

from benchmarks import results
from tfcomp.callbacks import PruneWeights
from tfcomp.pruning import (
    NM,
    Blocks,
    Filters,
    Kernels,
    Layers,
    PolynomialDecay,
    Unit,
    Weights,
)
from tfcomp.runtime.machine import hardware

_REPEATS = flags.DEFINE_integer("repeats", 9, "how often each is timed", 1)
_MILLIONS = flags.DEFINE_list("millions", ["0.1", "0.5", "2.5", "10", "50"], "of weights")
_ONE = flags.DEFINE_float("one", None, "measure this many millions and print them as JSON")
_MEMORY = flags.DEFINE_bool("memory", False, "with --one: measure memory, not time")

NAME = "pruning_mask_update"
KERNELS = 4
EVEN = 16  # widths are multiples of it, so that at all sizes no block is cut off at the edge
# Unit, and sparsity before and after.
CASES: dict[str, tuple[Unit, float, float]] = {
    "weights": (Weights(), 0, 0.8),
    "weights from 0.4": (Weights(), 0.4, 0.8),
    "2:4": (NM(2, 4), 0, 0.5),
    "blocks 4×4": (Blocks(4, 4), 0, 0.8),
    "blocks 3×5, cut": (Blocks(3, 5), 0, 0.8),
    "kernels": (Kernels(), 0, 0.8),
    "filters": (Filters(), 0, 0.8),
    "layers": (Layers(), 0, 0.5),
}
FLOOR = "numpy.partition"
# The allocator of C asks the system for each larger array, and gives it back when it is freed;
# pages of two megabytes would hide what is less.
GIVING_BACK = {
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "MALLOC_TOP_PAD_": "0",
    "NUMPY_MADVISE_HUGEPAGE": "0",
}
Update = Callable[[], Any]


def network(weights: float) -> keras.Model:
    """Dense kernels of about that many weights together."""
    width = EVEN * round(math.sqrt(weights / KERNELS) / EVEN)
    layers = [keras.layers.Dense(width, use_bias=False) for _ in range(KERNELS)]
    model = keras.Sequential([keras.Input((width,)), *layers])
    model.compile("sgd", "mse", jit_compile=False)
    return model


def update(model: keras.Model, case: tuple[Unit, float, float], scope: Any) -> Update:
    """A call that raises the masks; the weights are put back by the caller."""
    unit, before, after = case
    schedule = PolynomialDecay(before, after, begin_step=1, end_step=2)
    prune = PruneWeights(schedule, unit=unit, scope=scope)
    prune.set_params({"steps": 2})
    prune.set_model(model)
    prune.on_train_begin()
    prune.on_epoch_begin(0)
    prune.on_train_batch_end(0)
    return lambda: prune.on_train_batch_end(1)


def updates(model: keras.Model, start: Sequence[Any]) -> Iterator[tuple[str, Update]]:
    """Every unit and scope, each at the weights `start`, and `numpy.partition` of their sizes."""
    for name, case in CASES.items():
        for scope in ("global",) if case[0].whole else ("local", "global"):
            model.set_weights(start)
            yield f"{name}, {scope}", update(model, case, scope)
    flat = np.abs(np.concatenate([w.reshape(-1) for w in start]))
    yield FLOOR, lambda: np.partition(flat, round(0.8 * flat.size) - 1)


def status(key: str) -> int:
    """A line of the process's status, in bytes."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return 1024 * int(line.split()[1])
    raise SystemExit(f"/proc/self/status has no {key}: memory is measured on Linux alone.")


def timed(call: Update) -> dict[str, float]:
    """Seconds of a call: by the clock, the processor's, and those of them in the system."""
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    call()
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF)
    system = after.ru_stime - before.ru_stime
    return {
        "clock_seconds": seconds,
        "seconds": system + after.ru_utime - before.ru_utime,
        "system_seconds": system,
    }


def extra(call: Update) -> int:
    """By how much the memory of the process rises during a call."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # begins the peak anew
    before = status("VmRSS")
    call()
    return max(status("VmHWM") - before, 0)


def extra_of_numpy(call: Update) -> int:
    """The same of NumPy's arrays alone, to the byte."""
    gc.collect()
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def times_of(model: keras.Model, repeats: int) -> dict[str, dict[str, float]]:
    """Medians and quartiles of time, each repeat of all in turn."""
    found: dict[str, list[dict[str, float]]] = {}
    start = model.get_weights()
    for _ in range(repeats + 1):
        for name, call in updates(model, start):
            found.setdefault(name, []).append(timed(call))
    rows = {}
    for name, all_times in found.items():
        times = all_times[1:]  # the first has pages to touch and kernels to choose
        row = {key: statistics.median(one[key] for one in times) for key in times[0]}
        quartiles = statistics.quantiles([one["seconds"] for one in times], n=4)
        rows[name] = row | {"low": quartiles[0], "high": quartiles[2]}
    return rows


def memory_of(model: keras.Model) -> dict[str, dict[str, float]]:
    """Bytes of each: of the process, the median of three after a first one; and of NumPy."""
    found: dict[str, list[int]] = {}
    start = model.get_weights()
    for _ in range(4):
        for name, call in updates(model, start):
            found.setdefault(name, []).append(extra(call))
    rows: dict[str, dict[str, float]] = {
        name: {"extra_bytes": statistics.median(each[1:])} for name, each in found.items()
    }
    for name, call in updates(model, start):
        rows[name]["numpy_bytes"] = extra_of_numpy(call)
    return rows


def measure(millions: float) -> dict[str, Any]:
    """All units and scopes at one size."""
    keras.utils.set_random_seed(0)
    model = network(1e6 * millions)
    rows = memory_of(model) if _MEMORY.value else times_of(model, _REPEATS.value)
    return {"weights": model.count_params(), "rows": rows}


def measured(millions: str) -> dict[str, Any]:
    """The same, time and memory in two processes."""
    command = [sys.executable, "-m", "benchmarks.pruning.mask_update", f"--one={millions}"]
    command.append(f"--repeats={_REPEATS.value}")
    found: dict[str, Any] = {}
    for more, environment in (([], {}), (["--memory"], GIVING_BACK)):
        quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*command, *more],
            env={**os.environ, **quiet, **environment},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        one = json.loads(done.stdout.splitlines()[-1])
        for name, row in one["rows"].items():
            one["rows"][name] = found.get("rows", {}).get(name, {}) | row
        found = one
    return found


def show(found: dict[str, Any]) -> None:
    """Seconds and bytes a weight, and the global update over numpy.partition."""
    table = Table(title="Update of the masks")
    for name in ("weights", "what", "seconds", "÷ partition", "extra bytes a weight", "of NumPy"):
        table.add_column(name, justify="left" if name == "what" else "right")
    for one in found.values():
        floor = one["rows"][FLOOR]["seconds"]
        for name, row in one["rows"].items():
            table.add_row(
                f"{one['weights']:,}",
                name,
                f"{row['seconds']:.4f}",
                f"{row['seconds'] / floor:.2f}",
                f"{row['extra_bytes'] / one['weights']:.1f}",
                f"{row['numpy_bytes'] / one['weights']:.1f}",
            )
    Console().print(table)


def main(_: list[str]) -> None:
    if _ONE.value is not None:
        print(json.dumps(measure(_ONE.value)))
        return
    # Times of several machines are not put into one table.
    budget = {"repeats": _REPEATS.value, "kernels": KERNELS, "cpu": hardware()["cpu"]}
    budget |= {"cases": list(CASES), "cores": len(os.sched_getaffinity(0))}
    saved = results.load(NAME)
    found = saved["results"] if saved is not None and saved["budget"] == budget else {}
    for millions in _MILLIONS.value:
        if millions not in found:
            found[millions] = measured(millions)
            print(results.save(NAME, seed=0, budget=budget, results=found), millions, flush=True)
    show(found)


if __name__ == "__main__":
    app.run(main)
