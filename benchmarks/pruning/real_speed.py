"""Measured latency against multiply-adds, of networks cut to 70, 50 and 30 % of them.

MobileNetV2, ResNet50 and VGG16 (average pooling and one dense layer in place of its dense head),
with He's random weights, cut by `shrink(budget=Budget(macs=…))` by L1 norms, the same share in each
layer, with channels rounded to multiples of 8 and not; as float32 and int8 files; for images of
224 pixels, as in the papers, and for smaller ones. What is told is (t0/t1)/(MAC0/MAC1): 1 where
time falls as multiply-adds do.

Each file is run by LiteRT with one thread, in turn with that of the uncut network and with a
second interpreter of that one, which is the A/A control; where that is off by more than 5 %,
nothing is kept, and the next call measures again. Files are made first and kept in --work;
a file that is there is not made again, nor a result.

    python -m benchmarks.pruning.real_speed [--work=DIR] [--only=resnet50] [--files_only]
        [--rounds=40] [--core=1]
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from absl import app, flags

import tfcomp
from benchmarks import results
from benchmarks.timing import interleaved
from tfcomp.files import write_json
from tfcomp.profiling import profile
from tfcomp.pruning import Budget, shrink
from tfcomp.runtime.interpreter import Interpreter

_WORK = flags.DEFINE_string("work", "build/real_speed", "folder for the files")
_ONLY = flags.DEFINE_string("only", "", "runs whose name has this in it")
_FILES_ONLY = flags.DEFINE_bool("files_only", False, "make the files, measure nothing")
_ROUNDS = flags.DEFINE_integer("rounds", 40, "how often each file is timed")
_CORE = flags.DEFINE_integer("core", -1, "processor core to stay on; -1 for any")

NAME = "pruning_real_speed"
SMALL = {"mobilenet_v2": 160, "resnet50": 128, "vgg16": 96}
FULL = 224
CUTS = (0.3, 0.5, 0.7)
ROUNDINGS = (1, 8)
DTYPES = ("float32", "int8")
CONTROL = "dense again"
EVEN = 0.05  # how far the control may be from 1
SEED = 0


@dataclasses.dataclass(frozen=True)
class Run:
    """One file: `cut` is the share of multiply-adds that is taken away, 0 for the whole network."""

    network: str
    size: int
    cut: float
    round_to: int
    dtype: str

    @property
    def model(self) -> str:
        size = f"_{self.size}" if self.size == FULL else ""
        return f"{self.network}{size}-{100 * self.cut:.0f}-{self.round_to}"

    @property
    def name(self) -> str:
        return f"{self.model}-{self.dtype}"

    @property
    def dense(self) -> Run:
        return Run(self.network, self.size, 0.0, 1, self.dtype)


RUNS = [
    Run(name, size, *of)
    for name, small in SMALL.items()
    for size in (FULL, small)
    for of in itertools.product(CUTS, ROUNDINGS, DTYPES)
]


def network(name: str, size: int) -> keras.Model:
    """The uncut network, with 100 classes and random weights.

    Those that Keras starts depthwise layers with are so small that MobileNetV2 ends in values of
    1e-10, which no trained network does; with He's, sizes stay.
    """
    model = _architecture(name, (size, size, 3))
    generator = np.random.default_rng(SEED)
    for weight in model.weights:
        if weight.path.endswith("kernel"):
            depthwise = "depthwise" in weight.path
            inputs = np.prod(weight.shape[:2] if depthwise else weight.shape[:-1])
            weight.assign(generator.normal(0, np.sqrt(2 / inputs), weight.shape))
    images = generator.normal(size=(2, *model.input_shape[1:])).astype("float32")
    scale = float(np.abs(model.predict(images, verbose=0)).mean())
    if not 1e-3 < scale < 1e6:
        raise SystemExit(f"{name} gives outputs of size {scale:g}: no network that is in use does.")
    return model


def _architecture(name: str, shape: tuple[int, int, int]) -> keras.Model:
    if name == "mobilenet_v2":
        return keras.applications.MobileNetV2(
            shape, weights=None, classes=100, classifier_activation=None
        )
    if name == "resnet50":
        return keras.applications.ResNet50(
            weights=None, input_shape=shape, classes=100, classifier_activation=None
        )
    body = keras.applications.VGG16(
        include_top=False, weights=None, input_shape=shape, pooling="avg"
    )
    return keras.Model(body.input, keras.layers.Dense(100)(body.output), name=name)


def make(run: Run, work: pathlib.Path) -> None:
    """Writes the file of a run, and beside it what the network costs."""
    path, facts = work / f"{run.name}.tflite", work / f"{run.model}.json"
    if path.exists() and facts.exists():
        return
    work.mkdir(parents=True, exist_ok=True)
    model = network(run.network, run.size)
    if run.cut:
        budget = Budget(macs=1 - run.cut)
        model, _ = shrink(model, budget=budget, criterion="l1", round_to=run.round_to)
    cost = profile(model)
    images = np.random.default_rng(SEED).normal(size=(8, *model.input_shape[1:]))
    calibration = images.astype("float32") if run.dtype == "int8" else None
    tfcomp.convert(model, path, dtype=run.dtype, calibration=calibration)
    write_json(facts, {"macs": cost.macs, "parameters": cost.parameters})
    print(run.name, f"{cost.macs:,} multiply-adds", flush=True)


def measure(run: Run, work: pathlib.Path, rounds: int) -> dict[str, Any]:
    """Times the file in turn with the dense one."""
    paths = {"dense": run.dense, CONTROL: run.dense, "cut": run}
    steps: dict[str, _Timed] = {}
    for title, of in paths.items():
        interpreter = Interpreter(work / f"{of.name}.tflite", threads=1)
        interpreter.set_inputs(interpreter.random_inputs(SEED), raw=True)
        steps[title] = _Timed(interpreter.invoke)
    timed = dict(steps)
    baseline = steps.pop("dense")
    ratios = interleaved(baseline, steps, rounds=rounds, steps=1)
    costs = [json.loads((work / f"{of.model}.json").read_text()) for of in (run.dense, run)]
    macs = costs[0]["macs"] / costs[1]["macs"]
    cut, control = ratios["cut"], ratios[CONTROL]
    return {
        "cut": cut,
        "control": control,
        "dense_macs": costs[0]["macs"],
        "macs": costs[1]["macs"],
        "parameters": costs[1]["parameters"],
        "fastest_ms": {title: step.fastest_ms for title, step in timed.items()},
        "speed_up": 1 / cut.ratio,
        "efficiency": 1 / cut.ratio / macs,
        "efficiency_of_fastest": timed["dense"].fastest_ms / timed["cut"].fastest_ms / macs,
        "bytes": (work / f"{run.name}.tflite").stat().st_size,
    }


class _Timed:
    """Runs a step and remembers the shortest time, which other processes disturb least."""

    def __init__(self, step: Callable[[], object]) -> None:
        self._step, self.fastest_ms = step, math.inf

    def __call__(self) -> None:
        start = time.perf_counter()
        self._step()
        self.fastest_ms = min(self.fastest_ms, (time.perf_counter() - start) * 1e3)


def stored(run: Run) -> dict[str, Any] | None:
    """What was measured."""
    saved = results.load(f"{NAME}/{run.name}")
    return None if saved is None else saved["results"]


def main(_: list[str]) -> None:
    work, wanted = pathlib.Path(_WORK.value), [run for run in RUNS if _ONLY.value in run.name]
    if _CORE.value >= 0:
        os.sched_setaffinity(0, {_CORE.value})
    for run in wanted:
        make(run.dense, work)
        make(run, work)
    if _FILES_ONLY.value:
        return
    for run in wanted:
        if stored(run) is not None:
            continue
        found = measure(run, work, _ROUNDS.value)
        control = found["control"]
        if abs(control.ratio - 1) > EVEN:
            print(run.name, f"not kept: A/A control {control.ratio:.3f}", flush=True)
            continue
        budget = {"rounds": _ROUNDS.value, "steps": 1, "threads": 1, "size": run.size}
        results.save(f"{NAME}/{run.name}", seed=SEED, budget=budget, results=found)
        print(run.name, f"×{found['speed_up']:.2f}, {found['efficiency']:.2f}", flush=True)


if __name__ == "__main__":
    app.run(main)
