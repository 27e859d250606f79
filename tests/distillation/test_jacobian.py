"""Jacobian matching: values and second-order gradients against NumPy, and the noise form."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfcomp.distillation import (
    AttentionJacobianMatching,
    Distiller,
    JacobianMatching,
    KnowledgeDistillation,
    NoisyInputMatching,
)
from tfcomp.distillation.losses.jacobian import direction_gap
from tfcomp.errors import TfcompError

Weights = list[np.ndarray]
CE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def mlp(width: int, activation: str | None = None, size: int = 4, classes: int = 3) -> keras.Model:
    dense = keras.layers.Dense
    hidden = dense(width, "tanh", bias_initializer="random_normal")
    return keras.Sequential([keras.Input((size,)), hidden, dense(classes, activation)])


def responses(weights: Weights, x: np.ndarray) -> np.ndarray:
    return np.tanh(x @ weights[0] + weights[1]) @ weights[2] + weights[3]


def jacobians(weights: Weights, x: np.ndarray) -> np.ndarray:
    """∂z_c/∂x by the chain rule, (batch, classes, inputs)."""
    slope = 1 - np.tanh(x @ weights[0] + weights[1]) ** 2
    return np.einsum("ih,bh,hc->bci", weights[0], slope, weights[2])


def log_jacobians(weights: Weights, x: np.ndarray) -> np.ndarray:
    """∂log p_c/∂x = ∂z_c/∂x − Σ_k p_k ∂z_k/∂x."""
    p = np.exp(responses(weights, x))
    p /= p.sum(-1, keepdims=True)
    own = jacobians(weights, x)
    return own - np.einsum("bk,bki->bi", p, own)[:, None]


def unit(vector: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vector)
    return vector / length if length > 0 else vector


def matching(teacher: Weights, student: Weights, x: np.ndarray, of: Callable[..., Any]) -> float:
    """The mean over the batch, sample by sample."""
    largest = responses(teacher, x).argmax(-1)
    of_teacher, of_student = of(teacher, x), of(student, x)
    gaps = [unit(of_student[n, c]) - unit(of_teacher[n, c]) for n, c in enumerate(largest)]
    return float(np.mean([gap @ gap for gap in gaps]))


def finite_differences(function: Callable[[Weights], float], weights: Weights) -> Weights:
    found = []
    for array in weights:
        gradient = np.zeros_like(array)
        for index in np.ndindex(array.shape):
            kept, sides = array[index], []
            for shift in (1e-5, -1e-5):
                array[index] = kept + shift
                sides.append(function(weights))
            array[index] = kept
            gradient[index] = (sides[0] - sides[1]) / 2e-5
        found.append(gradient)
    return found


def one_step(
    teacher: keras.Model, student: keras.Model, loss: Any, x: Any, eager: bool = False
) -> tuple[float, Any]:
    """The loss, and what gradient descent at the rate 1 took off each weight."""
    before = student.get_weights()
    distiller = Distiller(teacher, student, loss, student_loss_weight=0.0)
    distiller.compile(keras.optimizers.SGD(1.0), run_eagerly=eager)
    value = distiller.fit(x, batch_size=64, verbose=0, shuffle=False).history["loss"][0]
    after = student.get_weights()
    return value, [a - b for a, b in zip(before, after, strict=True)]


def float64(model: keras.Model) -> Weights:
    return [weight.astype("float64") for weight in model.get_weights()]


@pytest.mark.parametrize("endings", [(None, None), (None, "softmax"), ("softmax", None)])
def test_jacobians_and_their_gradients_are_those_by_hand(endings: Any) -> None:
    x = np.random.default_rng(0).standard_normal((5, 4))
    teacher, student = mlp(7, endings[0]), mlp(3, endings[1])
    of_teacher, of_student = float64(teacher), float64(student)
    of = jacobians if endings == (None, None) else log_jacobians

    def value(weights: Weights) -> float:
        return matching(of_teacher, weights, x, of)

    loss, moved = one_step(teacher, student, JacobianMatching(), x)
    assert loss == pytest.approx(value(of_student), rel=1e-4)
    for received, expected in zip(moved, finite_differences(value, of_student), strict=True):
        np.testing.assert_allclose(received, expected, rtol=2e-3, atol=2e-5)
    assert max(np.abs(one).max() for one in moved) > 1e-2


@settings(deadline=None, max_examples=6, derandomize=True)
@given(
    batch=st.integers(1, 4),
    size=st.integers(2, 4),
    widths=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    classes=st.integers(2, 4),
    endings=st.tuples(*[st.sampled_from([None, "softmax"])] * 2),
    seed=st.integers(0, 999),
)
def test_jacobians_of_every_shape_are_those_by_hand(
    batch: int, size: int, widths: tuple[int, int], classes: int, endings: Any, seed: int
) -> None:
    keras.utils.set_random_seed(seed)
    x = np.random.default_rng(seed).standard_normal((batch, size))
    teacher, student = (
        mlp(width, ending, size, classes) for width, ending in zip(widths, endings, strict=True)
    )
    of_teacher, of_student = float64(teacher), float64(student)
    of = jacobians if endings == (None, None) else log_jacobians

    def value(weights: Weights) -> float:
        return matching(of_teacher, weights, x, of)

    loss, moved = one_step(teacher, student, JacobianMatching(), x, eager=True)
    assert loss == pytest.approx(value(of_student), rel=1e-3, abs=1e-6)
    for received, expected in zip(moved, finite_differences(value, of_student), strict=True):
        np.testing.assert_allclose(received, expected, rtol=2e-3, atol=1e-4)


def convolution(width: int, kernel: int = 2, shape: Any = (3, 4, 1)) -> keras.Model:
    layers = [
        keras.layers.Conv2D(width, kernel, activation="tanh", name="conv"),
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(3),
    ]
    return keras.Sequential([keras.Input(shape), *layers])


def numpy_attention(kernel: np.ndarray, bias: np.ndarray, image: np.ndarray) -> Any:
    """The map of attention, and for each of its positions the gradient by the image."""
    k = len(kernel)
    sizes = [size - k + 1 for size in image.shape[:2]]
    attention, gradients = np.zeros(sizes), np.zeros((*sizes, *image.shape))
    for i, j in np.ndindex(*sizes):
        patch = image[i : i + k, j : j + k]
        for c in range(kernel.shape[-1]):
            a = np.tanh((kernel[..., c] * patch).sum() + bias[c])
            attention[i, j] += a**2
            gradients[i, j, i : i + k, j : j + k] += 2 * a * (1 - a**2) * kernel[..., c]
    return attention, gradients


def attention_matching(teacher: Weights, student: Weights, x: np.ndarray, weight: float) -> float:
    """The mean over the batch, sample by sample."""
    values = []
    for image in x:
        attention_t, gradients_t = numpy_attention(*teacher, image)
        attention_s, gradients_s = numpy_attention(*student, image)
        p = np.unravel_index(attention_t.argmax(), attention_t.shape)
        activations = unit(attention_s) - unit(attention_t)
        jacobian = unit(gradients_s[p]) - unit(gradients_t[p])
        values.append((activations**2).sum() + weight * (jacobian**2).sum())
    return float(np.mean(values))


def test_attention_and_its_jacobian_are_those_by_hand() -> None:
    x = np.random.default_rng(1).standard_normal((4, 3, 4, 1))
    teacher, student = convolution(5), convolution(2)
    of_teacher, of_student = float64(teacher)[:2], float64(student)[:2]

    def value(weights: Weights) -> float:
        return attention_matching(of_teacher, weights, x, 0.3)

    loss = AttentionJacobianMatching("conv", "conv", jacobian_weight=0.3)
    received, moved = one_step(teacher, student, loss, x)
    assert received == pytest.approx(value(of_student), rel=1e-4)
    for one, expected in zip(moved, finite_differences(value, of_student), strict=False):
        np.testing.assert_allclose(one, expected, rtol=2e-3, atol=2e-5)


@settings(deadline=None, max_examples=6, derandomize=True)
@given(
    batch=st.integers(1, 4),
    shape=st.tuples(st.integers(2, 5), st.integers(3, 5), st.integers(1, 2)),
    kernel=st.integers(1, 2),
    widths=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    weight=st.sampled_from([0.3, 2.0]),
    seed=st.integers(0, 999),
)
def test_attention_of_every_shape_is_that_by_hand(
    batch: int, shape: Any, kernel: int, widths: tuple[int, int], weight: float, seed: int
) -> None:
    keras.utils.set_random_seed(seed)
    x = np.random.default_rng(seed).standard_normal((batch, *shape))
    teacher, student = (convolution(width, kernel, shape) for width in widths)
    of_teacher, of_student = float64(teacher)[:2], float64(student)[:2]

    def value(weights: Weights) -> float:
        return attention_matching(of_teacher, weights, x, weight)

    loss = AttentionJacobianMatching("conv", "conv", weight)
    received, moved = one_step(teacher, student, loss, x, eager=True)
    assert received == pytest.approx(value(of_student), rel=1e-3, abs=1e-6)
    for one, expected in zip(moved, finite_differences(value, of_student), strict=False):
        np.testing.assert_allclose(one, expected, rtol=2e-3, atol=1e-4)


def test_noise_matches_jacobians_to_second_order() -> None:
    """E‖z_s(x+ξ) − z_t(x+ξ)‖² = ‖z_s − z_t‖² + σ²‖J_s − J_t‖² + O(σ⁴)."""
    sigma, draws = 0.02, 20_000
    teacher, student = mlp(7), mlp(3)
    point = np.random.default_rng(2).standard_normal((1, 4))
    of_teacher, of_student = float64(teacher), float64(student)
    # Equal at x itself, so that all that remains is due to the noise.
    of_student[3] += (responses(of_teacher, point) - responses(of_student, point))[0]
    student.set_weights(of_student)
    gap = jacobians(of_student, point) - jacobians(of_teacher, point)
    expected = sigma**2 * (gap**2).sum()
    distiller = Distiller(teacher, student, NoisyInputMatching(sigma, seed=1), None, 0.0)
    distiller.compile(keras.optimizers.SGD(0.0))
    x = np.repeat(point, draws, axis=0)
    received = distiller.fit(x, batch_size=draws, epochs=2, verbose=0).history["loss"]
    # A sum of squares of Gaussians has a standard deviation of at most √2 times its mean.
    error = np.sqrt(2.0 / draws) * expected
    assert received[0] != received[1]
    for one in received:
        assert abs(one - expected) < 4 * error + 0.01 * expected


def test_noise_is_centred_for_softmax() -> None:
    x = np.random.default_rng(0).standard_normal((6, 4))
    teacher, student = mlp(7), mlp(3, "softmax")
    gap = responses(float64(student), x) - responses(float64(teacher), x)
    gap -= gap.mean(-1, keepdims=True)
    loss, _ = one_step(teacher, student, NoisyInputMatching(0.0), x)
    assert loss == pytest.approx((gap**2).sum(-1).mean(), rel=1e-4)


@settings(deadline=None, max_examples=6, derandomize=True)
@given(
    batch=st.integers(1, 4),
    size=st.integers(1, 4),
    widths=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    classes=st.integers(2, 4),
    endings=st.tuples(*[st.sampled_from([None, "softmax"])] * 2),
    seed=st.integers(0, 999),
)
def test_noisy_inputs_and_their_gradients_are_those_by_hand(
    batch: int, size: int, widths: tuple[int, int], classes: int, endings: Any, seed: int
) -> None:
    keras.utils.set_random_seed(seed)
    x = np.random.default_rng(seed).standard_normal((batch, size))
    teacher, student = (
        mlp(width, ending, size, classes) for width, ending in zip(widths, endings, strict=True)
    )
    of_teacher, of_student = float64(teacher), float64(student)
    # What another layer with the same seed makes of zeros is the noise.
    noise = NoisyInputMatching(0.7, seed).layers[0](np.zeros(x.shape)).numpy().astype("float64")
    assert (noise != 0).all()

    def value(weights: Weights) -> float:
        gap = responses(weights, x + noise) - responses(of_teacher, x + noise)
        if endings != (None, None):
            gap -= gap.mean(-1, keepdims=True)
        return float(np.mean([row @ row for row in gap]))

    loss, moved = one_step(teacher, student, NoisyInputMatching(0.7, seed), x, eager=True)
    assert loss == pytest.approx(value(of_student), rel=1e-3)
    for received, expected in zip(moved, finite_differences(value, of_student), strict=True):
        np.testing.assert_allclose(received, expected, rtol=2e-3, atol=1e-4)


@settings(deadline=None, max_examples=20)
@given(
    st.integers(1, 3),
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.floats(1e-3, 1e3),
    st.integers(0, 99),
)
def test_directions_alone_count(batch: int, sizes: list[int], scale: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((2, batch, *sizes)).astype("float32")
    values = np.asarray(direction_gap([a, a], [b, b]))
    assert values.shape == (batch,)
    assert (values >= 0).all()
    assert (values <= 4 + 1e-5).all()
    np.testing.assert_allclose(direction_gap([a, a], [scale * b] * 2), values, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(direction_gap(a, np.float32(scale) * a), 0.0, atol=1e-9)
    np.testing.assert_allclose(direction_gap(a, -a), 4.0, rtol=1e-5)
    np.testing.assert_allclose(direction_gap(a, 0 * b), 1.0, rtol=1e-5)


def test_no_gradient_is_no_nan() -> None:
    """A student that does not react, and one that is the teacher."""
    x = np.random.default_rng(0).standard_normal((5, 4))
    teacher, dead = mlp(7), mlp(3)
    dead.set_weights([0 * weight for weight in dead.get_weights()])
    twin = keras.models.clone_model(teacher)
    twin.set_weights(teacher.get_weights())
    for student, expected in [(dead, 1.0), (twin, 0.0)]:
        loss, moved = one_step(teacher, student, JacobianMatching(), x)
        assert loss == pytest.approx(expected, abs=1e-6)
        assert all(np.abs(one).max() < 1e-5 for one in moved)


def test_training_makes_the_jacobians_alike() -> None:
    x = np.random.default_rng(0).standard_normal((64, 4))
    teacher, student = mlp(7), mlp(5)
    distiller = Distiller(
        teacher, student, [KnowledgeDistillation(), JacobianMatching()], None, 0.0
    )
    distiller.compile(keras.optimizers.Adam(0.02))
    history = distiller.fit(x, epochs=40, batch_size=64, verbose=0).history["jacobian_matching"]
    assert history[-1] < 0.3 * history[0]


@pytest.mark.parametrize("dtype", ["float32", "mixed_float16"])
def test_images_of_two_sizes_with_batch_norm_and_pooling(dtype: str) -> None:
    def net(size: int, width: int) -> keras.Model:
        layers = [
            keras.layers.Conv2D(width, 3, padding="same", dtype=dtype, name="conv"),
            keras.layers.BatchNormalization(dtype=dtype),
            keras.layers.ReLU(dtype=dtype),
            keras.layers.MaxPooling2D(dtype=dtype, name="pool"),
            keras.layers.Flatten(),
            keras.layers.Dense(3),
        ]
        return keras.Sequential([keras.Input((size, size, 1)), *layers])

    losses = [JacobianMatching(), AttentionJacobianMatching("pool", "pool"), NoisyInputMatching()]
    distiller = Distiller(net(12, 4), net(8, 2), losses)
    distiller.compile(keras.optimizers.SGD(0.01), loss=CE)
    x = np.random.default_rng(0).standard_normal((8, 8, 8, 1))
    history = distiller.fit(x, np.arange(8) % 3, epochs=2, verbose=0).history
    assert np.isfinite(list(history.values())).all()
    assert all(np.isfinite(weight).all() for weight in distiller.student.get_weights())


def test_saved_in_the_middle_the_noise_goes_on(tmp_path: pathlib.Path) -> None:
    x = np.random.default_rng(0).standard_normal((16, 4))

    def start() -> Distiller:
        keras.utils.set_random_seed(4)
        losses = [NoisyInputMatching(0.5), JacobianMatching()]
        distiller = Distiller(mlp(7), mlp(3), losses, student_loss_weight=0.0)
        distiller.compile(keras.optimizers.Adam(0.05))
        return distiller

    fit = {"batch_size": 8, "shuffle": False, "verbose": 0}
    whole, part = start(), start()
    whole.fit(x, epochs=2, **fit)
    part.fit(x, **fit)
    part.save(tmp_path / "part.keras")
    loaded = keras.saving.load_model(tmp_path / "part.keras")
    loaded.fit(x, **fit)
    for a, b in zip(whole.student.get_weights(), loaded.student.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "loss",
    [
        JacobianMatching(True, False, "a"),
        AttentionJacobianMatching(["a"], [2], 0.5, "b"),
        NoisyInputMatching(0.5, 3, True, None, "c"),
    ],
)
def test_configuration_goes_round(loss: Any) -> None:
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert type(again) is type(loss)
    assert again.get_config() == loss.get_config()


def test_mistakes_are_told_in_one_line() -> None:
    inputs = keras.Input((4,))
    heads = [keras.layers.Dense(3)(inputs) for _ in range(2)]
    several = [keras.Model(inputs, heads), keras.Model(inputs, list(heads))]
    tokens = keras.Sequential(
        [keras.Input((5,), dtype="int32"), keras.layers.Embedding(9, 4), keras.layers.Flatten()]
    )
    tokens.add(keras.layers.Dense(3))
    more = keras.models.clone_model(tokens)

    def fit(loss: Any) -> None:
        distiller = Distiller(more, tokens, loss, student_loss_weight=0.0)
        distiller.compile("sgd")
        distiller.fit(np.ones((4, 5), "int32"), verbose=0)

    mistakes: list[tuple[Callable[[], object], str]] = [
        (lambda: Distiller(*several, JacobianMatching()), "one output"),
        (lambda: Distiller(mlp(2), mlp(3, "sigmoid"), JacobianMatching()), "sigmoid"),
        (lambda: AttentionJacobianMatching(jacobian_weight=-1.0), "≥ 0"),
        (lambda: NoisyInputMatching(float("nan")), "≥ 0"),
        (lambda: NoisyInputMatching(seed=0.5), "integer"),  # type: ignore[arg-type]
        (lambda: fit(NoisyInputMatching()), "quantities alone"),
        (lambda: fit(JacobianMatching()), "no gradient with respect to the inputs"),
    ]
    for mistake, words in mistakes:
        with pytest.raises(TfcompError, match=words) as caught:
            mistake()
        assert "\n" not in str(caught.value)
