"""Transfer sets: MUNGE's statistics against its definition, noise, pseudo-labels, mixing, views."""

from __future__ import annotations

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
from scipy import special, stats
from scipy.spatial.distance import cdist

from tfcomp.distillation import (
    DistillationInputs,
    Distiller,
    Ensemble,
    KnowledgeDistillation,
    augmented_views,
    cache_teacher,
    mix_unlabelled,
    munge,
    oversample_with_noise,
    pseudo_labels,
    with_indices,
)
from tfcomp.errors import TfcompError

Make = Callable[..., keras.Model]
Data = tuple[np.ndarray, np.ndarray]
slices = tf.data.Dataset.from_tensor_slices


def rows(dataset: tf.data.Dataset) -> np.ndarray:
    return np.array(list(dataset.as_numpy_iterator()))


def munge_oracle(
    x: np.ndarray, p: float, s: float, categorical: list[int], rng: np.random.Generator
) -> np.ndarray:
    """One pass as the definition has it, attribute by attribute; draws in the order of rows."""
    copy = x.astype(float)
    width = x.shape[1]
    low, high = copy.min(0), copy.max(0)
    numbers = [a for a in range(width) if a not in categorical]
    low, high = low[numbers], np.where(high > low, high, low + 1)[numbers] if numbers else high
    for e in range(len(copy)):
        scaled = (copy[:, numbers] - low) / (high - low) if numbers else np.zeros((len(copy), 1))
        distances = cdist(scaled[e : e + 1], scaled)[0] ** 2
        for other in range(len(copy)):
            distances[other] += sum(copy[other, a] != copy[e, a] for a in categorical)
        distances[e] = np.inf
        near = int(np.argmin(distances))
        takes, noise = rng.random(width) < p, rng.standard_normal((2, width))
        for a in range(width):
            if takes[a]:
                mine, theirs = copy[e, a], copy[near, a]
                deviation = 0.0 if a in categorical else abs(mine - theirs) / s
                copy[e, a] = theirs + deviation * noise[0, a]
                copy[near, a] = mine + deviation * noise[1, a]
    return copy


@settings(deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 999),
    count=st.integers(2, 12),
    p=st.sampled_from([0.0, 0.3, 1.0]),
    s=st.sampled_from([0.5, 10.0]),
    categorical=st.sampled_from([[], [1], [0, 2], [0, 1, 2]]),
)
def test_munge_is_the_algorithm(
    seed: int, count: int, p: float, s: float, categorical: list[int]
) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, 3)) * [1, 50, 0.01]
    x[:, categorical] = rng.integers(0, 3, (count, len(categorical)))
    kept = x.copy()
    got = rows(munge(x, 2 * count, p, s, categorical, seed))
    draws = np.random.default_rng(seed)
    expected = np.concatenate([munge_oracle(x, p, s, categorical, draws) for _ in range(2)])
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(x, kept)


def pairs(count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` pairs; the members of a pair are nearest to each other, before and after mixing.

    A scaled attribute of its own keeps each pair √2 from the others; a category is but 1 away.
    """
    numbers = np.repeat(1000.0 * np.eye(count), 2, axis=0) + rng.standard_normal((2 * count, count))
    return np.column_stack([numbers, rng.integers(0, 9, 2 * count)])


def test_each_attribute_changes_with_probability_p() -> None:
    # Both members of a pair are visited, so that an attribute stays untouched with (1−p)².
    x = pairs(20, np.random.default_rng(0))
    p, passes = 0.3, 50
    made = rows(munge(x, passes * len(x), p, 2.0, categorical=[-1])).reshape(passes, *x.shape)
    changed = made[..., :-1] != x[:, :-1]
    # One draw decides for both members.
    np.testing.assert_array_equal(changed[:, ::2], changed[:, 1::2])
    trials, expected = passes * len(x) // 2, 1 - (1 - p) ** 2
    for attribute in range(20):
        found = int(changed[:, ::2, attribute].sum())
        assert stats.binomtest(found, trials, expected).pvalue > 1e-4
    # Attributes are decided by themselves.
    both = int((changed[:, ::2, 0] & changed[:, ::2, 1]).sum())
    assert stats.binomtest(both, trials, expected**2).pvalue > 1e-4
    # Every pass starts from x, and none is like another.
    assert len(np.unique(made.reshape(passes, -1), axis=0)) == passes


def test_continuous_values_are_normal_around_the_others() -> None:
    # With two samples and one pass, the second visit starts from what the first one made.
    x, s = np.array([[0.0], [3.0]]), 4.0
    made = rows(munge(x, 8000, 1.0, s, seed=3)).reshape(-1, 2)
    # The oracle of the law: two visits, drawn by SciPy.
    e = stats.norm(3.0, 3.0 / s).rvs(200_000, random_state=1)
    other = stats.norm(0.0, 3.0 / s).rvs(200_000, random_state=2)
    deviation = np.abs(e - other) / s
    last = e + deviation * stats.norm.rvs(size=200_000, random_state=3)
    first = other + deviation * stats.norm.rvs(size=200_000, random_state=4)
    assert stats.ks_2samp(made[:, 1], last).pvalue > 1e-4
    assert stats.ks_2samp(made[:, 0], first).pvalue > 1e-4


def test_categories_are_swapped() -> None:
    x = pairs(20, np.random.default_rng(1))
    p, passes = 0.4, 50
    made = rows(munge(x, passes * len(x), p, 5.0, categorical=[20])).reshape(passes, *x.shape)
    # A swap keeps the categories of each pair.
    before, after = (
        np.sort(part.reshape(-1, 20, 2), axis=-1) for part in (x[:, 20], made[..., 20])
    )
    np.testing.assert_array_equal(after, np.broadcast_to(before, after.shape))
    # Two visits: swapped in the end if one of them swaps, and only one.
    differ = x[::2, 20] != x[1::2, 20]
    swapped = (made[:, ::2, 20] != x[::2, 20])[:, differ]
    found = stats.binomtest(int(swapped.sum()), swapped.size, 2 * p * (1 - p))
    assert found.pvalue > 1e-4
    unmoved = rows(munge(x, 40, 0.0, 5.0, categorical=[20]))
    np.testing.assert_array_equal(unmoved, x)


def test_neighbours_are_found_on_scaled_attributes() -> None:
    # Unscaled, the second attribute alone would decide.
    x = np.array([[0.0, 0.0], [0.01, 400.0], [1.0, 100.0], [0.99, 1000.0]])
    made = rows(munge(x[:3], 3, 1.0, 1e12))
    # 0 and 1 change places, 1 then finds 0 and changes back with 0; 2 takes the nearest.
    assert sorted(made[:, 0].round(6)) == [0.0, 0.01, 1.0]
    nearest = cdist(x / [1, 1000], x / [1, 1000]) + 9 * np.eye(4)
    assert nearest.argmin(1)[0] == 1


@settings(deadline=None, max_examples=10)
@given(count=st.integers(2, 9), size=st.integers(1, 30), seed=st.integers(0, 99))
def test_sizes_seeds_and_types(count: int, size: int, seed: int) -> None:
    x = np.random.default_rng(seed).random((count, 2, 3)).astype("float32")
    made = munge(x, size, 0.5, 3.0, seed=seed)
    assert int(made.cardinality()) == size
    assert made.element_spec == tf.TensorSpec((2, 3), tf.float32)
    np.testing.assert_array_equal(rows(made), rows(munge(x, size, 0.5, 3.0, seed=seed)))
    noisy = oversample_with_noise(x, size, 0.1, seed)
    assert int(noisy.cardinality()) == size
    np.testing.assert_array_equal(rows(noisy), rows(noisy))
    np.testing.assert_array_equal(rows(noisy), rows(oversample_with_noise(x, size, 0.1, seed)))


def test_other_seeds_give_others() -> None:
    x = np.random.default_rng(0).random((5, 3))
    assert not np.array_equal(
        rows(munge(x, 5, 0.5, 1.0, seed=0)), rows(munge(x, 5, 0.5, 1.0, seed=1))
    )
    assert not np.array_equal(
        rows(oversample_with_noise(x, 5, 0.5, 0)), rows(oversample_with_noise(x, 5, 0.5, 1))
    )


def test_whole_numbers() -> None:
    x = np.random.default_rng(0).integers(0, 5, (6, 3))
    assert rows(munge(x, 6, 0.5, 1.0)).dtype == np.float32
    made = rows(munge(x, 6, 0.5, 1.0, categorical=[0, 1, -1]))
    assert made.dtype == x.dtype
    np.testing.assert_array_equal(np.sort(made, axis=0), np.sort(x, axis=0))
    assert rows(oversample_with_noise(x.astype("uint8"), 6, 1.0)).dtype == np.uint8


def test_noise_is_normal_and_clipped() -> None:
    x = np.full((10, 20, 20, 1), 0.5, "float32")
    x[0, 0, 0], x[0, 0, 1] = 0.0, 1.0
    kept = x.copy()
    made = rows(oversample_with_noise(x, 50, 0.1, seed=4))
    inside = made[:, 5:] - 0.5
    assert stats.kstest(inside.ravel(), stats.norm(0, 0.1).cdf).pvalue > 1e-4
    assert (made.min(), made.max()) == (0.0, 1.0)
    # No two copies have the same noise.
    assert len(np.unique(inside.reshape(50, -1)[:, 0])) == 50
    np.testing.assert_array_equal(x, kept)
    # Images come equally often.
    which = rows(oversample_with_noise(np.arange(10.0)[:, None] * 100, 34, 1.0)).round(-2)
    counts = np.unique(which, return_counts=True)[1]
    assert set(counts) == {3, 4}


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: munge(np.ones((1, 2)), 5, 0.5, 1.0), "two samples"),
        (lambda: munge(np.ones((3, 2)), 0, 0.5, 1.0), "`size`"),
        (lambda: munge(np.ones((3, 2)), 5, 1.5, 1.0), "`probability`"),
        (lambda: munge(np.ones((3, 2)), 5, 0.5, 0.0), "`local_variance`"),
        (lambda: munge(np.ones((3, 2)), 5, 0.5, 1.0, [2]), "`categorical`"),
        (lambda: munge(np.full((3, 2), np.nan), 5, 0.5, 1.0), "finite"),
        (lambda: munge(np.array([["a"], ["b"]]), 5, 0.5, 1.0), "numbers"),
        (lambda: munge(np.ones(3), 5, 0.5, 1.0), "shape"),
        (lambda: munge(slices(np.ones((3, 2))), 5, 0.5, 1.0), "array"),
        (lambda: oversample_with_noise(np.ones((3, 2)), 5, -1.0), "`stddev`"),
        (lambda: oversample_with_noise(np.ones((3, 2)), -5, 1.0), "`size`"),
        (lambda: pseudo_labels(np.ones((3, 2)), keras.Model()), "from_logits"),
        (lambda: augmented_views(slices(np.ones(3)).repeat(), add, 2), "finite"),
        (lambda: augmented_views(slices(np.ones(3)), add, 0), "`views`"),
        (lambda: augmented_views(slices(np.ones(3)).take(0), add, 2), "empty"),
        (lambda: augmented_views(np.ones(3), add, 2), "Dataset"),
        (lambda: mix_unlabelled(np.ones(3), slices(np.ones((2, 2)))), "`labelled`"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(TfcompError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)
    assert "eceived" in str(caught.value)


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(5).standard_normal((11, 4)).astype("float32")


def net(ending: str | None = None, units: int = 3) -> keras.Model:
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(units, ending)])


@pytest.mark.parametrize("ending", [None, "softmax", "sigmoid"])
@pytest.mark.parametrize("hard", [False, True])
def test_pseudo_labels_are_the_teachers(x: np.ndarray, ending: str | None, hard: bool) -> None:
    teacher = net(ending)
    outputs = np.asarray(teacher(x))
    soft = special.softmax(outputs, axis=-1) if ending is None else outputs
    hard_labels = outputs > 0.5 if ending == "sigmoid" else outputs.argmax(-1)
    expected = hard_labels if hard else soft
    y = np.zeros(11)
    for data in (x, slices(x), slices((x, y)), slices((x, y, y)).batch(4)):
        found = pseudo_labels(data, teacher, hard, batch_size=4)
        assert [len(labels) for _, labels in found] == [4, 4, 3]
        np.testing.assert_array_equal(np.concatenate([i for i, _ in found]), x)
        labels = np.concatenate([labels for _, labels in found])
        np.testing.assert_allclose(labels, expected, rtol=1e-5, atol=1e-7)
        assert labels.dtype == (np.int32 if hard else np.float32)


def test_teacher_is_asked_once(x: np.ndarray, counting: Any) -> None:
    inputs = keras.Input((4,))
    counter = counting()
    teacher = keras.Model(inputs, keras.layers.Dense(2)(counter(inputs)))
    before = int(counter.count)
    labelled = pseudo_labels(x, teacher, batch_size=4)
    list(labelled), list(labelled)
    assert int(counter.count) == before + 3


def test_pseudo_labels_train_a_student(x: np.ndarray) -> None:
    teacher = Ensemble([net(), net("softmax")])
    data = pseudo_labels(munge(x, 64, 0.5, 2.0), teacher, batch_size=16)
    student = net("softmax")
    student.compile(keras.optimizers.Adam(0.05), "categorical_crossentropy")
    losses = student.fit(data, epochs=8, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


def test_subclassed_teachers_endings_are_told(x: np.ndarray) -> None:
    class Teacher(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.dense = keras.layers.Dense(3)

        def call(self, inputs: Any) -> Any:
            return self.dense(inputs)

    teacher = Teacher()
    logits = np.asarray(teacher(x))
    found = pseudo_labels(slices(x).batch(6), teacher, from_logits=True)
    labels = np.concatenate([labels for _, labels in found])
    np.testing.assert_allclose(labels, special.softmax(logits, axis=-1), rtol=1e-5)


def labelled_and_not(seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    few = rng.standard_normal((5, 6, 6, 1)).astype("float32")
    many = rng.standard_normal((12, 6, 6, 1)).astype("float32")
    return (few, np.array([2, 1, 2, 1, 2])), many


@pytest.mark.parametrize("kind", ["x alone", "with more", "weights"])
def test_batches_hold_both_kinds(kind: str) -> None:
    (few, y), many = labelled_and_not()
    first = slices((few, y, y / 2.0) if kind == "weights" else (few, y)).batch(2)
    second = slices((many, np.ones(12)) if kind == "with more" else many).batch(4)
    mixed = mix_unlabelled(first, second)
    elements = list(mixed.as_numpy_iterator())
    assert len(elements) == len(mixed) == 3
    for number, (inputs, labels, *weights) in enumerate(elements):
        start = [0, 2, 4][number]
        ours, count = few[start : start + 2], len(y[start : start + 2])
        np.testing.assert_array_equal(inputs.labelled, [1] * count + [0] * 4)
        assert inputs.labelled.dtype == np.uint8
        np.testing.assert_array_equal(inputs.inputs[:count], ours)
        np.testing.assert_array_equal(inputs.inputs[count:], many[4 * number : 4 * number + 4])
        np.testing.assert_array_equal(labels, [*y[start : start + 2], 0, 0, 0, 0])
        assert labels.dtype == y.dtype
        if kind == "weights":
            np.testing.assert_array_equal(weights[0], [*(y[start : start + 2] / 2), 1, 1, 1, 1])
    assert int(tf.data.Dataset.cardinality(mixed)) == 3


def test_the_shorter_begins_anew() -> None:
    (few, y), many = labelled_and_not()
    first, second = slices((few, y)).batch(5), slices(many).batch(3)
    for a, b, expected in [
        (first, second, 4),
        (first.repeat(9), second, 9),
        (first.repeat(), second, 4),
        (first, second.repeat(), 1),
        (first.repeat(), second.repeat(), tf.data.INFINITE_CARDINALITY),
    ]:
        mixed = mix_unlabelled(a, b)
        assert int(mixed.cardinality()) == expected
        assert len(list(mixed.take(12))) == (12 if expected < 0 else expected)


def test_labels_of_unlabelled_samples_do_not_count(make_net: Make) -> None:
    (few, y), many = labelled_and_not()
    mixed = mix_unlabelled(slices((few, y)).batch(5), slices(many).batch(12))

    def trained(share: float, change: Any) -> tuple[dict[str, float], list[np.ndarray]]:
        keras.utils.set_random_seed(2)
        teacher, student = make_net(5, batch_norm=False), make_net(3, batch_norm=False)
        distiller = Distiller(
            teacher, student, KnowledgeDistillation(2.0), student_loss_weight=share
        )
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        distiller.compile(keras.optimizers.SGD(0.5), loss=loss, metrics=["accuracy"])
        logs = distiller.fit(mixed.map(change), verbose=0, shuffle=False).history
        return {name: values[0] for name, values in logs.items()}, student.get_weights()

    def spoil(inputs: Any, labels: Any) -> Any:
        # Marks of one's own may be bool.
        marks = inputs.labelled == 1
        return inputs._replace(labelled=marks), tf.where(marks, labels, 2)

    def unmark(inputs: Any, labels: Any) -> Any:
        return inputs._replace(labelled=()), labels

    plain, weights = trained(0.5, lambda *element: element)
    other, same = trained(0.5, spoil)
    assert plain == pytest.approx(other, rel=1e-5)
    for a, b in zip(weights, same, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    unmarked, _ = trained(0.5, unmark)
    assert unmarked["student_loss"] != pytest.approx(plain["student_loss"], rel=1e-2)
    # The distillation loss counts all of them.
    assert unmarked["distillation_loss"] == pytest.approx(plain["distillation_loss"], rel=1e-5)
    # Against NumPy: only the five labelled ones are in the loss, over all seventeen.
    keras.utils.set_random_seed(2)
    _, student = make_net(5, batch_norm=False), make_net(3, batch_norm=False)
    log_p = special.log_softmax(np.asarray(student(few)), axis=-1)
    assert plain["student_loss"] == pytest.approx(-log_p[np.arange(5), y].sum() / 17, rel=1e-4)
    assert plain["accuracy"] == pytest.approx(np.mean(log_p.argmax(-1) == y))


MIRRORED = """
    import keras, numpy as np, tensorflow as tf
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
    )
    from tfcomp.distillation import DecoupledKD, Distiller, KnowledgeDistillation, mix_unlabelled

    rng = np.random.default_rng(0)
    x, y = rng.random((16, 4)).astype("float32"), rng.integers(0, 3, 16)
    slices = tf.data.Dataset.from_tensor_slices
    # Of the four samples of a replica's share either all have labels, or none.
    mixed = mix_unlabelled(slices((x, y)).batch(4), slices(x[::-1]).batch(4))

    def net(width):
        layers = [keras.layers.Dense(width, "tanh"), keras.layers.Dense(3)]
        return keras.Sequential([keras.Input((4,)), *layers])

    def train(strategy, metrics):
        keras.utils.set_random_seed(1)
        with strategy.scope():
            student, losses = net(4), [KnowledgeDistillation(), DecoupledKD()]
            distiller = Distiller(net(6), student, losses)
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            distiller.compile(keras.optimizers.SGD(0.5), loss=loss, metrics=metrics)
        logs = distiller.fit(mixed, verbose=0, shuffle=False).history
        return student.get_weights(), logs

    mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    for metrics in ([], ["accuracy"]):
        one, two = train(tf.distribute.get_strategy(), metrics), train(mirrored, metrics)
        for a, b in zip(one[0], two[0]):
            assert np.abs(a - b).max() < 1e-5, (metrics, np.abs(a - b).max())
        assert set(one[1]) == set(two[1]) and ("accuracy" in two[1]) == bool(metrics)
        for name, value in one[1].items():
            assert np.allclose(value, two[1][name], rtol=1e-4), (name, value, two[1][name])
        print("equal:", metrics)
"""


@pytest.mark.long
def test_mixed_batches_are_shared_out_to_replicas() -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MIRRORED)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("equal:") == 2


def test_cached_teachers_are_mixed(make_net: Make) -> None:
    (few, y), many = labelled_and_not()
    teacher = make_net()
    cached = [cache_teacher(d.batch(4), teacher) for d in (slices((few, y)), slices(many))]
    inputs, labels = next(iter(mix_unlabelled(*cached)))
    np.testing.assert_allclose(inputs.teacher_outputs, teacher(inputs.inputs), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(labels, [*y[:4], 0, 0, 0, 0])
    distiller = Distiller(None, make_net(2), KnowledgeDistillation(teacher_from_logits=True))
    distiller.compile("sgd", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    distiller.fit(mix_unlabelled(*cached), verbose=0, shuffle=False)
    # The other way round gives the same.
    plain = [slices((few, y)).batch(4), slices(many).batch(4)]
    again, _ = next(iter(cache_teacher(mix_unlabelled(*plain), teacher)))
    for a, b in zip(tf.nest.flatten(inputs), tf.nest.flatten(again), strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-4, atol=1e-5)


def test_what_cannot_be_mixed_is_refused(make_net: Make) -> None:
    (few, y), many = labelled_and_not()
    first, second = slices((few, y)).batch(2), slices(many).batch(2)
    for a, b, words in [
        (slices(few).batch(2), second, r"\(x, y\)"),
        (first, slices(many[:, :3]).batch(2), "same x"),
        (first, slices(many.astype("float64")).batch(2), "same x"),
        (first, slices(many.reshape(12, -1)).batch(2), "same x"),
        (slices((few, y)), slices(many), "must hold batches"),
        (cache_teacher(first, make_net()), second, "both or for none"),
        (with_indices(first), second, "'index'"),
        (mix_unlabelled(first, second), second, "'labelled'"),
        (first.filter(lambda *_: True), second, "known number"),
        (first.take(0), second, "above 0"),
    ]:
        with pytest.raises(TfcompError, match=words) as caught:
            mix_unlabelled(a, b)
        assert "\n" not in str(caught.value)


def add(x: Any, seed: Any) -> Any:
    return x + tf.random.stateless_normal(tf.shape(x), seed, dtype=x.dtype)


def test_views_are_readings_one_after_the_other() -> None:
    x, y = np.arange(12.0).reshape(4, 3), np.arange(4)
    views = augmented_views(slices((x, y)), add, views=3, seed=1)
    elements = list(views.as_numpy_iterator())
    assert len(elements) == int(views.cardinality()) == 12
    np.testing.assert_array_equal([label for _, label in elements], np.tile(y, 3))
    noise = np.array([sample for sample, _ in elements]) - np.tile(x, (3, 1))
    # Each sample of each view has noise of its own, normal and unbiased.
    assert len(np.unique(noise.round(9))) == noise.size
    assert stats.kstest(noise.ravel(), "norm").pvalue > 1e-3
    other = list(augmented_views(slices((x, y)), add, views=3, seed=2).as_numpy_iterator())
    assert not np.array_equal(other[0][0], elements[0][0])
    # The first views do not depend on how many follow.
    fewer = list(augmented_views(slices((x, y)), add, views=2, seed=1).as_numpy_iterator())
    for a, b in zip(fewer, elements, strict=False):
        np.testing.assert_array_equal(a[0], b[0])


DIGEST = """
import hashlib, numpy as np, tensorflow as tf
from tfcomp.distillation import augmented_views

def flip(image, seed):
    image = tf.image.stateless_random_flip_left_right(image, seed)
    return tf.image.stateless_random_crop(image, (5, 5, 1), seed)

images = np.random.default_rng(0).random((9, 6, 6, 1)).astype("float32")
data = augmented_views(tf.data.Dataset.from_tensor_slices(images), flip, 2, seed=3)
print(hashlib.sha256(b"".join(x.tobytes() for x in data.as_numpy_iterator())).hexdigest())
"""


def test_views_are_the_same_in_another_process(capsys: pytest.CaptureFixture[str]) -> None:
    exec(DIGEST, {})
    exec(DIGEST, {})
    here = capsys.readouterr().out.split()
    done = subprocess.run(
        [sys.executable, "-c", DIGEST], capture_output=True, text=True, check=True
    )
    assert here == [done.stdout.strip()] * 2


def test_views_are_cached_for_good(
    make_net: Make, data: Data, tmp_path: pathlib.Path, counting: Any
) -> None:
    inputs = keras.Input((6, 6, 1))
    counter = counting()
    outputs = keras.layers.Dense(3)(keras.layers.Flatten()(counter(inputs)))
    teacher = keras.Model(inputs, outputs)
    views = augmented_views(slices(data), add, views=3)
    path = tmp_path / "views"
    cache_teacher(views, teacher, path)
    asked = int(counter.count)
    again = augmented_views(slices(data), add, views=3).shuffle(48, seed=1)
    cached = cache_teacher(again, teacher, path)
    assert int(counter.count) == asked + 1
    for known, _ in cached.take(5):
        np.testing.assert_allclose(
            known.teacher_outputs, teacher(known.inputs[None])[0], rtol=1e-4, atol=1e-4
        )
    distiller = Distiller(None, make_net(), KnowledgeDistillation(teacher_from_logits=True))
    distiller.compile("sgd", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    distiller.fit(cached.shuffle(48).batch(8), verbose=0, shuffle=False)


def test_views_keep_indices_and_refuse_what_is_cached(make_net: Make, data: Data) -> None:
    views = augmented_views(with_indices(slices(data), batched=False), add, views=2)
    found = [int(inputs.index) for inputs, _ in views]
    assert found == [*range(16)] * 2
    assert isinstance(views.element_spec[0], DistillationInputs)
    with pytest.raises(TfcompError, match="Cache the result instead"):
        augmented_views(cache_teacher(slices(data), make_net()), add, views=2)


def test_views_that_are_never_the_same_are_refused(data: Data) -> None:
    def random(x: Any, seed: Any) -> Any:
        return x + tf.random.get_global_generator().normal(tf.shape(x))

    for dataset, augment in [(slices(data), random), (slices(data).shuffle(16), add)]:
        with pytest.raises(TfcompError, match="the same every time") as caught:
            augmented_views(dataset, augment, views=2)
        assert "\n" not in str(caught.value)
