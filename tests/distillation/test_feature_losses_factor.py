"""Factor transfer against loops, and its paraphraser: trained first, then frozen and saved."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfcomp.distillation import Distiller, FactorTransfer, KnowledgeDistillation, cache_teacher
from tfcomp.errors import TfcompError

Check = Callable[..., None]
Data = tuple[np.ndarray, np.ndarray]
channels = st.integers(1, 3)
CE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def factors(maps: np.ndarray, weights: list[np.ndarray]) -> np.ndarray:
    """Three convolutions over 3×3 positions, zeros around, each with LeakyReLU(0.1)."""
    for kernel, bias in zip(weights[::2], weights[1::2], strict=True):
        padded = np.pad(maps, ((0, 0), (1, 1), (1, 1), (0, 0)))
        result = np.zeros((*maps.shape[:3], kernel.shape[-1]))
        for i in range(maps.shape[1]):
            for j in range(maps.shape[2]):
                window = padded[:, i : i + 3, j : j + 3]
                result[:, i, j] = np.tensordot(window, kernel, 3) + bias
        maps = np.where(result > 0, result, 0.1 * result)
    return maps


@settings(deadline=None, max_examples=8)
@given(
    counts=st.tuples(st.integers(1, 4), channels),
    rate=st.sampled_from([0.3, 0.5, 1.0]),
    p=st.sampled_from([1, 2]),
    variant=st.sampled_from(["paper", "code"]),
    larger=st.sampled_from([1, 2]),
    seed=st.integers(0, 99),
)
def test_factors_agree(
    assert_agrees: Check,
    counts: tuple[int, int],
    rate: float,
    p: int,
    variant: str,
    larger: int,
    seed: int,
) -> None:
    keras.utils.set_random_seed(seed)
    rng = np.random.default_rng(seed)
    teacher = rng.normal(size=(2, 2 * larger, 2 * larger, counts[0]))
    student = rng.normal(size=(2, 2, 2, counts[1]))
    loss: Any = FactorTransfer("t", "s", rate, p, variant)
    loss.validate_outputs(teacher, student)
    translator, paraphraser = loss.layers
    paraphraser.fitted.assign(1.0)
    assert not paraphraser.trainable_weights
    assert translator.weights[-1].shape == (max(1, round(rate * counts[0])),)
    of_student = [np.asarray(w, "float64") for w in translator.get_weights()]
    of_teacher = [np.asarray(w, "float64") for w in paraphraser.encoder.get_weights()]

    def oracle(teachers: np.ndarray, students: np.ndarray) -> np.ndarray:
        t, s = factors(teachers, of_teacher), factors(students, of_student)
        if larger == 2:  # There bilinear means the mean of four.
            t = t.reshape(len(t), 2, 2, 2, 2, -1).mean((2, 4))
        values = []
        for one_t, one_s in zip(t, s, strict=True):
            gap = np.abs(one_s / np.sqrt((one_s**2).sum()) - one_t / np.sqrt((one_t**2).sum()))
            total = (gap**p).sum()
            values.append((gap**p).mean() if variant == "code" else total ** (1 / p))
        return np.array(values)

    assert_agrees(loss, oracle, teacher, student, rtol=5e-3)


def nets() -> tuple[keras.Model, keras.Model]:
    def net(width: int, depth: int) -> keras.Model:
        x = inputs = keras.Input((6, 6, 1))
        for index in range(depth):
            x = keras.layers.Conv2D(
                width, 3, padding="same", activation="relu", name=f"conv{index}"
            )(x)
        x = keras.layers.GlobalAveragePooling2D()(x)
        return keras.Model(inputs, keras.layers.Dense(3)(x))

    return net(8, 3), net(4, 2)


def test_an_unfitted_paraphraser_is_refused_and_a_fitted_one_stays_frozen(
    data: Data, tmp_path: pathlib.Path
) -> None:
    (x, y), (teacher, student) = data, nets()
    before = teacher.get_weights()
    loss: Any = FactorTransfer()
    with pytest.raises(TfcompError, match="Make the Distiller first"):
        loss.fit_paraphraser(teacher, x)
    assert loss.paraphraser is None
    distiller = Distiller(teacher, student, [loss, KnowledgeDistillation()])
    distiller.compile("adam", loss=CE)
    with pytest.raises(TfcompError, match=r"fit_paraphraser\(teacher, data\)"):
        distiller.fit(x, y, verbose=0)
    history = loss.fit_paraphraser(teacher, x, epochs=40, batch_size=16, verbose=0).history
    assert history["loss"][-1] < 0.7 * history["loss"][0]
    fitted = loss.paraphraser.get_weights()
    distiller.fit(x, y, epochs=2, verbose=0)
    for old, new in zip(
        [*before, *fitted], [*teacher.get_weights(), *loss.paraphraser.get_weights()], strict=True
    ):
        np.testing.assert_array_equal(old, new)
    distiller.save(tmp_path / "distiller.keras")
    loaded: Any = keras.saving.load_model(tmp_path / "distiller.keras")
    for old, new in zip(
        fitted, loaded.distillation_losses[0].paraphraser.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(old, new)
    loaded.fit(x, y, verbose=0)
    # Its configuration alone is not a trained paraphraser.
    again = Distiller(teacher, nets()[1], FactorTransfer.from_config(loss.get_config()))
    again.compile("sgd", loss=CE)
    with pytest.raises(TfcompError, match="random weights"):
        again.fit(x, y, verbose=0)


def test_paraphraser_is_fitted_on_datasets_and_on_cached_layers(data: Data) -> None:
    (x, y), (teacher, student) = data, nets()
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    cached = cache_teacher(dataset, teacher, layers=["conv2"])
    histories, weights = [], []
    for source in (dataset, cached):
        keras.utils.set_random_seed(3)
        loss: Any = FactorTransfer(-3, "conv1")
        histories.append(loss.fit_paraphraser(teacher, source, epochs=2, verbose=0).history["loss"])
        weights.append(loss.paraphraser.get_weights())
    assert histories[0] == pytest.approx(histories[1], rel=1e-5)
    np.testing.assert_allclose(weights[0][0], weights[1][0], atol=1e-6)
    distiller = Distiller(teacher, student, loss)
    distiller.compile("sgd", loss=CE)
    distiller.fit(cached, verbose=0)


def test_paraphraser_of_another_teacher_is_refused(data: Data) -> None:
    teacher, student = nets()
    loss = FactorTransfer("conv1", "conv1")
    loss.fit_paraphraser(student, data[0], epochs=1, verbose=0)
    with pytest.raises(TfcompError, match="paraphraser for other features"):
        Distiller(teacher, student, loss)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"rate": 0}, "above 0"),
        ({"p": 3}, "1 or 2"),
        ({"variant": "book"}, "'paper' or 'code'"),
        ({"paraphraser_epochs": 0}, "an int above 0"),
        ({"paraphraser_epochs": True}, "an int above 0"),
    ],
)
def test_arguments_are_refused(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(TfcompError, match=said):
        FactorTransfer("t", "s", **arguments)
