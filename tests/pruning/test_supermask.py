"""Supermasks against the paper's formulas, written out in NumPy; trained ones by hand."""

from __future__ import annotations

import pathlib
import re
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from keras import layers

from tfcomp.errors import TfcompError
from tfcomp.pruning import Supermask, SupermaskTrainer, supermask
from tfcomp.pruning.supermask import CRITERIA, KEPT, REMOVED

X = np.random.default_rng(0).normal(size=(24, 6)).astype("float32")
Y = np.random.default_rng(1).normal(size=(24, 3)).astype("float32")


def network(seed: int = 0) -> keras.Model:
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(8, "tanh", name="a", bias_initializer="random_normal"),
            layers.Dense(3, name="b", bias_initializer="random_normal"),
        ],
        name="m",
    )


def moved() -> keras.Model:
    """Another network: of some weights the sign changed, of some the magnitude."""
    model = network()
    rng = np.random.default_rng(7)
    model.set_weights([w + rng.normal(size=w.shape, scale=0.4) for w in model.get_weights()])
    return model


def single(values: Any) -> keras.Model:
    values = np.asarray(values)
    model = keras.Sequential([keras.Input((values.shape[0],)), layers.Dense(values.shape[1])])
    model.layers[0].kernel.assign(values)
    return model


# ---- criteria


def by_hand(name: str, initial: float, final: float) -> float:
    """A score, weight by weight, as Figure 3 and section 5 of the paper define it."""
    same = (initial > 0) == (final > 0)
    if name.endswith("_sign"):
        name, _, which = name.removesuffix("_sign").rpartition("_")
        if same != (which == "same"):
            return 0.0
    return {
        "large_final": abs(final),
        "small_final": -abs(final),
        "large_init": abs(initial),
        "small_init": -abs(initial),
        "magnitude_increase": abs(final) - abs(initial),
        "movement": abs(final - initial),
    }[name]


def lowest_go(scores: list[float], count: int) -> np.ndarray:
    mask = np.ones(len(scores), bool)
    mask[sorted(range(len(scores)), key=lambda i: (scores[i], i))[:count]] = False
    return mask


SINGLE = [name for name in CRITERIA if "_init_" not in name]


def test_the_papers_criteria_are_all_there() -> None:
    assert len(CRITERIA) == 12
    assert len(SINGLE) == 10


@pytest.mark.parametrize("sparsity", [0.3, 0.8])
@pytest.mark.parametrize("name", SINGLE)
def test_masks_are_those_of_the_formulas(name: str, sparsity: float) -> None:
    before, after = network(), moved()
    found = supermask(before, after, sparsity, name)
    assert set(found.masks) == {"a/kernel", "b/kernel"}
    for index, mask in zip((0, 2), found.masks.values(), strict=True):
        w0, w = (m.get_weights()[index].astype(np.float64) for m in (before, after))
        assert {True, False} == set(((w0 > 0) == (w > 0)).flat)
        scores = [by_hand(name, *pair) for pair in zip(w0.flat, w.flat, strict=True)]
        expected = lowest_go(scores, int(sparsity * w.size + 0.5))
        np.testing.assert_array_equal(mask.reshape(-1), expected)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("count", [5, 20, 36])
def test_two_thresholds_of_one_percentile(count: int, sign: int) -> None:
    """Kept is a quadrant: both magnitudes beyond the same percentile, raised until so many go."""
    w0, w = np.random.default_rng(3).normal(size=(2, 6, 8)).astype("float32")
    name = "large_init_large_final" if sign > 0 else "small_init_small_final"
    mask = supermask(single(w0), single(w), count / 48, name).masks.popitem()[1]
    assert np.count_nonzero(~mask) == count
    u, v = sign * abs(w0), sign * abs(w)
    inside = [(u >= p) & (v >= q) for p, q in zip(np.sort(u, None), np.sort(v, None), strict=True)]
    fewer = [quadrant for quadrant in inside if np.count_nonzero(~quadrant) <= count]
    more = [quadrant for quadrant in inside if np.count_nonzero(~quadrant) >= count]
    assert (mask <= fewer[-1]).all()
    assert (mask >= more[0]).all()


@settings(deadline=None, max_examples=30)
@given(data=st.data(), share=st.floats(0, 0.99), name=st.sampled_from([*CRITERIA, "random"]))
def test_counts_are_exact(data: Any, share: float, name: str) -> None:
    shape = (4, 5)
    # Few values, so that many scores are equal; zeros among them.
    values = arrays.arrays(np.float32, shape, elements=st.sampled_from([-2.0, -1.0, 0.0, 1.0]))
    before, after = single(data.draw(values)), single(data.draw(values))
    found = supermask(before, after, share, name)
    (mask,) = found.masks.values()
    assert np.count_nonzero(~mask) == min(int(np.floor(share * 20 + 0.5)), 19)
    assert found.sparsity == np.count_nonzero(~mask) / 20
    kernel = found.model.get_weights()[0]
    np.testing.assert_array_equal(kernel, np.where(mask, before.get_weights()[0], 0))


def test_a_criterion_of_ones_own_and_equal_scores_by_index() -> None:
    before, after = network(), moved()
    found = supermask(before, after, 0.25, lambda initial, final: np.ones_like(final))
    for mask in found.masks.values():
        assert not mask.flat[: mask.size // 4].any()
        assert mask.flat[mask.size // 4 :].all()
    again = supermask(before, after, 0.25, lambda initial, final: final)
    np.testing.assert_array_equal(
        again.masks["b/kernel"].reshape(-1), lowest_go(list(after.get_weights()[2].flat), 6)
    )


def test_random_masks_follow_the_seed() -> None:
    first, same, other = (supermask(network(), moved(), 0.5, "random", seed=s) for s in (0, 0, 1))
    for name in first.masks:
        np.testing.assert_array_equal(first.masks[name], same.masks[name])
        assert (first.masks[name] != other.masks[name]).any()


# ---- what stays


def kernels(model: keras.Model) -> list[np.ndarray]:
    return [w for w in model.get_weights() if w.ndim > 1]


def test_nothing_of_the_callers_changes_and_biases_are_the_initial_ones() -> None:
    before, after = network(), moved()
    old = [w.copy() for m in (before, after) for w in m.get_weights()]
    found = supermask(before, after, 0.5)
    for one, two in zip(old, [w for m in (before, after) for w in m.get_weights()], strict=True):
        np.testing.assert_array_equal(one, two)
    for index in (1, 3):
        np.testing.assert_array_equal(found.model.get_weights()[index], old[index])
    for kernel, mask, start in zip(
        kernels(found.model), found.masks.values(), kernels(before), strict=True
    ):
        np.testing.assert_array_equal(kernel, np.where(mask, start, 0))


@pytest.mark.parametrize("kept", [name for name in KEPT if name not in ("initial", "movement")])
def test_what_stays_is_treated_as_the_paper_has_it(kept: str) -> None:
    before, after = network(), moved()
    found, other = (supermask(before, after, 0.5, kept=kept, seed=seed) for seed in (0, 1))
    plain = supermask(before, after, 0.5)
    for number, (name, mask) in enumerate(found.masks.items()):
        np.testing.assert_array_equal(mask, plain.masks[name])
        w, start = kernels(found.model)[number], kernels(before)[number]
        assert (w[~mask] == 0).all()
        assert (w[mask] != 0).all()
        if kept != "signed_constant":  # random
            assert (w != kernels(other.model)[number]).any()
        if kept.startswith("signed_"):
            np.testing.assert_array_equal(np.sign(w[mask]), np.sign(start[mask]))
        else:
            assert (np.sign(w[mask]) != np.sign(start[mask])).any()
        sizes = np.sort(abs(w[mask]))
        if kept.endswith("constant"):
            deviation = np.sqrt(np.mean((start - start.mean()) ** 2))
            np.testing.assert_allclose(sizes, deviation, rtol=1e-6)
        elif kept.endswith("reshuffle"):
            np.testing.assert_array_equal(sizes, np.sort(abs(start[mask])))
            if kept == "reshuffle":
                np.testing.assert_array_equal(np.sort(w[mask]), np.sort(start[mask]))
        else:
            assert set(sizes) <= set(abs(start).flat)
            assert not set(sizes) <= set(abs(start[mask]))
            assert kept != "reinit" or set(w[mask]) <= set(start.flat)


def test_a_constant_of_ones_own() -> None:
    found = supermask(network(), moved(), 0.5, kept="signed_constant", constant=0.25)
    assert set(np.unique(np.concatenate([k.reshape(-1) for k in kernels(found.model)]))) == {
        -0.25,
        0.0,
        0.25,
    }


# ---- what goes

W0 = np.array([[1.0, -1.0, 2.0, 3.0, -2.0, 0.5], [4.0, -4.0, 1.5, 2.5, 0.75, -3.0]], "float32")
W = np.array([[0.5, -2.0, -2.0, -1.0, 2.5, 0.25], [1.0, -5.0, 1.75, -2.25, 0.5, 3.0]], "float32")
SHRUNK = np.array([[1, 0, 0, 1, 0, 1], [1, 0, 0, 1, 1, 0]], bool)
GROWN = np.array([[0, 1, 0, 0, 1, 0], [0, 1, 1, 0, 0, 0]], bool)


@pytest.mark.parametrize("removed", REMOVED)
def test_what_goes_is_treated_as_the_paper_has_it(removed: str) -> None:
    found = supermask(single(W0), single(W), 0.5, "random", removed=removed)
    (mask,) = found.masks.values()
    kernel = found.model.get_weights()[0]
    np.testing.assert_array_equal(kernel[mask], W0[mask])
    assert SHRUNK[~mask].any()
    assert not SHRUNK[~mask].all()
    if removed == "shuffled_movement":
        zeros = (kernel == 0) & ~mask
        assert np.count_nonzero(zeros) == np.count_nonzero(SHRUNK & ~mask)
        np.testing.assert_array_equal(kernel[~mask & ~zeros], W0[~mask & ~zeros])
        places = {
            supermask(single(W0), single(W), 0.5, lambda a, b: mask, removed=removed, seed=seed)
            .model.get_weights()[0]
            .tobytes()
            for seed in range(8)
        }
        assert len(places) > 1
        return
    zero = {
        "zero": np.ones_like(SHRUNK),
        "initial": np.zeros_like(SHRUNK),
        "movement": SHRUNK,
        "reversed_movement": GROWN,
    }[removed]
    np.testing.assert_array_equal(kernel[~mask], np.where(zero, 0, W0)[~mask])


def test_movement_of_what_stays() -> None:
    """The paper's second variant: all weights that moved toward zero begin there."""
    found = supermask(single(W0), single(W), 0.5, kept="movement", removed="movement")
    np.testing.assert_array_equal(found.model.get_weights()[0], np.where(SHRUNK, 0, W0))


class Clip(keras.constraints.Constraint):
    def __call__(self, w: Any) -> Any:
        return keras.ops.clip(w, -0.3, 0.3)


def test_removed_weights_are_held_while_the_others_train() -> None:
    found = supermask(network(), moved(), 0.5, kept="movement", removed="initial")
    model = found.model
    model.get_layer("a").kernel.constraint = Clip()
    before = [k.copy() for k in kernels(model)]
    model.compile(keras.optimizers.Adam(0.05, use_ema=True), "mse", jit_compile=False)
    during: list[list[np.ndarray]] = []
    watch = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: during.append(kernels(model))
    )
    model.fit(X, Y, epochs=5, verbose=0, callbacks=[watch, found.hold()])
    for step in during:
        for now, old, mask in zip(step, before, found.masks.values(), strict=True):
            np.testing.assert_array_equal(now[~mask], old[~mask])
        assert abs(step[0][found.masks["a/kernel"]]).max() <= np.float32(0.3)
    for old, new, mask in zip(before, kernels(model), found.masks.values(), strict=True):
        np.testing.assert_array_equal(new[~mask], old[~mask])
        assert (old[mask] == 0).any()
        assert (new[mask] != old[mask]).all()
    assert isinstance(model.get_layer("a").kernel.constraint, Clip)
    assert model.get_layer("b").kernel.constraint is None
    model.fit(X, Y, epochs=1, verbose=0)  # free again
    assert (kernels(model)[0] != before[0]).all()


# ---- shares, layers, files


def convolutional() -> keras.Model:
    keras.utils.set_random_seed(3)
    inner = keras.Sequential(
        [keras.Input((4, 4, 3)), layers.DepthwiseConv2D(3, name="dw"), layers.Flatten()],
        name="inner",
    )
    inputs = keras.Input((6, 6, 1))
    x = layers.Conv2D(3, 3, name="conv")(inputs)
    x = layers.BatchNormalization(name="bn")(x)
    x = layers.Dropout(0.25)(inner(x))
    return keras.Model(inputs, layers.Dense(5, name="logits")(x), name="net")


def test_layers_have_shares_of_their_own_and_may_be_spared() -> None:
    before, after = convolutional(), convolutional()
    after.set_weights([w + 0.1 for w in after.get_weights()])
    found = supermask(before, after, 0.8, overrides={"log*": 0.4, "conv/kernel": None})
    ((name, mask),) = found.masks.items()
    assert name.endswith("logits/kernel")
    assert np.count_nonzero(~mask) == 0.4 * mask.size
    assert "overrides" in found.skipped["conv/kernel"]
    assert any("depthwise" in reason for reason in found.skipped.values())
    layer = before.get_layer("conv")
    found = supermask(before, after, 0.5, skip=[layer], depthwise=True)
    assert [path.split("/")[-2] for path in found.masks] == ["dw", "logits"]
    assert str(found).splitlines()[0].endswith("large_final, kept: initial, removed: zero")


def test_the_result_loads_as_plain_keras(tmp_path: pathlib.Path) -> None:
    found = supermask(network(), moved(), 0.7, "large_final_same_sign", kept="signed_constant")
    found.model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), found.model.predict(X, verbose=0))
    zeros = sum(int((k == 0).sum()) for k in kernels(loaded))
    assert zeros == 34 + 17 == round(found.sparsity * 72)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sparsity": 1.0}, "`sparsity` must be a fraction"),
        ({"criterion": "largest"}, "`criterion` must be one of large_final, "),
        ({"kept": "final"}, "`kept` must be one of initial, "),
        ({"removed": "one"}, "`removed` must be one of zero, "),
        ({"constant": 0.1}, "`constant` must be a number above 0"),
        ({"constant": -1.0, "kept": "constant"}, "`constant` must be a number above 0"),
        ({"overrides": [0.5]}, "`overrides` must be a dict"),
        ({"overrides": {"c": 0.5}}, "Received: 'c', which fits none of a/kernel, b/kernel"),
        ({"overrides": {"a": 50}}, "Did you mean 0.5?"),
        ({"skip": ["a", "b"]}, "no kernel to mask in the model 'm'"),
        ({"skip": ["d"]}, "`skip` must name layers"),
        ({"criterion": lambda a, b: b[0]}, "finite scores of its shape, (6, 8). Received: shape"),
        ({"criterion": lambda a, b: b / 0}, "48 not finite"),
        ({"trained": single(W)}, "4 of the same shapes. Received: 2"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_refusals(arguments: dict[str, Any], message: str) -> None:
    given_ = {"trained": moved(), "sparsity": 0.5, **arguments}
    with pytest.raises(TfcompError, match=re.escape(message)) as error:
        supermask(network(), **given_)
    assert "\n" not in str(error.value)


def test_masks_are_held_in_their_own_model_only() -> None:
    found = supermask(network(), moved(), 0.5)
    model = single(W)
    model.compile("sgd", "mse")
    with pytest.raises(TfcompError, match="without 'a/kernel'"):
        model.fit(np.ones((2, 2)), np.ones((2, 6)), verbose=0, callbacks=[found.hold()])
    assert isinstance(found, Supermask)
    assert model.layers[0].kernel.constraint is None


# ---- trained


def sigmoid(m: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-m))


def fixed_draws(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """Random numbers that are written down as they are drawn."""
    drawn: list[np.ndarray] = []
    rng = np.random.default_rng(2)

    def uniform(shape: Any, **_: Any) -> Any:
        drawn.append(rng.random(tuple(shape)).astype("float32"))
        return keras.ops.convert_to_tensor(drawn[-1])

    monkeypatch.setattr(keras.random, "uniform", uniform)
    return drawn


@pytest.mark.parametrize("rescale", [True, False])
def test_one_step_is_that_of_the_closed_form(monkeypatch: Any, rescale: bool) -> None:
    drawn = fixed_draws(monkeypatch)
    trainer = SupermaskTrainer(network(), rescale=rescale)
    m = [
        np.random.default_rng(k).normal(size=s).astype("float32")
        for k, s in ((0, (6, 8)), (1, (8, 3)))
    ]
    for variable, value in zip(trainer.scores, m, strict=True):
        variable.assign(value)
    trainer.compile(keras.optimizers.SGD(10.0), "mse", jit_compile=False, run_eagerly=True)
    trainer.fit(X, Y, batch_size=24, epochs=1, verbose=0)
    masks = [(u < sigmoid(v)).astype(float) for u, v in zip(drawn[-2:], m, strict=True)]
    w1, b1, w2, b2 = (w.astype(np.float64) for w in network().get_weights())
    r = [b.size / b.sum() if rescale else 1.0 for b in masks]
    v1, v2 = w1 * masks[0] * r[0], w2 * masks[1] * r[1]
    hidden = np.tanh(X @ v1 + b1)
    back = 2 * (hidden @ v2 + b2 - Y) / Y.size
    slopes = [X.T @ (back @ v2.T * (1 - hidden**2)), hidden.T @ back]
    for variable, value, w, g, b, scale in zip(
        trainer.scores, m, (w1, w2), slopes, masks, r, strict=True
    ):
        # ∂L/∂b of ŵ = w·b·n/Σb, then ∂b/∂m = σ'.
        slope = scale * w * g
        if rescale:
            slope -= scale / b.sum() * (w * b * g).sum()
        p = sigmoid(value.astype(np.float64))
        np.testing.assert_allclose(variable, value - 10 * slope * p * (1 - p), rtol=2e-4, atol=1e-5)


def test_outputs_are_those_of_the_masks_drawn(monkeypatch: Any) -> None:
    drawn = fixed_draws(monkeypatch)
    trainer = SupermaskTrainer(network(), probability=0.3, kept="signed_constant")
    found = np.asarray(trainer(X))
    w1, b1, w2, b2 = network().get_weights()
    masks = [u < 0.3 for u in drawn]
    v1, v2 = (
        np.sign(w) * w.std() * b * b.size / b.sum() for w, b in zip((w1, w2), masks, strict=True)
    )
    np.testing.assert_allclose(found, np.tanh(X @ v1 + b1) @ v2 + b2, rtol=1e-5, atol=1e-5)
    assert trainer.sparsity == pytest.approx(0.7)


def test_masks_alone_are_trained() -> None:
    model = network()
    before = [w.copy() for w in model.get_weights()]
    trainer = SupermaskTrainer(model, seed=4)
    trainer.compile(keras.optimizers.SGD(20.0, momentum=0.9), "mse", jit_compile=False)
    assert len(trainer.trainable_variables) == 2
    truth = network(5).predict(X, verbose=0)
    losses = trainer.fit(X, truth, batch_size=8, epochs=40, verbose=0).history["loss"]
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])
    for old, new, mine in zip(
        before, trainer.network.get_weights(), model.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(old, new)
        np.testing.assert_array_equal(old, mine)
    assert all(variable.trainable for variable in model.variables)
    assert trainer.sparsity != 0.5
    assert len({trainer.evaluate(X, truth, verbose=0) for _ in range(3)}) > 1  # drawn anew


def test_a_seed_gives_the_same_training() -> None:
    found = []
    for seed in (1, 1, 2):
        trainer = SupermaskTrainer(network(), seed=seed)
        trainer.compile(keras.optimizers.SGD(20.0), "mse", jit_compile=False)
        trainer.fit(X, Y, batch_size=8, epochs=2, shuffle=False, verbose=0)
        found.append(np.asarray(trainer.scores[0]))
    np.testing.assert_array_equal(found[0], found[1])
    assert (found[0] != found[2]).any()


@pytest.mark.parametrize("rescale", [True, False])
def test_results_are_ordinary_models(rescale: bool, tmp_path: pathlib.Path) -> None:
    trainer = SupermaskTrainer(network(), rescale=rescale)
    m = [
        np.random.default_rng(k).normal(size=s.shape, scale=3) for k, s in enumerate(trainer.scores)
    ]
    for variable, value in zip(trainer.scores, m, strict=True):
        variable.assign(value)
    start = kernels(network())
    for masks in ("likeliest", "sampled", "expected"):
        model = trainer.result(masks)
        model.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        assert len(loaded.trainable_variables) == 4
        for w, w0, value in zip(kernels(loaded), start, m, strict=True):
            b = sigmoid(value)
            if masks == "likeliest":
                b = (value > 0).astype(float)
            elif masks == "sampled":
                b = (w != 0).astype(float)
                assert ((b == 0) & (value > 0)).any()
                assert ((b == 1) & (value < 0)).any()
            scale = b.size / b.sum() if rescale else 1
            np.testing.assert_allclose(w, w0 * b * scale, rtol=1e-5, atol=1e-6)
    draws = [kernels(trainer.result("sampled", seed))[0] for seed in range(60)]
    share = np.mean([draw != 0 for draw in draws], axis=0)
    assert abs(share - sigmoid(m[0])).max() < 0.3  # more than four standard deviations
    np.testing.assert_array_equal(draws[3], kernels(trainer.result("sampled", 3))[0])


def test_batch_normalization_dropout_and_added_losses() -> None:
    model = convolutional()
    model.get_layer("logits").activity_regularizer = keras.regularizers.L2(1.0)
    x = np.random.default_rng(0).normal(3.0, 2.0, (16, 6, 6, 1)).astype("float32")
    trainer = SupermaskTrainer(model, depthwise=True, probability=1 - 1e-7, skip=["logits"])
    assert [kernel.name.split("/")[-2] for kernel in trainer.kernels] == ["conv", "dw"]
    trainer.compile(keras.optimizers.SGD(1e-3), "mse", jit_compile=False)
    y = np.zeros((16, 5), "float32")
    loss = trainer.evaluate(x, y, verbose=0)
    outputs = trainer.predict(x, verbose=0)
    np.testing.assert_allclose(outputs, model.predict(x, verbose=0), rtol=1e-4, atol=1e-5)
    assert loss == pytest.approx(np.mean(outputs**2) + np.sum(outputs**2) / 16, rel=1e-4)
    trainer.fit(x, y, epochs=3, batch_size=16, verbose=0)
    norm = trainer.network.get_layer("bn")
    conv = layers.Conv2D(3, 3)
    conv.build((None, 6, 6, 1))
    conv.set_weights(model.get_layer("conv").get_weights())
    mean = np.asarray(conv(x)).mean(axis=(0, 1, 2))
    np.testing.assert_allclose(norm.moving_mean, mean * (1 - 0.99**3), rtol=1e-3)
    np.testing.assert_array_equal(norm.gamma, np.ones(3))
    assert (np.asarray(model.get_layer("bn").moving_mean) == 0).all()
    result = trainer.result()
    np.testing.assert_array_equal(result.get_layer("bn").moving_mean, norm.moving_mean)
    assert result.get_layer("bn").gamma.trainable


def test_a_trainer_is_saved_and_goes_on(tmp_path: pathlib.Path) -> None:
    trainer = SupermaskTrainer(network(), kept="signed_constant", skip=["b"], probability=0.6)
    trainer.compile(keras.optimizers.SGD(20.0), "mse", jit_compile=False)
    trainer.fit(X, Y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    trainer.save(tmp_path / "trainer.keras")
    loaded = keras.saving.load_model(tmp_path / "trainer.keras")
    trainer.draws.state.assign(loaded.draws.state)  # which draws from its seed anew
    for one in (trainer, loaded):
        one.fit(X, Y, batch_size=8, epochs=1, shuffle=False, verbose=0)
    np.testing.assert_allclose(loaded.scores[0], trainer.scores[0], rtol=1e-5, atol=1e-6)
    again = SupermaskTrainer.from_config(trainer.get_config())
    for key in ("kept", "constant", "rescale", "probability", "spared", "depthwise", "seed"):
        assert getattr(again, key) == getattr(trainer, key)
    np.testing.assert_array_equal(
        loaded.result().predict(X, verbose=0), trainer.result().predict(X, verbose=0)
    )


def test_mixed_precision() -> None:
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = network()
        trainer = SupermaskTrainer(model)
        trainer.compile(keras.optimizers.SGD(20.0), "mse", jit_compile=False)
        trainer.fit(X, Y, epochs=2, verbose=0)
    finally:
        keras.config.set_dtype_policy("float32")
    assert trainer.scores[0].dtype == "float32"
    assert trainer.sparsity != 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kept": "reinit"}, "`kept` must be one of initial, signed_constant. Received: 'reinit'"),
        ({"constant": 0.1}, "`constant` must be a number above 0"),
        ({"probability": 1.0}, "`probability` must be in (0, 1). Received: 1.0"),
        ({"skip": ["a", "b"]}, "no kernel to mask in the model 'm'"),
    ],
)
def test_refusals_of_the_trainer(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(TfcompError, match=re.escape(message)):
        SupermaskTrainer(network(), **arguments)
    with pytest.raises(TfcompError, match="`masks` must be one of"):
        SupermaskTrainer(network()).result("rounded")  # type: ignore[arg-type]
