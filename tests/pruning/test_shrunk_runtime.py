"""Shrunk models of every family in LiteRT: the file computes what the smaller Keras model does."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from tfcomp.conversion import convert
from tfcomp.errors import ConversionError
from tfcomp.pruning import Random, shrink


def randomize(model, seed=0):
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        if "float" in variable.dtype:
            positive = "variance" in variable.path or "gamma" in variable.path
            value = rng.uniform(0.5, 1.5, variable.shape)
            variable.assign(value if positive else 0.4 * rng.normal(size=variable.shape))
    return model


def sequence():
    return keras.Input((6, 5))


def image():
    return keras.Input((8, 8, 3))


def logits(x):
    return layers.Dense(3, name="logits")(x)


def pooled(x):
    return logits(layers.GlobalAveragePooling2D()(x))


def lstm():
    x = sequence()
    y = layers.LSTM(8, return_sequences=True)(x)
    return keras.Model(x, logits(layers.LSTM(6)(y)))


def gru():
    x = sequence()
    y = layers.GRU(8, return_sequences=True)(x)
    return keras.Model(x, logits(layers.GRU(6, reset_after=False)(y)))


def bidirectional():
    x = sequence()
    y = layers.Bidirectional(layers.LSTM(6, return_sequences=True))(x)
    return keras.Model(x, logits(layers.Bidirectional(layers.GRU(4), "sum")(y)))


def masked_tokens():
    x = keras.Input((6,), dtype="int32")
    y = layers.Embedding(9, 8, mask_zero=True)(x)
    return keras.Model(x, logits(layers.LSTM(6)(y)))


def open_length():
    x = keras.Input((None, 5))
    return keras.Model(x, logits(layers.LSTM(8)(x)))


def grouped():
    x = image()
    y = layers.Conv2D(8, 1, activation="relu")(x)
    y = layers.BatchNormalization()(layers.Conv2D(12, 3, groups=2, padding="same")(y))
    return keras.Model(x, pooled(layers.ReLU()(y)))


def group_for_each():
    x = image()
    y = layers.Conv2D(8, 1, activation="relu")(x)
    return keras.Model(x, pooled(layers.ReLU()(layers.Conv2D(16, 3, groups=8)(y))))


def attention():
    x = sequence()
    y = layers.Dense(8)(x)
    y = y + layers.MultiHeadAttention(4, 3)(y, y)
    y = layers.Conv1D(6, 3, padding="same", activation="gelu")(y)
    return keras.Model(x, logits(layers.GlobalAveragePooling1D()(y)))


def separable():
    x = image()
    y = layers.SeparableConv2D(8, 3, depth_multiplier=2, activation="relu")(x)
    return keras.Model(x, pooled(layers.SeparableConv2D(6, 3)(y)))


def separable_1d():
    x = sequence()
    y = layers.SeparableConv1D(8, 3, activation="relu")(x)
    return keras.Model(x, logits(layers.Flatten()(layers.DepthwiseConv1D(3)(y))))


def transposed():
    x = image()
    y = layers.Conv2D(8, 3, strides=2, activation="relu")(x)
    y = layers.Conv2DTranspose(6, 3, strides=2)(y)
    return keras.Model(x, layers.Conv2D(2, 1)(y))


def transposed_1d():
    x = sequence()
    y = layers.Conv1D(8, 3, activation="relu")(x)
    return keras.Model(x, layers.Conv1D(2, 1)(layers.Conv1DTranspose(6, 3, strides=2)(y)))


def nested():
    inside = keras.Input((8, 8, 6))
    y = layers.Conv2D(6, 3, padding="same", activation="relu")(inside)
    block = keras.Model(inside, layers.Add()([inside, y]))
    x = image()
    y = block(block(layers.Conv2D(6, 1)(x)))
    return keras.Model(x, keras.Sequential([layers.GlobalMaxPooling2D(), layers.Dense(3)])(y))


def volumes():
    x = keras.Input((4, 4, 4, 2))
    y = layers.Conv3DTranspose(4, 2)(layers.Conv3D(6, 2, activation="relu")(x))
    return keras.Model(x, logits(layers.GlobalAveragePooling3D()(y)))


def pieces():
    x = image()
    y = layers.Conv2D(8, 1, activation="tanh")(x)
    first, second = ops.split(y, 2, axis=-1)
    y = ops.concatenate([second, first * ops.sigmoid(second)], axis=-1)
    return keras.Model(x, pooled(layers.GroupNormalization(4)(y)[..., 2:]))


def several():
    """The families that sequences and maps have, side by side: one file for all of them."""
    x = keras.Input((6, 8))
    maps = layers.Reshape((6, 2, 4))(x)
    ends = []
    for make in (lstm, gru, bidirectional, attention, separable_1d):
        inner = make()
        ends.append(inner(layers.Dense(5, activation="tanh")(x)))
    for layer in (
        layers.Conv2D(8, 3, groups=2, padding="same"),
        layers.SeparableConv2D(8, 3, padding="same", activation="relu"),
        layers.Conv2DTranspose(8, 3, strides=2),
    ):
        y = layer(layers.Conv2D(8, 1, activation="relu")(maps))
        ends.append(layers.GlobalAveragePooling2D()(layers.BatchNormalization()(y)))
    return keras.Model(x, layers.Dense(4)(layers.Concatenate()(ends)))


def inputs_of(model, count=32):
    rng = np.random.default_rng(1)
    shape = (count, *(size or 6 for size in model.input_shape[1:]))
    if "int" in model.inputs[0].dtype:
        return rng.integers(0, 9, shape).astype("int32")
    return rng.normal(size=shape).astype("float32")


def shrunk(make):
    small, report = shrink(randomize(make()), 0.5, Random(0))
    assert report.removed >= 0.3 * report.prunable
    return small


def gap(artifact, model, x):
    expected = np.asarray(model(x))
    received = np.concatenate([artifact.run(one[None]) for one in x])
    return np.abs(received - expected).max() / np.abs(expected).max()


def check(make, path):
    small = shrunk(make)
    x = inputs_of(small)[:3]
    assert gap(convert(small, path), small, x) <= 1e-5


def test_families_side_by_side(tmp_path):
    check(several, tmp_path / "m.tflite")


FAMILIES = [
    lstm, gru, bidirectional, masked_tokens, grouped, group_for_each, attention, separable,
    separable_1d, transposed, transposed_1d, nested, volumes, pieces,
]  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("make", FAMILIES)
def test_float_file_equals_the_smaller_model(make, tmp_path):
    check(make, tmp_path / "m.tflite")


@pytest.mark.long
@pytest.mark.parametrize(
    "make", [grouped, group_for_each, attention, separable, separable_1d, transposed, nested]
)
def test_integer_file_is_near_the_smaller_model(make, tmp_path):
    small = shrunk(make)
    x = inputs_of(small)
    artifact = convert(small, tmp_path / "m.tflite", dtype="int8", calibration=x)
    assert gap(artifact, small, x) <= 0.06


@pytest.mark.long
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lstm, "no integer form: lstm"),
        (bidirectional, "no integer form: bidirectional"),
        (volumes, "CONV_3D"),
        (pieces, "group_normalization"),
    ],
)
def test_integer_files_that_cannot_be_are_refused_in_one_line(make, words, tmp_path):
    keras.utils.clear_session()
    small = shrunk(make)
    path = tmp_path / "m.tflite"
    with pytest.raises(ConversionError, match=words) as refused:
        convert(small, path, dtype="int8", calibration=inputs_of(small))
    assert "\n" not in str(refused.value)
    assert not path.exists()


@pytest.mark.long
def test_open_lengths(tmp_path):
    small = shrunk(open_length)
    artifact = convert(small, tmp_path / "m.tflite")
    assert gap(artifact, small, inputs_of(small)[:1]) <= 1e-5
