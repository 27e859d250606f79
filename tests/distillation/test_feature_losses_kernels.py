"""Neuron selectivity and the flow of the solution procedure, against loops over channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfcomp.distillation import FlowOfSolutionProcedure, NeuronSelectivityTransfer
from tfcomp.errors import TfcompError

Check = Callable[..., None]
channels = st.integers(1, 3)


def selectivity_oracle(teachers: list[Any], students: list[Any]) -> np.ndarray:
    values = np.zeros(len(students[0]))
    for teacher, student in zip(teachers, students, strict=True):
        if teacher.shape[1] == 2 * student.shape[1]:  # There bilinear means the mean of four.
            n, h, w, c = teacher.shape
            teacher = teacher.reshape(n, h // 2, 2, w // 2, 2, c).mean((2, 4))
        for n in range(len(values)):
            sides = []
            for maps in (teacher[n], student[n]):
                vectors = [maps[..., c].ravel() for c in range(maps.shape[-1])]
                sides.append([v / np.sqrt((v**2).sum()) for v in vectors])

            def mean_kernel(left: list[Any], right: list[Any]) -> float:
                return float(np.mean([[(a @ b) ** 2 for b in right] for a in left]))

            t, s = sides
            values[n] += mean_kernel(t, t) + mean_kernel(s, s) - 2 * mean_kernel(s, t)
    return values


@settings(deadline=None, max_examples=10)
@given(
    counts=st.tuples(channels, channels),
    height=st.integers(1, 3),
    larger=st.sampled_from([1, 2]),
    layers=st.integers(1, 2),
    seed=st.integers(0, 99),
)
def test_selectivity_agrees(
    assert_agrees: Check,
    counts: tuple[int, int],
    height: int,
    larger: int,
    layers: int,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    sizes = (height, 2)
    teacher = [rng.normal(size=(2, *(larger * s for s in sizes), counts[0])) for _ in range(layers)]
    student = [rng.normal(size=(2, *sizes, counts[1])) for _ in range(layers)]
    loss = NeuronSelectivityTransfer(["t"] * layers, ["s"] * layers)
    assert_agrees(loss, selectivity_oracle, teacher, student)


def test_selectivity_promises() -> None:
    rng = np.random.default_rng(0)
    loss = NeuronSelectivityTransfer("t", "s")
    teacher, student = rng.normal(size=(2, 4, 3, 3, 6)).astype("float32")
    plain = loss.per_sample([teacher], [student])
    assert np.all(plain > 0)
    scales = rng.uniform(0.1, 1e3, 6).astype("float32")
    np.testing.assert_allclose(
        loss.per_sample([teacher], [(scales * student)[..., ::-1]]), plain, rtol=1e-4
    )
    equal = loss.per_sample([teacher], [teacher])
    assert np.all(equal >= 0)
    np.testing.assert_allclose(equal, np.zeros(4), atol=1e-6)
    dead = tf.concat([student[..., :2], np.zeros((4, 3, 3, 4), "float32")], axis=-1)
    with tf.GradientTape() as tape:
        tape.watch(dead)
        value = loss.per_sample([teacher], [dead])
    assert np.isfinite(value).all()
    assert np.isfinite(tape.gradient(value, dead)).all()


def flow_oracle(kernels: Any, teachers: list[Any], students: list[Any]) -> np.ndarray:
    """`kernels`: for each pair and each of its maps (matrix, bias) of a regressor, or None."""

    def pooled(maps: np.ndarray, sizes: tuple[int, ...]) -> np.ndarray:
        if maps.shape[:2] == sizes:
            return maps
        factors = [a // b for a, b in zip(maps.shape[:2], sizes, strict=True)]
        result = np.zeros((*sizes, maps.shape[-1]))
        for i in range(sizes[0]):
            for j in range(sizes[1]):
                rows = slice(i * factors[0], (i + 1) * factors[0])
                columns = slice(j * factors[1], (j + 1) * factors[1])
                result[i, j] = maps[rows, columns].max((0, 1))
        return result

    def flow(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        sizes = tuple(min(first.shape[i], second.shape[i]) for i in (0, 1))
        first, second = pooled(first, sizes), pooled(second, sizes)
        total = np.zeros((first.shape[-1], second.shape[-1]))
        for i in range(sizes[0]):
            for j in range(sizes[1]):
                total += np.outer(first[i, j], second[i, j])
        return total / (sizes[0] * sizes[1])

    values = np.zeros(len(students[0][0]))
    for teacher, student, pair in zip(teachers, students, kernels, strict=True):
        mapped = [
            maps if kernel is None else maps @ kernel[0] + kernel[1]
            for maps, kernel in zip(student, pair, strict=True)
        ]
        for n in range(len(values)):
            gap = flow(teacher[0][n], teacher[1][n]) - flow(mapped[0][n], mapped[1][n])
            values[n] += (gap**2).sum()
    return values


@settings(deadline=None, max_examples=10)
@given(
    of_teacher=st.tuples(channels, channels),
    of_student=st.tuples(channels, channels),
    factor=st.sampled_from([(1, 1), (2, 1), (1, 2)]),
    pairs=st.integers(1, 2),
    seed=st.integers(0, 99),
)
def test_flow_agrees(
    assert_agrees: Check,
    of_teacher: tuple[int, int],
    of_student: tuple[int, int],
    factor: tuple[int, int],
    pairs: int,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)

    def maps(counts: tuple[int, int], size: int) -> list[np.ndarray]:
        # The i-th map of a pair is the larger one where its factor is 2.
        return [
            rng.normal(size=(2, size * f, size * f, c)) for f, c in zip(factor, counts, strict=True)
        ]

    teacher = [maps(of_teacher, 3) for _ in range(pairs)]
    student = [maps(of_student, 2) for _ in range(pairs)]
    loss = FlowOfSolutionProcedure([["a", "b"]] * pairs, [["a", "b"]] * pairs)
    loss.validate_outputs(teacher, student)
    layers = iter(loss.layers)
    kernels: list[Any] = [
        [
            None if t == s else [np.asarray(w, "float64") for w in next(layers).get_weights()]
            for t, s in zip(of_teacher, of_student, strict=True)
        ]
        for _ in range(pairs)
    ]
    assert next(layers, None) is None

    def oracle(teachers: Any, students: Any) -> np.ndarray:
        return flow_oracle(kernels, teachers, students)

    assert_agrees(loss, oracle, teacher, student)


def test_flow_is_zero_for_equal_maps_and_covers_odd_sizes() -> None:
    rng = np.random.default_rng(0)
    first = rng.normal(size=(2, 8, 7, 3)).astype("float32")
    second = rng.normal(size=(2, 3, 3, 5)).astype("float32")
    loss = FlowOfSolutionProcedure([["a", "b"]], [["a", "b"]])
    loss.validate_outputs([[first, second]], [[first, second]])
    assert loss.layers == ()
    np.testing.assert_array_equal(loss.per_sample([[first, second]], [[first, second]]), [0, 0])
    # The last row and column count too.
    changed = first.copy()
    changed[:, -1, -1] += 100
    assert np.all(loss.per_sample([[first, second]], [[changed, second]]) > 0)


def test_flow_refuses() -> None:
    with pytest.raises(TfcompError, match="pairs of layers"):
        FlowOfSolutionProcedure(["a", "b"], ["a", "b"])
    loss = FlowOfSolutionProcedure([["a", "b"]], [["a", "b"]])
    crossed = [np.ones((1, 4, 2, 1)), np.ones((1, 2, 4, 1))]
    with pytest.raises(TfcompError, match="pools the larger map"):
        loss.validate_outputs([crossed], [crossed])


def test_flow_pairs_first_and_last_of_each_resolution() -> None:
    def net(width: int, depth: int) -> keras.Model:
        x = inputs = keras.Input((12, 12, 1))
        for stage in (1, 2):
            for index in range(depth):
                x = keras.layers.Conv2D(
                    width, 3, 2 if index == 0 else 1, padding="same", name=f"conv{stage}_{index}"
                )(x)
        x = keras.layers.GlobalAveragePooling2D()(x)
        return keras.Model(inputs, keras.layers.Dense(2)(x))

    loss = FlowOfSolutionProcedure()
    loss.resolve(net(8, 4), net(4, 2))
    assert loss.teacher_layer_name == [["conv1_0", "conv1_3"], ["conv2_0", "conv2_3"]]
    assert loss.student_layer_name == [["conv1_0", "conv1_1"], ["conv2_0", "conv2_1"]]
    with pytest.raises(TfcompError, match="No flow"):
        FlowOfSolutionProcedure().resolve(net(8, 4), net(4, 1))
