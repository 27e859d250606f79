"""What a training step costs more once a model is quantisation-aware.

A residual CNN of 0.1 M weights on 28×28×1 at batch 128, with Adam, against its own plain step:
once with BatchNormalization kept, once folded away beforehand. A MobileNet-like CNN beside it,
whose depthwise convolutions leave little to hide the rounding behind. With `--peer_python`, a
Python that has tensorflow-model-optimization and tf_keras times tfmot's quantize_model against
its own plain step of the same networks.

    python -m benchmarks.qat_step [--rounds=30] [--steps=5] [--seed=0] [--peer_python=PATH]
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
from typing import Any

import keras
import tensorflow as tf
from absl import app, flags

from benchmarks import results
from benchmarks.tfmot_qat_step import NETWORKS, Network
from benchmarks.timing import Ratio, Step, interleaved
from tfcomp.quantization import quantize_aware

_ROUNDS = flags.DEFINE_integer("rounds", 30, "how often each is timed", 2)
_STEPS = flags.DEFINE_integer("steps", 5, "steps in one timing", 1)
_SEED = flags.DEFINE_integer("seed", 0, "of weights and data", 0)
_PEER = flags.DEFINE_string("peer_python", None, "a Python interpreter that has tfmot")
flags.DEFINE_alias("peer-python", "peer_python")

NAME = "qat_step"
KEPT, FOLDED = "BatchNorm kept", "BatchNorm folded"
REACH = {"residual_net": {KEPT: 1.30, FOLDED: 1.00}, "mobile_net": {}}


def stepper(model: keras.Model, network: Network) -> Step:
    """One step of the function that `fit` runs."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(), loss=loss, jit_compile=False)
    data = tf.data.Dataset.from_tensor_slices(network.data(_SEED.value)).batch(network.batch)
    model.fit(data.take(1), verbose=0, shuffle=False)
    batches = iter(data.repeat())
    return lambda: float(model.train_function(batches)["loss"])


def ours(name: str) -> dict[str, Ratio]:
    """Quantisation-aware steps against the plain one."""
    network = NETWORKS[name]
    keras.utils.set_random_seed(_SEED.value)
    plain = network.build(keras)
    print(f"{name}: {plain.count_params():,} weights, batch {network.batch}", flush=True)
    candidates = {
        KEPT: stepper(quantize_aware(plain), network),
        FOLDED: stepper(quantize_aware(plain, fold_batch_norm=True), network),
    }
    budget = {"rounds": _ROUNDS.value, "steps": _STEPS.value}
    return interleaved(stepper(plain, network), candidates, **budget)


def peer(name: str, python: str) -> dict[str, Ratio]:
    """tfmot's quantisation-aware step against the plain one of tf_keras."""
    script = pathlib.Path(__file__).with_name("tfmot_qat_step.py")
    numbers = (_ROUNDS.value, _STEPS.value, _SEED.value)
    environment = {**os.environ, "TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [python, str(script), name, *map(str, numbers)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    values: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {f"{key} (tf_keras)": Ratio(**value) for key, value in values.items()}


def main(_: list[str]) -> None:
    figures: dict[str, Any] = {}
    for name in NETWORKS:
        ratios = ours(name)
        if _PEER.value:
            ratios.update(peer(name, _PEER.value))
        title = f"{name}: quantisation-aware training step against the plain step"
        results.print_ratios(title, ratios, REACH[name])
        figures[name] = ratios
    budget = {"rounds": _ROUNDS.value, "steps": _STEPS.value, "batch": 128}
    print(results.save(NAME, seed=_SEED.value, budget=budget, results=figures))


if __name__ == "__main__":
    app.run(main)
