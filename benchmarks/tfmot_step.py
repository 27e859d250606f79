"""tfmot's pruning wrapper, timed like ours; run by `prune_step.py`, in a Python that has tfmot.

Prints one line of JSON. It imports neither tfcomp nor Keras 3, which cannot be had beside tfmot.

    TF_USE_LEGACY_KERAS=1 PEER_PYTHON benchmarks/tfmot_step.py NETWORK ROUNDS STEPS SEED SPARSITY
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

try:
    from benchmarks.timing import Step, interleaved
except ImportError:  # run as a script, with this folder as its path
    from timing import Step, interleaved

BATCHES = 8


@dataclasses.dataclass(frozen=True)
class Network:
    """A model to train, made by Keras 3 or by tf_keras alike.

    Attributes:
        build: Makes the model with the Keras module that it is given.
        input_shape: Of one example.
        batch: Examples in a step.
    """

    build: Callable[[Any], Any]
    input_shape: tuple[int, ...]
    batch: int

    def data(self, seed: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Random examples and labels for some steps."""
        rng = np.random.default_rng(seed)
        size = self.batch * BATCHES
        x = rng.normal(size=(size, *self.input_shape)).astype("float32")
        return x, rng.integers(0, 10, size)


def mobile_net(keras: Any) -> Any:
    """Depthwise-separable blocks in the manner of MobileNet: 0.1 M weights."""
    layers = keras.layers
    x = inputs = keras.Input((32, 32, 3))
    x = layers.Conv2D(16, 3, strides=2, padding="same", use_bias=False)(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    for width, strides in ((32, 1), (64, 2), (64, 1), (128, 2), (128, 1), (128, 1), (256, 2)):
        x = layers.DepthwiseConv2D(3, strides=strides, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
        x = layers.Conv2D(width, 1, use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def dense_net(keras: Any) -> Any:
    """Wide Dense layers: 20 M weights, few multiplications for each."""
    x = inputs = keras.Input((1024,))
    for width in (2560, 2560, 2560, 1600):
        x = keras.layers.Dense(width, "relu")(x)
    return keras.Model(inputs, keras.layers.Dense(10)(x))


NETWORKS = {
    "mobile_net": Network(mobile_net, (32, 32, 3), 128),
    "dense_net": Network(dense_net, (1024,), 64),
}


def wrapped_step(network: Network, seed: int, sparsity: float | None) -> Step:
    """One step of tf_keras training, in tfmot's wrappers unless `sparsity` is None."""
    import tensorflow as tf
    import tensorflow_model_optimization as tfmot
    import tf_keras

    tf_keras.utils.set_random_seed(seed)
    model = network.build(tf_keras)
    before = []
    if sparsity is not None:
        sparsities = tfmot.sparsity.keras
        # The masks are set once and kept, as ours are between two rises of a schedule.
        schedule = sparsities.ConstantSparsity(sparsity, begin_step=0, end_step=1, frequency=1)
        model = sparsities.prune_low_magnitude(model, pruning_schedule=schedule)
        before = [sparsities.UpdatePruningStep()]
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tf_keras.optimizers.Adam(), loss=loss, jit_compile=False)
    data = tf.data.Dataset.from_tensor_slices(network.data(seed)).batch(network.batch)
    model.fit(data.take(1), verbose=0, callbacks=before)
    for callback in before:
        callback.set_model(model)
        callback.on_train_begin()
    batches = iter(data.repeat())

    def step() -> float:
        for callback in before:
            callback.on_train_batch_begin(0)
        return float(model.train_function(batches)["loss"])

    return step


def main(name: str, rounds: str, steps: str, seed: str, sparsity: str) -> None:
    network = NETWORKS[name]
    ratios = interleaved(
        wrapped_step(network, int(seed), None),
        {"tfmot": wrapped_step(network, int(seed), float(sparsity))},
        rounds=int(rounds),
        steps=int(steps),
    )
    print(json.dumps({key: dataclasses.asdict(value) for key, value in ratios.items()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
