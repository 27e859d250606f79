"""tfmot's quantize_model, timed like ours; run by `qat_step.py`, in a Python that has tfmot.

Prints one line of JSON. It imports neither tfcomp nor Keras 3, which cannot be had beside tfmot.

    TF_USE_LEGACY_KERAS=1 PEER_PYTHON benchmarks/tfmot_qat_step.py NETWORK ROUNDS STEPS SEED
"""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

try:
    from benchmarks.tfmot_step import Network, mobile_net
    from benchmarks.timing import Step, interleaved
except ImportError:  # run as a script, with this folder as its path
    from tfmot_step import Network, mobile_net
    from timing import Step, interleaved


def residual_net(keras: Any) -> Any:
    """Three stages of 3×3 convolutions, one with a shortcut: 0.12 M weights."""
    layers = keras.layers

    def conv(x: Any, width: int, strides: int = 1) -> Any:
        x = layers.Conv2D(width, 3, strides=strides, padding="same", use_bias=False)(x)
        return layers.BatchNormalization()(x)

    inputs = keras.Input((28, 28, 1))
    x = layers.ReLU()(conv(inputs, 16))
    x = shortcut = layers.ReLU()(conv(x, 32, 2))
    x = conv(layers.ReLU()(conv(x, 32)), 32)
    x = layers.ReLU()(layers.Add()([x, shortcut]))
    x = layers.ReLU()(conv(x, 64, 2))
    x = layers.ReLU()(conv(x, 128, 2))
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


NETWORKS = {
    "residual_net": Network(residual_net, (28, 28, 1), 128),
    "mobile_net": Network(mobile_net, (32, 32, 3), 128),
}


def step_of(network: Network, seed: int, quantised: bool) -> Step:
    """One step of tf_keras training, through tfmot's wrappers or plain."""
    import tensorflow as tf
    import tensorflow_model_optimization as tfmot
    import tf_keras

    tf_keras.utils.set_random_seed(seed)
    model = network.build(tf_keras)
    if quantised:
        model = tfmot.quantization.keras.quantize_model(model)
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tf_keras.optimizers.Adam(), loss=loss, jit_compile=False)
    data = tf.data.Dataset.from_tensor_slices(network.data(seed)).batch(network.batch)
    model.fit(data.take(1), verbose=0)
    batches = iter(data.repeat())
    return lambda: float(model.train_function(batches)["loss"])


def main(name: str, rounds: str, steps: str, seed: str) -> None:
    network = NETWORKS[name]
    ratios = interleaved(
        step_of(network, int(seed), False),
        {"tfmot": step_of(network, int(seed), True)},
        rounds=int(rounds),
        steps=int(steps),
    )
    print(json.dumps({key: dataclasses.asdict(value) for key, value in ratios.items()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
