"""What a training step costs more while PruneWeights keeps the removed weights at zero.

The masks are set, as they are between two rises of a schedule; the callback's own work at the
end of a batch is in the time. A MobileNet-like CNN of 0.1 M weights at batch 128, and wide Dense
layers of 20 M weights at batch 64, where there are few multiplications beside each weight. Both
with Adam, at sparsity 0.8. With `--peer_python`, a Python that has tensorflow-model-optimization
and tf_keras times tfmot's wrapper against its own plain step.

    python -m benchmarks.prune_step [--rounds=30] [--steps=5] [--seed=0] [--peer_python=PATH]
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

from benchmarks import results
from benchmarks.tfmot_step import BATCHES, NETWORKS, Network
from benchmarks.timing import Ratio, Step, interleaved
from tfcomp.callbacks import PruneWeights
from tfcomp.pruning import ConstantSparsity

_ROUNDS = flags.DEFINE_integer("rounds", 30, "how often each is timed", 2)
_STEPS = flags.DEFINE_integer("steps", 5, "steps in one timing", 1)
_SEED = flags.DEFINE_integer("seed", 0, "of weights and data", 0)
_PEER = flags.DEFINE_string("peer_python", None, "a Python interpreter that has tfmot")
flags.DEFINE_alias("peer-python", "peer_python")

NAME = "prune_step"
SPARSITY = 0.8
REACH = {"mobile_net": {"PruneWeights": 1.02}, "dense_net": {}}
ABSENT = "tensorflow-model-optimization is not installed"


def stepper(network: Network, prune: PruneWeights | None) -> tuple[Step, keras.Model]:
    """One step of the function that `fit` runs, with what `fit` tells the callback."""
    keras.utils.set_random_seed(_SEED.value)
    model = network.build(keras)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(), loss=loss, jit_compile=False)
    data = tf.data.Dataset.from_tensor_slices(network.data(_SEED.value)).batch(network.batch)
    model.fit(data.take(1), verbose=0, shuffle=False)
    if prune is not None:
        prune.set_params({"steps": BATCHES})
        prune.set_model(model)
        prune.on_train_begin()
        prune.on_epoch_begin(0)
    batches = iter(data.repeat())

    def step() -> float:
        logs = model.train_function(batches)
        if prune is not None:
            prune.on_train_batch_end(0, logs)
        return float(logs["loss"])

    return step, model


def ours(name: str) -> dict[str, Ratio]:
    """The step with masks set against the plain one."""
    network = NETWORKS[name]
    plain, model = stepper(network, None)
    pruned, masked = stepper(
        network, PruneWeights(ConstantSparsity(SPARSITY), first=True, last=True)
    )
    print(f"{name}: {model.count_params():,} weights, batch {network.batch}", flush=True)
    ratios = interleaved(plain, {"PruneWeights": pruned}, rounds=_ROUNDS.value, steps=_STEPS.value)
    weights = [w for w in masked.get_weights() if w.ndim > 1]
    zeros, size = sum(int((w == 0).sum()) for w in weights), sum(w.size for w in weights)
    if not np.isclose(zeros / size, SPARSITY, atol=0.05):  # a time without masks proves nothing
        raise SystemExit(f"The masks were not in place: {zeros:,} zeros of {size:,} weights.")
    return ratios


def peer(name: str, python: str) -> dict[str, Ratio] | str:
    """tfmot's wrapper against tf_keras's plain step; what is missing, where it cannot run."""
    script = pathlib.Path(__file__).with_name("tfmot_step.py")
    numbers = (_ROUNDS.value, _STEPS.value, _SEED.value, SPARSITY)
    environment = {**os.environ, "TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    probe = "import tensorflow_model_optimization, tf_keras"
    try:
        found = subprocess.run(
            [python, "-c", probe], env=environment, capture_output=True, text=True, check=False
        )
    except OSError as error:
        return f"{python} cannot be run: {error.strerror}"
    if found.returncode:
        return f"{ABSENT} in {python}: {found.stderr.strip().splitlines()[-1]}"
    command = [python, str(script), name, *map(str, numbers)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    values: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {f"{key} (tf_keras)": Ratio(**value) for key, value in values.items()}


def main(_: list[str]) -> None:
    figures: dict[str, Any] = {}
    for name in NETWORKS:
        ratios = ours(name)
        theirs = peer(name, _PEER.value or sys.executable)
        if isinstance(theirs, str):
            print(f"tfmot: {theirs}")
        else:
            ratios.update(theirs)
        title = f"{name}: training step at sparsity {SPARSITY} against the plain step"
        results.print_ratios(title, ratios, REACH[name])
        figures[name] = ratios
    budget = {"rounds": _ROUNDS.value, "steps": _STEPS.value, "sparsity": SPARSITY}
    budget["batch"] = {name: network.batch for name, network in NETWORKS.items()}
    print(results.save(NAME, seed=_SEED.value, budget=budget, results=figures))


if __name__ == "__main__":
    app.run(main)
