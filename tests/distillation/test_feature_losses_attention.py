"""Attention transfer, by activations and by gradients, against the papers' formulas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfcomp.distillation import (
    AttentionTransfer,
    Distiller,
    GradientAttentionTransfer,
    mix_unlabelled,
)
from tfcomp.errors import TfcompError

Check = Callable[..., None]


def bilinear(plane: np.ndarray, sizes: tuple[int, int]) -> np.ndarray:
    """A plane resized with the centres of pixels at halves."""
    for axis in (0, 1):
        old, new = plane.shape[axis], sizes[axis]
        weights = np.zeros((new, old))
        for i in range(new):
            place = min(max((i + 0.5) * old / new - 0.5, 0), old - 1)
            low = int(place)
            weights[i, low] += 1 - (place - low)
            weights[i, min(low + 1, old - 1)] += place - low
        plane = np.moveaxis(np.tensordot(weights, plane, (1, axis)), 0, axis)
    return plane


def attention_oracle(
    p: float, mapping: str, variant: str, teachers: list[Any], students: list[Any]
) -> np.ndarray:
    values = np.zeros(len(students[0]))
    for teacher, student in zip(teachers, students, strict=True):
        sizes = tuple(min(teacher.shape[i], student.shape[i]) for i in (1, 2))
        for n in range(len(values)):
            units = []
            for maps in (student[n], teacher[n]):
                magnitude = np.abs(maps)
                plane = {
                    "sum": magnitude.sum(-1),
                    "sum_p": (magnitude**p).sum(-1),
                    "max_p": (magnitude**p).max(-1),
                }[mapping]
                q = bilinear(plane, sizes).ravel()
                units.append(q / np.sqrt((q**2).sum()))
            squares = (units[0] - units[1]) ** 2
            values[n] += squares.mean() if variant == "code" else 0.5 * np.sqrt(squares.sum())
    return values


size = st.integers(1, 4)


@settings(deadline=None, max_examples=15)
@given(
    shapes=st.lists(st.tuples(size, size, size, size), min_size=1, max_size=2),
    channels=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    mapping=st.sampled_from(["sum", "sum_p", "max_p"]),
    p=st.sampled_from([1.0, 2.0, 3.0]),
    variant=st.sampled_from(["paper", "code"]),
    seed=st.integers(0, 99),
)
def test_attention_agrees(
    assert_agrees: Check,
    shapes: list[tuple[int, ...]],
    channels: tuple[int, int],
    mapping: str,
    p: float,
    variant: str,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    p = 2.0 if mapping == "sum" else p
    teacher = [rng.normal(size=(2, h, w, channels[0])) for h, w, _, _ in shapes]
    student = [rng.normal(size=(2, h, w, channels[1])) for _, _, h, w in shapes]
    loss = AttentionTransfer(["t"] * len(shapes), ["s"] * len(shapes), p, mapping, variant)

    def oracle(teachers: Any, students: Any) -> np.ndarray:
        return attention_oracle(p, mapping, variant, teachers, students)

    if min(min(s[0], s[2]) * min(s[1], s[3]) for s in shapes) == 1:
        # A single position is always all of the attention, and the paper's root has a kink.
        values = loss.per_sample(
            [a.astype("float32") for a in teacher], [a.astype("float32") for a in student]
        )
        np.testing.assert_allclose(values, oracle(teacher, student), atol=1e-6)
    else:
        assert_agrees(loss, oracle, teacher, student)


@pytest.mark.parametrize("variant", ["paper", "code"])
@pytest.mark.parametrize("mapping", ["sum", "sum_p", "max_p"])
def test_attention_does_not_see_scale_and_is_zero_for_equal_maps(
    variant: str, mapping: str
) -> None:
    rng = np.random.default_rng(0)
    teacher, student = rng.normal(size=(2, 3, 4, 4, 5)).astype("float32")
    loss = AttentionTransfer("t", "s", mapping=mapping, variant=variant)
    plain = loss.per_sample([teacher], [student])
    assert np.all(plain > 0)
    # Squares of squares of these overflow, or vanish, in float32.
    for factor in (1e12, 1e-12, 3.0):
        scaled = loss.per_sample([teacher], [(factor * student).astype("float32")])
        np.testing.assert_allclose(scaled, plain, rtol=1e-4)
    np.testing.assert_allclose(loss.per_sample([teacher], [7 * teacher]), np.zeros(3), atol=1e-6)


@pytest.mark.parametrize("variant", ["paper", "code"])
@pytest.mark.parametrize("student", [0.0, 1.0])
def test_attention_has_finite_gradients_at_zero(variant: str, student: float) -> None:
    teacher = tf.ones((1, 2, 2, 3))
    maps = tf.fill((1, 2, 2, 3), student)
    loss = AttentionTransfer("t", "s", variant=variant)
    with tf.GradientTape() as tape:
        tape.watch(maps)
        value = loss.per_sample([teacher], [maps])
    assert np.isfinite(value).all()
    np.testing.assert_array_equal(tape.gradient(value, maps), np.zeros(maps.shape))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"p": 0.5}, "≥ 1"),
        ({"p": True}, "≥ 1"),
        ({"mapping": "mean"}, "must be 'sum'"),
        ({"variant": "book"}, "must be 'paper'"),
        ({"mapping": "sum", "p": 3}, "no power"),
    ],
)
def test_attention_refuses(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(TfcompError, match=said):
        AttentionTransfer("t", "s", **arguments)


def test_attention_refuses_vectors() -> None:
    with pytest.raises(TfcompError, match="maps of features"):
        AttentionTransfer("t", "s").validate_outputs([np.ones((2, 3))], [np.ones((2, 3))])


def net(width: int, ending: str | None = None, size: int = 4, classes: int = 3) -> keras.Model:
    layers = [keras.layers.Dense(width, "tanh"), keras.layers.Dense(classes, ending)]
    return keras.Sequential([keras.Input((size,)), *layers])


def input_gradient(weights: list[np.ndarray], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """∂CE/∂x of a tanh layer and a linear one, by the chain rule."""
    first, first_bias, second, second_bias = weights
    hidden = np.tanh(x @ first + first_bias)
    logits = hidden @ second + second_bias
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    p[np.arange(len(y)), y] -= 1
    return ((p @ second.T) * (1 - hidden**2)) @ first.T


def gradient_oracle(teacher: list[Any], student: list[Any], x: np.ndarray, y: np.ndarray) -> float:
    gap = input_gradient(student, x, y) - input_gradient(teacher, x, y)
    return float(np.mean([0.5 * np.sqrt((row**2).sum()) for row in gap]))


def check_gradient_attention(
    teacher: keras.Model, student: keras.Model, x: Any, y: Any, one_hot: bool, eager: bool = False
) -> None:
    """Holds the loss, and what descent at the rate 1 takes off each weight, against the oracle."""
    of_teacher, weights = (
        [w.astype("float64") for w in m.get_weights()] for m in (teacher, student)
    )
    gradients = [np.zeros_like(w) for w in weights]
    for weight, gradient in zip(weights, gradients, strict=True):
        for index in np.ndindex(weight.shape):
            kept = weight[index]
            sides = []
            for shift in (1e-5, -1e-5):
                weight[index] = kept + shift
                sides.append(gradient_oracle(of_teacher, weights, x, y))
            weight[index] = kept
            gradient[index] = (sides[0] - sides[1]) / 2e-5
    distiller = Distiller(teacher, student, GradientAttentionTransfer(), student_loss_weight=0.0)
    distiller.compile(keras.optimizers.SGD(1.0), run_eagerly=eager)
    labels = np.eye(student.output_shape[-1])[y] if one_hot else y
    history = distiller.fit(x, labels, batch_size=8, verbose=0).history
    assert history["loss"][0] == pytest.approx(gradient_oracle(of_teacher, weights, x, y), rel=1e-4)
    for before, gradient, after in zip(weights, gradients, student.get_weights(), strict=True):
        np.testing.assert_allclose(before - after, gradient, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("one_hot", [False, True])
def test_gradient_attention_agrees(one_hot: bool) -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(8, 4)), rng.integers(0, 3, 8)
    check_gradient_attention(net(6), net(3), x, y, one_hot)


@settings(deadline=None, max_examples=6, derandomize=True)
@given(
    batch=st.integers(1, 4),
    width=size,
    widths=st.tuples(size, size),
    classes=st.integers(2, 4),
    endings=st.tuples(*[st.sampled_from([None, "softmax"])] * 2),
    one_hot=st.booleans(),
    seed=st.integers(0, 99),
)
def test_gradient_attention_of_every_shape_agrees(
    batch: int,
    width: int,
    widths: tuple[int, int],
    classes: int,
    endings: Any,
    one_hot: bool,
    seed: int,
) -> None:
    keras.utils.set_random_seed(seed)
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(batch, width)), rng.integers(0, classes, batch)
    teacher, student = (
        net(units, ending, width, classes) for units, ending in zip(widths, endings, strict=True)
    )
    check_gradient_attention(teacher, student, x, y, one_hot, eager=True)


def test_gradient_attention_reads_endings_and_is_zero_for_one_model() -> None:
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(8, 4)), rng.integers(0, 3, 8)
    teacher, twin = net(5), net(5, "softmax")
    twin.set_weights(teacher.get_weights())
    distiller = Distiller(teacher, twin, GradientAttentionTransfer(), student_loss_weight=0.0)
    distiller.compile(keras.optimizers.SGD(0.1))
    assert distiller.fit(x, y, verbose=0).history["loss"][0] == pytest.approx(0, abs=1e-6)
    assert np.isfinite(np.concatenate([w.ravel() for w in twin.get_weights()])).all()
    with pytest.raises(TfcompError, match="ends in sigmoid"):
        Distiller(net(5, "sigmoid"), net(5), GradientAttentionTransfer())


def test_gradient_attention_passes_over_unlabelled_samples() -> None:
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(8, 4)), rng.integers(0, 3, 8)
    few = tf.data.Dataset.from_tensor_slices((x[:4], y[:4])).batch(4)
    many = tf.data.Dataset.from_tensor_slices(x[4:]).batch(4)
    distiller = Distiller(net(5), net(4), GradientAttentionTransfer())
    distiller.compile(
        keras.optimizers.SGD(0.0), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    alone = distiller.fit(few, verbose=0).history["distillation_loss"][0]
    mixed = distiller.fit(mix_unlabelled(few, many), verbose=0).history["distillation_loss"][0]
    assert mixed == pytest.approx(alone / 2, rel=1e-4)


def test_gradient_attention_refuses_data_without_labels() -> None:
    distiller = Distiller(net(5), net(4), GradientAttentionTransfer(), student_loss_weight=0.0)
    distiller.compile("sgd")
    with pytest.raises(TfcompError, match="received no labels"):
        distiller.fit(np.ones((4, 4)), verbose=0)
