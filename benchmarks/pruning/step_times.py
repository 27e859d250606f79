"""What a training step costs more once masks are set, for every unit and scope.

As `benchmarks.prune_step`, whose networks it trains: a MobileNet-like one of 0.1 M weights, and a
dense one of 20 M. Every combination in turn with the plain step, and an A/A control: a second plain
model, since the first one twice in a row would find its weights in the cache. What is there of a
network with the same budget is not timed again. TensorFlow has one thread, and what is taken is
the processor's time: on one core the same as that of a clock, but for what else runs there.

    taskset -c 0 python -m benchmarks.pruning.step_times [--rounds=200] [--steps=3]

A third of the rounds for the dense network, whose steps take three times as long.
"""

from __future__ import annotations

import dataclasses
import os
import time
from typing import Any

import tensorflow as tf
from absl import app, flags

from benchmarks import results
from benchmarks.prune_step import NETWORKS, stepper
from benchmarks.timing import Ratio, interleaved
from tfcomp.callbacks import PruneWeights
from tfcomp.pruning import NM, Blocks, ConstantSparsity, Filters, Kernels, Layers, Unit, Weights
from tfcomp.runtime.machine import hardware

NAME = "pruning_step_times"
CONTROL = "A/A control"
REACH = {"mobile_net": 1.02, "dense_net": None}
SHARES = {"mobile_net": 1, "dense_net": 3}  # of the rounds
UNITS: dict[str, tuple[Unit, float]] = {
    "weights": (Weights(), 0.8),
    "2:4": (NM(2, 4), 0.5),
    "blocks 4×4": (Blocks(4, 4), 0.8),
    "kernels": (Kernels(), 0.8),
    "filters": (Filters(), 0.8),
    "layers": (Layers(), 0.8),
}
CASES = [
    (name, scope)
    for name, (unit, _) in UNITS.items()
    for scope in ("local", "global")
    if not (unit.whole and scope == "local")  # kernels are compared with each other
]


def measure(name: str, rounds: int, steps: int) -> dict[str, Ratio]:
    """All combinations on one network."""
    network = NETWORKS[name]
    plain, _model = stepper(network, None)
    control, _other = stepper(network, None)
    candidates, masked = {CONTROL: control}, []
    for title, scope in CASES:
        unit, sparsity = UNITS[title]
        prune = PruneWeights(
            ConstantSparsity(sparsity), unit=unit, scope=scope, first=True, last=True
        )
        candidates[f"{title}, {scope}"], model = stepper(network, prune)
        masked.append((model, prune))
    ratios = interleaved(plain, candidates, rounds=rounds, steps=steps, clock=time.process_time)
    for model, prune in masked:  # a time without masks proves nothing
        zeros = sum(int((w == 0).sum()) for w in model.get_weights() if w.ndim > 1)
        removed = sum(kernel.zeros for kernel in prune.report.kernels)
        if not zeros >= removed > 0.4 * sum(kernel.size for kernel in prune.report.kernels):
            raise SystemExit(f"The masks were not in place: {zeros:,} zeros of {removed:,}.")
    bound = REACH[name]
    reach = dict.fromkeys(list(candidates)[1:], bound) if bound else {}
    results.print_ratios(f"{name}: step over the plain step", ratios, reach)
    return ratios


def main(_: list[str]) -> None:
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    steps = flags.FLAGS.steps
    rounds = {name: max(flags.FLAGS.rounds // share, 2) for name, share in SHARES.items()}
    budget: dict[str, Any] = {"rounds": rounds, "steps": steps, "threads": 1}
    budget |= {"cores": len(os.sched_getaffinity(0)), "clock": "process_time"}
    budget["batch"] = {name: network.batch for name, network in NETWORKS.items()}
    budget |= {"units": list(UNITS), "cpu": hardware()["cpu"]}  # of one machine alone
    for name in NETWORKS:
        saved = results.load(NAME)
        found = saved["results"] if saved is not None and saved["budget"] == budget else {}
        if name not in found:
            found[name] = {
                k: dataclasses.asdict(r) for k, r in measure(name, rounds[name], steps).items()
            }
            print(results.save(NAME, seed=0, budget=budget, results=found))


if __name__ == "__main__":
    app.run(main)
