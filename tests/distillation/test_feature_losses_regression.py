"""Losses with a regressor: hints, activation boundaries, variational information."""

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
    ActivationBoundaries,
    FitNetsHint,
    VariationalInformationDistillation,
)
from tfcomp.errors import TfcompError

Check = Callable[..., None]
channels = st.integers(1, 3)
seeds = st.integers(0, 99)


def float64(weights: Any) -> list[np.ndarray]:
    return [np.asarray(weight, "float64") for weight in weights]


def valid_convolution(maps: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """(batch, height, width, channels) without padding, by loops."""
    rows, columns = kernel.shape[:2]
    sizes = maps.shape[1] - rows + 1, maps.shape[2] - columns + 1
    result = np.zeros((len(maps), *sizes, kernel.shape[-1]))
    for i in range(sizes[0]):
        for j in range(sizes[1]):
            window = maps[:, i : i + rows, j : j + columns]
            result[:, i, j] = np.tensordot(window, kernel, 3) + bias
    return result


@settings(deadline=None, max_examples=8)
@given(of_teacher=channels, of_student=channels, larger=st.integers(0, 1), seed=seeds)
def test_hint_agrees(
    assert_agrees: Check, of_teacher: int, of_student: int, larger: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    teacher = rng.normal(size=(2, 2, 3, of_teacher))
    student = rng.normal(size=(2, 2 + larger, 3 + larger, of_student))
    loss = FitNetsHint("t", "s")
    loss.validate_outputs(teacher, student)
    kernel, bias = float64(loss.layers[0].get_weights())

    def oracle(teachers: np.ndarray, students: np.ndarray) -> np.ndarray:
        gap = valid_convolution(students, kernel, bias) - teachers
        return np.array([0.5 * (one**2).sum() for one in gap])

    assert_agrees(loss, oracle, teacher, student)


def test_hint_is_zero_through_an_identity() -> None:
    maps = np.random.default_rng(0).normal(size=(2, 3, 3, 4)).astype("float32")
    loss = FitNetsHint("t", "s")
    loss.validate_outputs(maps, maps)
    loss.layers[0].set_weights([np.eye(4)[None, None], np.zeros(4)])
    np.testing.assert_allclose(loss.per_sample(maps, maps), [0, 0], atol=1e-10)


def boundary_oracle(
    connectors: list[Any], margin: float, variant: str, teachers: Any, students: Any
) -> np.ndarray:
    values = np.zeros(len(students[0]))
    for layer, (teacher, student) in enumerate(zip(teachers, students, strict=True)):
        if connectors[layer] is not None:
            kernel, bias, scale, shift = connectors[layer]
            mapped = student @ kernel.reshape(kernel.shape[-2:]) + bias
            axes = tuple(range(mapped.ndim - 1))
            mean, variance = mapped.mean(axes), mapped.var(axes)
            student = scale * (mapped - mean) / np.sqrt(variance + 1e-3) + shift
        weight = 3 / 1000 / 2 ** (len(teachers) - 1 - layer) if variant == "code" else 1
        for n in range(len(values)):
            for a_t, a_s in zip(teacher[n].ravel(), student[n].ravel(), strict=True):
                on, off = max(margin - a_s, 0), max(margin + a_s, 0)
                values[n] += weight * (on if a_t > 0 else off) ** 2
    return values


@settings(deadline=None, max_examples=12)
@given(
    counts=st.lists(st.tuples(channels, channels), min_size=1, max_size=3),
    sizes=st.sampled_from([(), (3,), (2, 3)]),
    margin=st.sampled_from([0.0, 0.5, 1.0]),
    variant=st.sampled_from(["paper", "code"]),
    seed=seeds,
)
def test_boundaries_agree(
    assert_agrees: Check,
    counts: list[tuple[int, int]],
    sizes: tuple[int, ...],
    margin: float,
    variant: str,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    teacher = [rng.normal(size=(3, *sizes, t)) for t, _ in counts]
    student = [rng.normal(size=(3, *sizes, s)) for _, s in counts]
    names = ["layer"] * len(counts)
    loss = ActivationBoundaries(names, names, margin, variant)
    loss.validate_outputs(teacher, student)
    layers = iter(loss.layers)
    connectors: list[Any] = [
        None if t == s else float64([*next(layers).get_weights(), *next(layers).get_weights()[:2]])
        for t, s in counts
    ]

    def oracle(teachers: Any, students: Any) -> np.ndarray:
        return boundary_oracle(connectors, margin, variant, teachers, students)

    assert_agrees(loss, oracle, teacher, student)


def test_boundaries_are_zero_beyond_the_margin_whatever_the_size() -> None:
    teacher = np.array([[0.1, -0.1, 5.0, 0.0]], "float32")
    student = np.array([[1.0, -1.0, 1.5, -9.0]], "float32")
    loss = ActivationBoundaries("t", "s")
    loss.validate_outputs([teacher], [student])
    np.testing.assert_array_equal(loss.per_sample([teacher], [student]), [0.0])
    assert np.all(loss.per_sample([teacher], [-student]) > 0)


def likelihood_oracle(weights: list[Any], teachers: Any, students: Any) -> np.ndarray:
    values = np.zeros(len(students[0]))
    for (*kernels, rho), teacher, student in zip(weights, teachers, students, strict=True):
        hidden = student
        for index, kernel in enumerate(kernels):
            hidden = hidden @ kernel
            if index < 2:
                hidden = np.maximum(hidden, 0)
        variance = np.log(1 + np.exp(rho)) + 1e-5
        value = 0.5 * ((hidden - teacher) ** 2 / variance + np.log(variance))
        values += np.array([one.mean() for one in value])
    return values


@settings(deadline=None, max_examples=10)
@given(
    counts=st.lists(st.tuples(channels, channels), min_size=1, max_size=2),
    sizes=st.sampled_from([(), (3,), (2, 3)]),
    variance=st.sampled_from([0.05, 1.0, 5.0, 200.0]),
    seed=seeds,
)
def test_information_agrees(
    assert_agrees: Check,
    counts: list[tuple[int, int]],
    sizes: tuple[int, ...],
    variance: float,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    teacher = [rng.normal(size=(2, *sizes, t)) for t, _ in counts]
    student = [rng.normal(size=(2, *sizes, s)) for _, s in counts]
    names = ["layer"] * len(counts)
    loss = VariationalInformationDistillation(names, names, variance)
    loss.validate_outputs(teacher, student)
    weights = [
        float64([*(dense.kernel for dense in layer.mean), layer.rho]) for layer in loss.layers
    ]
    for *_, rho in weights:
        np.testing.assert_allclose(np.log(1 + np.exp(rho)) + 1e-5, variance, rtol=1e-4)

    def oracle(teachers: Any, students: Any) -> np.ndarray:
        return likelihood_oracle(weights, teachers, students)

    assert_agrees(loss, oracle, teacher, student)


def test_information_trains_its_variances_and_may_be_negative() -> None:
    rng = np.random.default_rng(0)
    teacher = tf.constant(0.01 * rng.normal(size=(8, 2)).astype("float32"))
    student = tf.ones((8, 3))
    loss = VariationalInformationDistillation("t", "s", initial_variance=1.0)
    loss.validate_outputs([teacher], [student])
    variables = [v.value for v in loss.layers[0].trainable_variables]
    assert len(variables) == 4
    optimizer = keras.optimizers.Adam(0.1)
    for _ in range(60):
        with tf.GradientTape() as tape:
            value = tf.reduce_mean(loss.per_sample([teacher], [student]))
        gradients = tape.gradient(value, variables)
        optimizer.apply(gradients, loss.layers[0].trainable_variables)
    assert float(value) < -0.5


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ActivationBoundaries(variant="book"), "'paper' or 'code'"),
        (lambda: ActivationBoundaries(margin=-1.0), "≥ 0"),
        (lambda: ActivationBoundaries(margin="1"), "a number"),
        (lambda: VariationalInformationDistillation(initial_variance=0.0), "> 1e-5"),
        (lambda: VariationalInformationDistillation(initial_variance=True), "a number"),
    ],
)
def test_arguments_are_refused(make: Callable[[], Any], said: str) -> None:
    with pytest.raises(TfcompError, match=said):
        make()


def test_vectors_against_maps_are_refused() -> None:
    pair = [np.ones((2, 4, 4, 3))], [np.ones((2, 3))]
    with pytest.raises(TfcompError, match="No regressor"):
        ActivationBoundaries("t", "s").validate_outputs(*pair)
    with pytest.raises(TfcompError, match="compares maps"):
        VariationalInformationDistillation("t", "s").validate_outputs(*pair)
