"""What a training step costs more once masks are set, for every unit and scope.

As `benchmarks.prune_step`, whose networks it trains: a MobileNet-like one of 0.1 M weights, and a
dense one of 20 M. Every combination in turn with the plain step, and an A/A control. What is there
of a network with the same budget is not timed again.

    python -m benchmarks.pruning.step_times [--rounds=30] [--steps=5]
"""

from __future__ import annotations

import dataclasses
from typing import Any

from absl import app, flags

from benchmarks import results
from benchmarks.prune_step import NETWORKS, stepper
from benchmarks.pruning.mask_update import UNITS
from benchmarks.timing import Ratio, interleaved
from tfcomp.callbacks import PruneWeights
from tfcomp.pruning import ConstantSparsity
from tfcomp.runtime.machine import hardware

NAME = "pruning_step_times"
REACH = {"mobile_net": 1.02, "dense_net": None}


def measure(name: str, rounds: int, steps: int) -> dict[str, Ratio]:
    """All combinations on one network."""
    network = NETWORKS[name]
    plain, _model = stepper(network, None)
    candidates, kept = {}, []
    for title, (unit, sparsity) in UNITS.items():
        for scope in ("local", "global"):
            prune = PruneWeights(
                ConstantSparsity(sparsity), unit=unit, scope=scope, first=True, last=True
            )
            candidates[f"{title}, {scope}"], model = stepper(network, prune)
            kept.append(model)
    for model in kept:  # a time without masks proves nothing
        weights = [w for w in model.get_weights() if w.ndim > 1]
        zeros = sum(int((w == 0).sum()) for w in weights)
        if not zeros > 0.4 * sum(w.size for w in weights):
            raise SystemExit(f"The masks were not in place: {zeros:,} zeros.")
    ratios = interleaved(plain, candidates, rounds=rounds, steps=steps)
    bound = REACH[name]
    reach = dict.fromkeys(candidates, bound) if bound else {}
    results.print_ratios(f"{name}: step over the plain step", ratios, reach)
    return ratios


def main(_: list[str]) -> None:
    rounds, steps = flags.FLAGS.rounds, flags.FLAGS.steps
    budget: dict[str, Any] = {"rounds": rounds, "steps": steps}
    budget["batch"] = {name: network.batch for name, network in NETWORKS.items()}
    budget |= {"units": list(UNITS), "cpu": hardware()["cpu"]}  # of one machine alone
    for name in NETWORKS:
        saved = results.load(NAME)
        found = saved["results"] if saved is not None and saved["budget"] == budget else {}
        if name not in found:
            found[name] = {
                k: dataclasses.asdict(r) for k, r in measure(name, rounds, steps).items()
            }
            print(results.save(NAME, seed=0, budget=budget, results=found))


if __name__ == "__main__":
    app.run(main)
