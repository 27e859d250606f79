"""NetworkSlimming: the penalty is that of a regulariser written by hand, and goes away."""

import keras
import numpy as np
import pytest
from keras import layers

from tfcomp.callbacks import NetworkSlimming
from tfcomp.errors import TfcompError
from tfcomp.pruning import shrink

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 6)).astype("float32")
Y = (X[:, 0] > 0).astype("int32")


def network(regularizer=None, inner=None):
    keras.utils.set_random_seed(1)
    block = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(8, kernel_regularizer=inner),
            layers.BatchNormalization(gamma_regularizer=regularizer),
        ],
        name="block",
    )
    x = keras.Input((6,))
    y = layers.Dense(8, name="second")(layers.ReLU()(block(x)))
    y = layers.ReLU()(layers.BatchNormalization(gamma_regularizer=regularizer, name="n")(y))
    model = keras.Model(x, layers.Dense(2, name="y")(y))
    model.compile(
        keras.optimizers.SGD(0.05, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


def fit(model, epochs=3, callbacks=()):
    history = model.fit(
        X, Y, batch_size=16, epochs=epochs, shuffle=False, verbose=0, callbacks=list(callbacks)
    )
    return history.history["loss"]


def test_equals_the_regulariser_written_by_hand_and_leaves_none():
    by_hand, slimmed = network(keras.regularizers.L1(0.02)), network()
    expected = fit(by_hand)
    received = fit(slimmed, callbacks=[NetworkSlimming(0.02)])
    np.testing.assert_allclose(received, expected, rtol=1e-6)
    for a, b in zip(by_hand.get_weights(), slimmed.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    # Afterwards the model trains as one that never had a penalty.
    plain = network()
    plain.set_weights(slimmed.get_weights())
    assert slimmed.losses == []
    assert slimmed.evaluate(X, Y, verbose=0) == pytest.approx(plain.evaluate(X, Y, verbose=0))


def test_goes_beside_regularisers_of_the_model_and_puts_them_back():
    own = keras.regularizers.L2(0.1)
    both, slimmed = network(keras.regularizers.L1L2(0.02, 0.1)), network(own)
    np.testing.assert_allclose(fit(slimmed, callbacks=[NetworkSlimming(0.02)]), fit(both), 1e-6)
    assert slimmed.get_layer("n").gamma.regularizer is own


def test_a_fit_that_was_interrupted_does_not_double_the_penalty():
    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            raise KeyboardInterrupt

    model, by_hand = network(), network(keras.regularizers.L1(0.02))
    with pytest.raises(KeyboardInterrupt):
        fit(model, callbacks=[NetworkSlimming(0.02), Stop()])
    np.testing.assert_allclose(fit(model, callbacks=[NetworkSlimming(0.02)]), fit(by_hand), 1e-6)
    assert model.get_layer("n").gamma.regularizer is None


def test_scales_that_are_not_needed_fall_and_their_channels_go_first():
    plain, slimmed = network(), network()
    fit(plain, epochs=30)
    fit(slimmed, epochs=30, callbacks=[NetworkSlimming(0.05)])
    small = [np.abs(model.get_layer("n").gamma).min() for model in (slimmed, plain)]
    assert small[0] < 0.05 < small[1]
    gammas = np.abs(slimmed.get_layer("n").gamma)
    kept = shrink(slimmed, {"second": 0.5}, "batch_norm_scale")[0].get_layer("n").gamma
    np.testing.assert_allclose(np.sort(np.abs(kept)), np.sort(gammas)[4:], rtol=1e-6)


def test_what_is_wrong_is_told_in_one_line():
    for strength in (-1, float("nan"), "1e-4", True):
        with pytest.raises(TfcompError, match="≥ 0"):
            NetworkSlimming(strength)
    model = keras.Sequential([keras.Input((6,)), layers.Dense(2), layers.GroupNormalization(1)])
    model.compile("sgd", "mse")
    with pytest.raises(TfcompError, match="Received none"):
        model.fit(X, np.zeros((64, 2)), verbose=0, callbacks=[NetworkSlimming()])
    copy = NetworkSlimming.from_config(NetworkSlimming(0.5).get_config())
    assert copy.strength == 0.5
