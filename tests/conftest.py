"""Before TensorFlow is imported: quiet logs. And the small files that several rooms test on."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import Any

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


@dataclasses.dataclass(frozen=True)
class TinyFiles:
    """A small network and the `.tflite` files that TensorFlow's own converter makes of it.

    `model` is 8×8×3 → Conv2D(4, 3, relu) → Flatten → Dense(10); `heads` has two inputs and a
    dict of two outputs. `images` are the calibration images, so that nothing is clipped.
    """

    model: Any
    heads: Any
    images: Any
    folder: pathlib.Path

    def __getitem__(self, name: str) -> pathlib.Path:
        return self.folder / f"{name}.tflite"


@pytest.fixture(scope="session")
def tiny_files(tmp_path_factory: pytest.TempPathFactory) -> TinyFiles:
    """float32, float16, dynamic, int8, int8_float_io (batch 1) and int8_open, heads files."""
    import keras
    import numpy as np
    import tensorflow as tf

    folder = tmp_path_factory.mktemp("tiny")
    rng = np.random.default_rng(0)
    images = rng.random((64, 8, 8, 3)).astype("float32")
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = _tiny_model(batch_size=None)
    fixed = _tiny_model(batch_size=1)
    fixed.set_weights(model.get_weights())
    left, right = keras.Input((6,), name="left"), keras.Input((4,), name="right")
    both = layers.Concatenate()([left, right])
    outputs = {"a": layers.Dense(3, name="a")(both), "b": layers.Dense(2, name="b")(both)}
    heads = keras.Model([left, right], outputs)

    def write(name: str, source: Any, **options: Any) -> None:
        converter = tf.lite.TFLiteConverter.from_keras_model(source)
        for key, value in options.items():
            holder = converter.target_spec if key == "supported_types" else converter
            setattr(holder, key, value)
        (folder / f"{name}.tflite").write_bytes(converter.convert())

    small = [tf.lite.Optimize.DEFAULT]
    full = {
        "optimizations": small,
        "representative_dataset": lambda: ([image[None]] for image in images),
    }
    integers = {"inference_input_type": tf.int8, "inference_output_type": tf.int8}
    write("heads", heads)
    write("float32", model)
    write("float16", model, optimizations=small, supported_types=[tf.float16])
    write("dynamic", model, optimizations=small)
    write("int8", fixed, **full, **integers)
    write("int8_float_io", fixed, **full)
    write("int8_open", model, **full, **integers)
    return TinyFiles(model, heads, images, folder)


def _tiny_model(batch_size: int | None) -> Any:
    import keras

    # The converter leaves a bias out that is zero.
    bias = {"bias_initializer": "random_normal"}
    return keras.Sequential(
        [
            keras.Input((8, 8, 3), batch_size=batch_size, name="image"),
            keras.layers.Conv2D(4, 3, activation="relu", name="conv", **bias),
            keras.layers.Flatten(name="flat"),
            keras.layers.Dense(10, name="logits", **bias),
        ]
    )
