"""BatchNormalization folded away: the same function, fewer layers."""

import keras
import numpy as np
import pytest

from tfcomp.graph import fold_batch_norm, trace

layers = keras.layers


def randomised(model, seed=0):
    """Every variable random, so that a wrong index shows; variances stay positive."""
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        if "seed" in variable.path:
            continue
        value = rng.normal(size=variable.shape)
        variable.assign(np.abs(value) + 0.1 if "variance" in variable.path else value)
    return model


def chain(shape, *chained):
    return randomised(keras.Sequential([keras.Input(shape), *chained]))


def kinds(model):
    return [node.kind for node in trace(model).nodes]


def assert_same(one, other, shape):
    x = np.random.default_rng(1).normal(size=(3, *shape)).astype("float32")
    expected, got = np.asarray(one(x)), np.asarray(other(x))
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(
    "shape, layer",
    [
        ((8, 8, 3), layers.Conv2D(5, 3, use_bias=False)),
        ((8, 8, 3), layers.Conv2D(5, 3, strides=2, padding="same")),
        ((8, 8, 4), layers.Conv2D(6, 3, groups=2)),
        ((8, 8, 3), layers.DepthwiseConv2D(3, depth_multiplier=2, use_bias=False)),
        ((8, 8, 3), layers.Conv2DTranspose(5, 3, strides=2)),
        ((8, 8, 3), layers.SeparableConv2D(5, 3)),
        ((9, 3), layers.Conv1D(5, 3)),
        ((9, 3), layers.DepthwiseConv1D(3)),
        ((5, 6, 7, 2), layers.Conv3D(4, 2)),
        ((9, 3), layers.Conv1DTranspose(5, 3)),
        ((6,), layers.Dense(4, use_bias=False)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, keras.layers.Layer) else None,
)
def test_each_layer_takes_the_normalisation_in(shape, layer):
    model = chain(shape, layer, layers.BatchNormalization(), layers.ReLU())
    folded = fold_batch_norm(model)
    assert "BatchNormalization" not in kinds(folded)
    assert_same(model, folded, shape)


@pytest.mark.parametrize("options", [{"center": False}, {"scale": False}, {"epsilon": 0.5}])
def test_options_of_the_normalisation(options):
    model = chain((6, 6, 2), layers.Conv2D(3, 3), layers.BatchNormalization(**options))
    folded = fold_batch_norm(model)
    assert kinds(folded) == ["Conv2D"]
    assert_same(model, folded, (6, 6, 2))


def test_what_cannot_be_folded_is_left_alone_and_computes_the_same():
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(4, 3, activation="relu", padding="same")(inputs)
    x = layers.BatchNormalization()(x)  # after an activation
    shared = layers.Conv2D(4, 3, padding="same")
    x = layers.Add()([shared(x), shared(layers.BatchNormalization()(shared(x)))])
    y = layers.Conv2D(4, 3)(x)
    z = layers.BatchNormalization()(y)  # y is read twice
    model = randomised(keras.Model(inputs, layers.Add()([y, z])))
    folded = fold_batch_norm(model)
    assert kinds(folded) == kinds(model)
    assert_same(model, folded, (6, 6, 3))


def test_the_caller_keeps_the_model_and_nested_ones_are_opened():
    inner = keras.Sequential(
        [keras.Input((6, 6, 2)), layers.Conv2D(3, 3), layers.BatchNormalization()]
    )
    model = chain((6, 6, 2), inner, layers.Flatten(), layers.Dense(2))
    before = model.get_weights()
    folded = fold_batch_norm(model)
    assert kinds(folded) == ["Conv2D", "Flatten", "Dense"]
    assert_same(model, folded, (6, 6, 2))
    folded.set_weights([0 * value for value in folded.get_weights()])
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


def test_only_where_asked():
    model = chain(
        (6, 6, 2),
        layers.Conv2D(3, 3),
        layers.BatchNormalization(),
        layers.Flatten(),
        layers.Dense(2),
        layers.BatchNormalization(),
    )
    folded = fold_batch_norm(model, lambda node: node.kind == "Dense")
    assert kinds(folded) == ["Conv2D", "BatchNormalization", "Flatten", "Dense"]
    assert_same(model, folded, (6, 6, 2))
