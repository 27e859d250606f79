"""Contrastive representation distillation, its memory, and the indices that it needs."""

from __future__ import annotations

import json
import math
import pathlib
import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfcomp.distillation import (
    ContrastiveRepresentationDistillation,
    DistillationInputs,
    Distiller,
    KnowledgeDistillation,
    RelationalKD,
    cache_teacher,
    with_indices,
)
from tfcomp.distillation.losses.contrastive import _Others
from tfcomp.distillation.losses.step import Step
from tfcomp.errors import TfcompError

Data = tuple[np.ndarray, np.ndarray]
WIDTHS = 5, 3  # of teacher and student


def made(widths: tuple[int, int] = WIDTHS, **options: Any) -> ContrastiveRepresentationDistillation:
    """A loss that is built for features of these widths, with random banks."""
    options = {"samples": 12, "negatives": 6, "dimensions": 4, "seed": 3, **options}
    loss = ContrastiveRepresentationDistillation(**options)
    loss.build(*[(None, width) for width in widths])
    return loss


def weights(loss: ContrastiveRepresentationDistillation) -> dict[str, np.ndarray]:
    memory = loss.layers[0]
    return {
        weight.path.removeprefix(f"{memory.name}/"): weight.numpy().astype("float64")
        for weight in memory.weights
    }


def batch(
    seed: int, index: list[int], widths: tuple[int, int] = WIDTHS
) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    teacher, student = (rng.standard_normal((len(index), width)) for width in widths)
    return teacher, student


def ask(loss: ContrastiveRepresentationDistillation, features: Any, index: list[int]) -> np.ndarray:
    teacher, student = (tf.cast(one, "float32") for one in features)
    step = Step(inputs=None, index=tf.constant(index, tf.int64))
    return loss.per_sample(teacher, student, step)


class Oracle:
    """The loss and its memory as loops; draws are made by a generator with the same seed."""

    def __init__(self, loss: ContrastiveRepresentationDistillation) -> None:
        self.loss = loss
        self.negatives = loss.negatives or loss.samples
        start = weights(loss)
        self.kernels = start["teacher_head/kernel"], start["student_head/kernel"]
        self.biases = start["teacher_head/bias"], start["student_head/bias"]
        self.banks = [start["teacher_bank"].copy(), start["student_bank"].copy()]
        self.z: list[float] | None = [1.0, 1.0] if loss.variant == "paper" else None
        self.draws = 0

    def draw(self, index: list[int]) -> list[list[int]]:
        shape = len(index), self.negatives
        seed = self.loss.seed, self.draws
        draws = tf.random.stateless_uniform(shape, seed, maxval=2**31 - 1, dtype="int32").numpy()
        self.draws += 1
        chosen = []
        for own, row in zip(index, draws, strict=True):
            pool = list(range(self.loss.samples))
            if self.loss.labels is not None:
                pool.sort(key=lambda i: self.loss.labels[i])
                pool = [i for i in pool if self.loss.labels[i] != self.loss.labels[own]]
            chosen.append([pool[value % len(pool)] for value in row])
        return chosen

    def vectors(self, features: Any) -> list[list[np.ndarray]]:
        sides = []
        for one, kernel, bias in zip(features, self.kernels, self.biases, strict=True):
            led = [row @ kernel + bias for row in one]
            sides.append([v / math.sqrt(sum(v**2)) for v in led])
        return sides

    def values(self, features: Any, index: list[int], chosen: list[list[int]]) -> list[float]:
        """Values per sample; sets Z if it is not."""
        exponentials = []
        for side, vectors in enumerate(self.vectors(features)):
            bank = self.banks[1 - side]
            exponentials.append(
                [
                    [math.exp(bank[i] @ v / self.loss.temperature) for i in [own, *others]]
                    for v, own, others in zip(vectors, index, chosen, strict=True)
                ]
            )
        if self.z is None:
            self.z = [self.loss.samples * float(np.mean(side)) for side in exponentials]
        noise = self.negatives / self.loss.samples
        totals = [0.0] * len(index)
        for side, z in zip(exponentials, self.z, strict=True):
            for n, (own, *others) in enumerate(side):
                totals[n] -= math.log((own / z) / (own / z + noise))
                totals[n] -= sum(math.log(noise / (other / z + noise)) for other in others)
        return totals

    def remember(self, features: Any, index: list[int]) -> None:
        for bank, vectors in zip(self.banks, self.vectors(features), strict=True):
            for i, vector in zip(index, vectors, strict=True):
                mixed = self.loss.momentum * bank[i] + (1 - self.loss.momentum) * vector
                bank[i] = mixed / math.sqrt(sum(mixed**2))


OPTIONS: dict[str, dict[str, Any]] = {
    "instances": {},
    "classes": {"labels": [0, 1, 2, 1] * 3, "momentum": 0.9},
    "of the paper": {"variant": "paper", "temperature": 0.1},
    "few of many": {"samples": 200, "negatives": 2, "temperature": 0.5},
    "few of other classes": {"samples": 200, "negatives": 2, "labels": [7, -1] * 100},
    "all": {"negatives": None, "momentum": 0.0},
}
EVERY = pytest.mark.parametrize("case", list(OPTIONS))


@EVERY
def test_values_and_memory_are_the_papers(case: str) -> None:
    loss = made(**OPTIONS[case])
    oracle = Oracle(loss)
    for seed, index in enumerate([[0, 11, 5], [5, 1, 2], [3, 5, 0, 8]]):
        features = batch(seed, index)
        expected = oracle.values(features, index, oracle.draw(index))
        np.testing.assert_allclose(ask(loss, features, index), expected, rtol=2e-4, atol=1e-5)
        assert min(expected) > 0
        oracle.remember(features, index)
        now = weights(loss)
        np.testing.assert_allclose(now["teacher_bank"], oracle.banks[0], atol=1e-5)
        np.testing.assert_allclose(now["student_bank"], oracle.banks[1], atol=1e-5)
        np.testing.assert_allclose(np.exp(now["log_normalisers"]), oracle.z, rtol=1e-4)


@EVERY
@settings(deadline=None, max_examples=3)
@given(seed=st.integers(0, 999))
def test_gradients_are_those_of_finite_differences(case: str, seed: int) -> None:
    loss = made(**OPTIONS[case])
    oracle = Oracle(loss)
    index = [4, 0, 9]
    ask(loss, batch(seed, index), index)
    oracle.values(batch(seed, index), index, oracle.draw(index))  # which sets Z
    oracle.remember(batch(seed, index), index)
    teacher, student = batch(seed + 1, index)
    chosen = oracle.draw(index)
    heads = loss.layers[0].heads
    variables = [tf.Variable(student, dtype="float32"), heads[0].kernel, heads[1].bias]
    with tf.GradientTape() as tape:
        tape.watch([variable.value for variable in variables[1:]])
        value = tf.reduce_sum(ask(loss, (teacher, variables[0]), index))
    gradients = tape.gradient(value, [variables[0], *(v.value for v in variables[1:])])
    places = [student, oracle.kernels[0], oracle.biases[1]]
    rng = np.random.default_rng(seed)
    for gradient, place in zip(gradients, places, strict=True):
        direction, step = rng.standard_normal(place.shape), 1e-6
        sums = []
        for sign in (1, -2):
            place += sign * step * direction
            sums.append(sum(oracle.values((teacher, student), index, chosen)))
        place += step * direction
        found, size = (
            (gradient.numpy() * direction).sum(),
            np.abs(gradient.numpy() * direction).sum(),
        )
        expected = (sums[0] - sums[1]) / (2 * step)
        assert found == pytest.approx(expected, rel=2e-3, abs=1e-3 * size)


def differences(value: Callable[[], float], place: np.ndarray) -> np.ndarray:
    """d(value)/d(place), entry by entry."""
    gradient = np.zeros_like(place)
    for entry in np.ndindex(place.shape):
        kept, sides = place[entry], []
        for shift in (1e-6, -1e-6):
            place[entry] = kept + shift
            sides.append(value())
        place[entry] = kept
        gradient[entry] = (sides[0] - sides[1]) / 2e-6
    return gradient


@settings(deadline=None, max_examples=6, derandomize=True)
@given(
    widths=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    dimensions=st.integers(1, 4),
    samples=st.integers(4, 9),
    negatives=st.sampled_from([1, 3, None]),
    classes=st.booleans(),
    variant=st.sampled_from(["code", "paper"]),
    temperature=st.sampled_from([0.2, 1.0]),
    counts=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    seed=st.integers(0, 999),
)
def test_value_and_whole_gradient_agree_for_every_shape(
    widths: tuple[int, int],
    dimensions: int,
    samples: int,
    negatives: int | None,
    classes: bool,
    variant: Any,
    temperature: float,
    counts: tuple[int, int],
    seed: int,
) -> None:
    keras.utils.set_random_seed(seed)
    loss = made(
        widths,
        samples=samples,
        negatives=negatives,
        labels=np.arange(samples) % 3 if classes else None,
        dimensions=dimensions,
        variant=variant,
        temperature=temperature,
        seed=seed,
    )
    oracle, rng = Oracle(loss), np.random.default_rng(seed)
    first, index = (rng.permutation(samples)[:count].tolist() for count in counts)
    # The first batch sets Z, which is then a constant.
    features = batch(seed, first, widths)
    expected = oracle.values(features, first, oracle.draw(first))
    np.testing.assert_allclose(ask(loss, features, first), expected, rtol=1e-3, atol=1e-4)
    oracle.remember(features, first)
    teacher, student = batch(seed + 1, index, widths)
    chosen = oracle.draw(index)

    def values_of_oracle() -> list[float]:
        return oracle.values((teacher, student), index, chosen)

    variable = tf.Variable(student, dtype="float32")
    trained = [weight.value for head in loss.layers[0].heads for weight in head.weights]
    with tf.GradientTape() as tape:
        tape.watch(trained)
        values = ask(loss, (teacher, variable), index)
    np.testing.assert_allclose(values, values_of_oracle(), rtol=1e-3, atol=1e-4)
    pairs = zip(oracle.kernels, oracle.biases, strict=True)
    places = [student, *(place for pair in pairs for place in pair)]
    for received, place in zip(tape.gradient(values, [variable, *trained]), places, strict=True):
        of_oracle = differences(lambda: sum(values_of_oracle()), place)
        largest = np.abs(of_oracle).max()
        np.testing.assert_allclose(received, of_oracle, rtol=5e-3, atol=1e-3 * largest + 1e-4)


@settings(deadline=None, max_examples=20)
@given(labels=st.lists(st.integers(-2, 3), min_size=2, max_size=12), seed=st.integers(0, 99))
def test_draws_of_other_classes_reach_each_of_them_alike(labels: list[int], seed: int) -> None:
    if len(set(labels)) < 2:
        labels[0] = labels[0] + 1
    others = _Others(np.array(labels))
    for own, label in enumerate(labels):
        expected = [i for i, other in enumerate(labels) if other != label]
        first = seed * len(expected)
        draws = np.arange(first, first + 2 * len(expected), dtype="int32")[None]
        found = np.asarray(others.pick(np.array([own], "int32"), draws))[0]
        assert sorted(found) == sorted(expected * 2)


def test_draws_differ_from_step_to_step_and_follow_the_seed() -> None:
    index = [0, 1]
    features = batch(0, index)

    def values(loss: ContrastiveRepresentationDistillation) -> list[float]:
        # The banks stay as they are, so that only the draws change.
        memory = loss.layers[0]
        banks = [bank.numpy() for bank in memory.banks]
        found = []
        for _ in range(3):
            found.append(float(ask(loss, features, index)[0]))
            for bank, value in zip(memory.banks, banks, strict=True):
                bank.assign(value)
        return found

    keras.utils.set_random_seed(1)
    one = values(made(variant="paper"))
    keras.utils.set_random_seed(1)
    assert values(made(variant="paper")) == one
    assert len(set(one)) == 3
    keras.utils.set_random_seed(1)
    unseeded = values(made(variant="paper", seed=None))
    assert unseeded != one
    keras.utils.set_random_seed(1)
    assert values(made(variant="paper", seed=None)) == unseeded


def test_features_of_nothing_give_no_nan() -> None:
    for options in OPTIONS.values():
        loss = made(**options)
        variable = tf.Variable(tf.zeros((2, WIDTHS[1])))
        for _ in range(2):
            with tf.GradientTape() as tape:
                value = tf.reduce_sum(ask(loss, (np.zeros((2, WIDTHS[0])), variable), [0, 1]))
            assert np.isfinite(float(value))
            assert np.isfinite(tape.gradient(value, variable).numpy()).all()


def test_sharp_temperatures_do_not_overflow() -> None:
    loss = made(temperature=0.005)
    for seed in range(3):
        values = ask(loss, batch(seed, [0, 1]), [0, 1])
        assert np.isfinite(values).all()


def test_configuration_round_trip() -> None:
    for loss in [
        made(),
        made(labels=np.arange(12), negatives=None, teacher_layer="a", student_layer=-2, name="crd"),
    ]:
        config = json.loads(json.dumps(keras.saving.serialize_keras_object(loss)))
        again = keras.saving.deserialize_keras_object(config)
        assert again.get_config() == loss.get_config()
    assert len(loss.layers[0].trainable_variables) == 4
    # Two banks, the normalisers, and the state of the draws.
    assert len(loss.layers[0].non_trainable_variables) == 4


@pytest.mark.parametrize(
    "options, words",
    [
        ({"samples": 1}, "`samples` must be an integer from 2"),
        ({"samples": 12.0}, "`samples`"),
        ({"negatives": 13}, "`negatives` must be an integer from 1 to 12. Received: 13"),
        ({"negatives": 0}, "`negatives`"),
        ({"dimensions": 0}, "`dimensions`"),
        ({"temperature": 0.0}, "`temperature`"),
        ({"momentum": 1.0}, "`momentum`"),
        ({"variant": "other"}, "`variant` must be 'code' or 'paper'"),
        ({"labels": [0, 1]}, r"of shape \(12,\)"),
        ({"labels": np.zeros(12)}, "expected integers"),
        ({"labels": [3] * 12}, "two classes"),
    ],
)
def test_bad_arguments_are_told_in_one_line(options: dict[str, Any], words: str) -> None:
    with pytest.raises(TfcompError, match=words) as caught:
        made(**options)
    assert "\n" not in str(caught.value)


def test_indices_are_asked_for_and_checked() -> None:
    loss = made()
    features = batch(0, [0, 1])
    for step in [None, Step(inputs=None)]:
        with pytest.raises(TfcompError, match=r"with_indices\(dataset\)") as caught:
            loss.per_sample(*features, step)
        assert "\n" not in str(caught.value)
    before = weights(loss)
    for index in ([0, 12], [-1, 3]):
        with pytest.raises(tf.errors.InvalidArgumentError, match="expected 0 to 11"):
            ask(loss, features, index)
        with pytest.raises(tf.errors.InvalidArgumentError, match="expected 0 to 11"):
            tf.function(ask)(loss, features, index)
    now = weights(loss)
    assert all(np.array_equal(before[name], now[name]) for name in ("teacher_bank", "student_bank"))


def indexed(data: Data) -> tf.data.Dataset:
    return with_indices(tf.data.Dataset.from_tensor_slices(data)).shuffle(16, 1, False).batch(4)


def distilling(make_net: Callable[..., keras.Model], data: Data, **options: Any) -> Distiller:
    loss = ContrastiveRepresentationDistillation(16, 8, labels=data[1], dimensions=6, **options)
    losses = [loss, KnowledgeDistillation()]
    distiller = Distiller(make_net(8), make_net(3), losses, [0.1, 1.0], 0.3)
    crossentropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    distiller.compile(keras.optimizers.Adam(0.01), loss=crossentropy, metrics=["accuracy"])
    return distiller


def same(one: Distiller, other: Distiller) -> bool:
    pairs = list(zip(one.weights, other.weights, strict=True))
    assert len(pairs) > 12
    return all(np.array_equal(a.numpy(), b.numpy()) for a, b in pairs)


def test_training_goes_on_from_a_file_to_the_same_weights(
    make_net: Callable[..., keras.Model], data: Data, tmp_path: pathlib.Path
) -> None:
    through = distilling(make_net, data)
    loss = through.distillation_losses[0]
    assert (loss.teacher_layer_name, loss.student_layer_name) == ("pool", "pool")
    banks = loss.layers[0].banks
    start = [bank.numpy() for bank in banks]
    history = through.fit(indexed(data), epochs=2, verbose=0).history
    assert np.isfinite(history["contrastive_representation_distillation"]).all()
    assert all(
        (bank.numpy() != old).any(axis=1).all() for bank, old in zip(banks, start, strict=True)
    )
    through.save(tmp_path / "half.keras")
    again = keras.models.load_model(tmp_path / "half.keras")
    assert same(again, through)
    assert again.distillation_losses[0].layers[0].banks[0].shape == (16, 6)
    for distiller in (through, again):
        distiller.fit(indexed(data), epochs=2, verbose=0)
    assert same(again, through)
    assert all((bank.numpy() != old).any() for bank, old in zip(banks, start, strict=True))


class _Stop(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if epoch == 2:
            raise KeyboardInterrupt


@pytest.mark.long
def test_an_interrupted_fit_goes_on_to_the_same_weights(
    make_net: Callable[..., keras.Model], data: Data, tmp_path: pathlib.Path
) -> None:
    def start() -> Distiller:
        keras.utils.set_random_seed(5)
        return distilling(make_net, data)

    through, stopped, resumed = start(), start(), start()
    through.fit(indexed(data), epochs=4, verbose=0)
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    with pytest.raises(KeyboardInterrupt):
        stopped.fit(indexed(data), epochs=4, verbose=0, callbacks=[backup, _Stop()])
    resumed.fit(indexed(data), epochs=4, verbose=0, callbacks=[backup])
    assert same(resumed, through)


def test_data_without_indices_and_too_many_samples_are_refused(
    make_net: Callable[..., keras.Model], data: Data
) -> None:
    with pytest.raises(TfcompError, match="with_indices") as caught:
        distilling(make_net, data).fit(*data, verbose=0)
    assert "\n" not in str(caught.value)
    twice = tuple(np.concatenate([part, part]) for part in data)
    for eager in (False, True):
        distiller = distilling(make_net, data)
        distiller.run_eagerly = eager
        with pytest.raises(TfcompError, match="expected 0 to 15") as caught:
            distiller.fit(indexed(twice), verbose=0)
        assert str(caught.value).endswith("given to with_indices.")
        assert "\n" not in str(caught.value)
    # What else TensorFlow refuses it says itself.
    wrong = data[0], np.full(16, 9)
    with pytest.raises(tf.errors.InvalidArgumentError, match="label"):
        distilling(make_net, data).fit(indexed(wrong), verbose=0)


def test_sample_weights_count_and_half_precision_trains(
    make_net: Callable[..., keras.Model], data: Data
) -> None:
    weighted = with_indices(
        tf.data.Dataset.from_tensor_slices((*data, np.zeros(16, "float32"))).batch(4)
    )
    distiller = distilling(make_net, data)
    assert distiller.fit(weighted, verbose=0).history["distillation_loss"] == [0.0]
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        distiller = distilling(make_net, data)
        logs = distiller.fit(indexed(data), verbose=0).history
    finally:
        keras.config.set_dtype_policy(policy)
    assert {bank.dtype for bank in distiller.distillation_losses[0].layers[0].banks} == {"float32"}
    assert np.isfinite(logs["loss"]).all()


def test_it_learns_to_tell_samples_apart(make_net: Callable[..., keras.Model], data: Data) -> None:
    loss = ContrastiveRepresentationDistillation(16, 8, labels=data[1])
    distiller = Distiller(make_net(8), make_net(3), loss, student_loss_weight=0.0)
    distiller.compile(keras.optimizers.Adam(0.02))
    history = distiller.fit(indexed(data), epochs=30, verbose=0).history["distillation_loss"]
    assert np.mean(history[-6:]) < 0.85 * np.mean(history[:8])


@pytest.mark.parametrize("size", [1, 3, 8, 20])
def test_indices_count_from_the_start_of_every_pass(size: int, data: Data) -> None:
    slices = tf.data.Dataset.from_tensor_slices(data)
    for indices in [
        with_indices(slices.batch(size)),
        with_indices(slices).batch(size),
        with_indices(slices.batch(size, drop_remainder=True), batched=True),
    ]:
        for _ in range(2):
            found = []
            for inputs, labels in indices:
                assert isinstance(inputs, DistillationInputs)
                assert inputs.index.dtype == tf.int64
                np.testing.assert_array_equal(inputs.inputs, data[0][inputs.index])
                np.testing.assert_array_equal(labels, data[1][inputs.index])
                found += inputs.index.numpy().tolist()
            assert found == list(range(len(found)))
            assert len(found) in (16, 16 // size * size)
    assert with_indices(slices).cardinality() == 16
    shuffled = with_indices(slices).shuffle(16).repeat(2).batch(size)
    assert sorted(i for x, _ in shuffled for i in x.index.numpy()) == sorted([*range(16)] * 2)


def test_indices_stand_beside_what_the_teacher_said(
    make_net: Callable[..., keras.Model], data: Data
) -> None:
    teacher, slices = make_net(8), tf.data.Dataset.from_tensor_slices(data)
    expected = teacher.predict(data[0], verbose=0)
    for dataset in [
        with_indices(cache_teacher(slices.batch(5), teacher)),
        cache_teacher(with_indices(slices.batch(5)), teacher),
        with_indices(cache_teacher(slices, teacher)).batch(5),
        cache_teacher(with_indices(slices), teacher).batch(5),
    ]:
        for inputs, _ in dataset:
            rows = inputs.index.numpy()
            np.testing.assert_array_equal(inputs.inputs, data[0][rows])
            np.testing.assert_allclose(inputs.teacher_outputs, expected[rows], atol=1e-5)
    loss = ContrastiveRepresentationDistillation(16, 8, dimensions=4)
    distiller = Distiller(teacher, make_net(3), [loss, RelationalKD()], student_loss_weight=0.0)
    distiller.compile("adam")
    cached = cache_teacher(with_indices(slices.batch(5)), teacher, layers=["pool"])
    assert np.isfinite(distiller.fit(cached, verbose=0).history["loss"]).all()


def test_inputs_of_every_form_get_indices() -> None:
    one, two = np.zeros((4, 2)), np.zeros((4, 3))
    slices = tf.data.Dataset.from_tensor_slices
    alone = list(with_indices(slices(one).batch(3)))
    assert [len(element) for element in alone] == [1, 1]
    assert alone[1][0].index.numpy().tolist() == [3]
    for inputs in ({"a": one, "b": two}, (one, two)):
        element = next(iter(with_indices(slices((inputs, one, one[:, 0])).batch(2))))
        assert len(element) == 3
        tf.nest.assert_same_structure(element[0].inputs, inputs)
        assert element[0].index.numpy().tolist() == [0, 1]


def test_datasets_that_cannot_be_counted_are_refused() -> None:
    slices = tf.data.Dataset.from_tensor_slices
    plain = slices((np.zeros((4, 2)), np.zeros(4)))
    for dataset, words in [
        (np.zeros(3), "Expected a tf.data.Dataset"),
        (plain.repeat(), "Expected a finite dataset"),
        (with_indices(plain), "Call this once"),
        (slices(np.zeros((4, 2))), "Pass batched=True or batched=False"),
        (plain.batch(2, drop_remainder=True), "Pass batched=True"),
    ]:
        with pytest.raises(TfcompError, match=words) as caught:
            with_indices(dataset)
        assert "\n" not in str(caught.value)
    rows = with_indices(slices(np.zeros((4, 2))), batched=False)
    assert [int(element[0].index) for element in rows] == [0, 1, 2, 3]


SCRIPT = """
    import keras, numpy as np, tensorflow as tf
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
    )
    from tfcomp.distillation import (
        ContrastiveRepresentationDistillation, Distiller, RelationalKD, SimilarityPreserving,
        with_indices,
    )

    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((22, 6)).astype("float32"), rng.integers(0, 3, 22)

    def net(width):
        layers = [keras.layers.Dense(width, "tanh"), keras.layers.Dense(3)]
        return keras.Sequential([keras.Input((6,)), *layers])

    def train(strategy, momentum, rate, negatives=7):
        keras.utils.set_random_seed(1)
        with strategy.scope():
            loss = ContrastiveRepresentationDistillation(
                22, negatives, dimensions=4, momentum=momentum, temperature=0.5, seed=2
            )
            distiller = Distiller(net(8), net(4), loss, student_loss_weight=0.0)
            distiller.compile(keras.optimizers.SGD(rate))
        data = with_indices(tf.data.Dataset.from_tensor_slices((x, y))).batch(8)
        logs = distiller.fit(data, epochs=2, verbose=0).history
        return loss.layers[0], logs

    mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    # Without learning the draws have no say in the banks: those of one device are expected.
    one, _ = train(tf.distribute.get_strategy(), 0.5, 0.0)
    two, _ = train(mirrored, 0.5, 0.0)
    for a, b in zip(one.banks, two.banks):
        copies = [copy.numpy() for copy in mirrored.experimental_local_results(b.value)]
        assert len(copies) == 2
        for copy in copies:
            assert np.abs(a.numpy() - copy).max() < 1e-6
            assert np.abs(np.linalg.norm(copy, axis=1) - 1).max() < 1e-5
    # While it learns the replicas stay alike.
    two, logs = train(mirrored, 0.5, 0.1)
    assert np.isfinite(logs["loss"]).all()
    for weight in [*two.weights]:
        copies = [c.numpy() for c in mirrored.experimental_local_results(weight.value)]
        assert all(np.array_equal(copies[0], copy) for copy in copies), weight.path

    # One device that draws for each half of a batch what a replica draws for it learns the same.
    def for_both_halves(memory, index):
        half, seed = tf.shape(index)[0] // 2, tf.convert_to_tensor(memory.random)
        seeds = [tf.random.experimental.stateless_fold_in(seed, replica) for replica in (0, 1)]
        memory.random.assign_add([0, 1])
        shape = half, memory.negatives
        draws = [
            tf.random.stateless_uniform(shape, one, maxval=2**31 - 1, dtype="int32")
            for one in seeds
        ]
        return tf.concat(draws, 0) % memory.samples

    def gap(one):
        return max(np.abs(a.numpy() - b.numpy()).max() for a, b in zip(one.weights, two.weights))

    assert gap(train(tf.distribute.get_strategy(), 0.5, 0.1)[0]) > 1e-4
    kind, own = type(two), type(two)._draw
    kind._draw = for_both_halves
    assert gap(train(tf.distribute.get_strategy(), 0.5, 0.1)[0]) < 1e-5
    kind._draw = own

    # Negatives are a replica's own, but what is drawn next is the same on all.
    index = tf.constant([3, 4, 5])
    drawn = mirrored.run(tf.function(lambda: two._draw(index)))
    first, second = (d.numpy() for d in mirrored.experimental_local_results(drawn))
    assert (first != second).mean() > 0.5, (first, second)

    # Relations are those within a replica's share of the batch.
    with mirrored.scope():
        teacher, student = net(8), net(4)
        losses = [RelationalKD(), SimilarityPreserving()]
        distiller = Distiller(teacher, student, losses, student_loss_weight=0.0)
        distiller.compile(keras.optimizers.SGD(0.0))
    logs = distiller.fit(tf.data.Dataset.from_tensor_slices(x[:8]).batch(8), verbose=0).history
    first = [keras.Model(model.inputs, model.layers[0].output) for model in (teacher, student)]
    for loss, name in zip(losses, ["relational_kd", "similarity_preserving"]):
        halves = []
        for half in (x[:4], x[4:8]):
            t, s = (model(half) for model in first)
            t, s = ([t], [s]) if loss.several else (t, s)
            halves.append(float(loss.compute_loss(t, s)))
        assert np.allclose(logs[name], np.mean(halves), rtol=1e-4), (logs, halves)
    print("ok")
"""


@pytest.mark.long
def test_replicas_draw_apart_and_share_their_banks() -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.endswith("ok\n")
