"""cache_teacher: the teacher is asked once, and never is an old answer taken for a new one."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import textwrap
import types
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfcomp.distillation import (
    DistillationInputs,
    Distiller,
    KnowledgeDistillation,
    augmented_views,
    cache_teacher,
    pseudo_labels,
    teachers,
)
from tfcomp.distillation.own_code import own_code
from tfcomp.errors import TfcompError

Make = Callable[..., keras.Model]
Data = tuple[np.ndarray, np.ndarray]
CE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def rows(dataset: tf.data.Dataset) -> list[Any]:
    return list(dataset.as_numpy_iterator())


def batches_of(data: Data, size: int = 5) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices(data).batch(size)


@pytest.fixture
def teacher(counting: Any) -> keras.Model:
    """Counts the batches that it has seen."""
    inputs = keras.Input((6, 6, 1))
    flat = keras.layers.Flatten()(counting(name="counter")(inputs))
    return keras.Model(inputs, keras.layers.Dense(3, name="head")(flat))


def asked(teacher: keras.Model) -> int:
    return int(teacher.get_layer("counter").count.numpy())


def head(teacher: keras.Model, x: np.ndarray) -> np.ndarray:
    """The teacher's answer by NumPy, which it does not count."""
    kernel, bias = teacher.get_layer("head").get_weights()
    return x.reshape(len(x), -1) @ kernel + bias


def check(cached: tf.data.Dataset, teacher: keras.Model, data: Data) -> None:
    """`cached` is `data` in its order, with the teacher's answers."""
    elements = rows(cached)
    x = np.concatenate([element[0].inputs for element in elements])
    outputs = np.concatenate([element[0].teacher_outputs for element in elements])
    np.testing.assert_array_equal(x, data[0])
    np.testing.assert_array_equal(np.concatenate([e[1] for e in elements]), data[1])
    np.testing.assert_allclose(outputs, head(teacher, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("on_disk", [False, True])
def test_elements_are_those_of_the_dataset(
    teacher: keras.Model, data: Data, tmp_path: pathlib.Path, on_disk: bool
) -> None:
    cached = cache_teacher(batches_of(data), teacher, tmp_path / "t" if on_disk else None)
    assert asked(teacher) == 4
    check(cached, teacher, data)
    check(cached, teacher, data)
    assert asked(teacher) == 4
    assert [len(element[1]) for element in rows(cached)] == [5, 5, 5, 1]
    assert int(cached.cardinality()) == 4
    spec = cached.element_spec[0].inputs
    assert spec.shape.as_list() == [None, 6, 6, 1]
    assert spec.dtype == tf.float32


def test_single_samples_stay_single(teacher: keras.Model, data: Data) -> None:
    cached = cache_teacher(tf.data.Dataset.from_tensor_slices(data), teacher)
    elements = rows(cached)
    assert len(elements) == 16
    assert elements[0][0].inputs.shape == (6, 6, 1)
    check(cached.batch(7), teacher, data)


def test_weights_and_inputs_alone(teacher: keras.Model, data: Data) -> None:
    weights = np.arange(16.0)
    cached = cache_teacher(batches_of((*data, weights)), teacher)
    np.testing.assert_array_equal(np.concatenate([w for _, _, w in rows(cached)]), weights)
    alone = cache_teacher(tf.data.Dataset.from_tensor_slices(data[0]).batch(5), teacher)
    (first,) = rows(alone)[0]
    assert isinstance(first, DistillationInputs)
    assert first.teacher_outputs.shape == (5, 3)


def test_nested_inputs_and_outputs() -> None:
    inputs = {name: keras.Input((2,), name=name) for name in ("b", "a")}
    outputs = {
        "z": keras.layers.Dense(3)(inputs["a"]),
        "y": [keras.layers.Dense(1)(inputs["b"]), inputs["a"]],
    }
    teacher = keras.Model(inputs, outputs)
    x = {name: np.random.rand(6, 2).astype("float32") for name in ("a", "b")}
    cached = cache_teacher(tf.data.Dataset.from_tensor_slices((x, np.arange(6))).batch(4), teacher)
    expected = teacher(x)
    first = rows(cached)[0][0]
    np.testing.assert_array_equal(first.inputs["a"], x["a"][:4])
    np.testing.assert_allclose(first.teacher_outputs["z"], expected["z"][:4], rtol=1e-5)
    np.testing.assert_allclose(first.teacher_outputs["y"][0], expected["y"][0][:4], rtol=1e-5)
    np.testing.assert_array_equal(first.teacher_outputs["y"][1], x["a"][:4])


@settings(deadline=None, max_examples=15)
@given(
    count=st.integers(1, 20),
    size=st.integers(1, 8),
    dtype=st.sampled_from(["float16", "float32", "float64", "uint8", "int64", "bool"]),
    seed=st.integers(0, 999),
)
def test_any_numbers_come_back_as_they_were(
    tmp_path_factory: Any, count: int, size: int, dtype: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((count, 3)) * 50).astype(dtype)
    inputs = keras.Input((3,), dtype=dtype)
    teacher = keras.Model(inputs, keras.ops.cast(inputs, "float32") * 2)
    dataset = tf.data.Dataset.from_tensor_slices((x, rng.integers(0, 2, count))).batch(size)
    path = tmp_path_factory.mktemp("cache") / "t"
    for cached in (cache_teacher(dataset, teacher, path), cache_teacher(dataset, teacher, path)):
        for element, (plain, labels) in zip(rows(cached), rows(dataset), strict=True):
            np.testing.assert_array_equal(element[0].inputs, plain)
            assert element[0].inputs.dtype == plain.dtype
            np.testing.assert_array_equal(element[1], labels)
            np.testing.assert_array_equal(element[0].teacher_outputs, plain.astype("float32") * 2)


@pytest.mark.parametrize("with_teacher", [True, False])
def test_training_is_the_same_without_running_the_teacher(
    make_net: Make, teacher: keras.Model, data: Data, with_teacher: bool
) -> None:
    def train(dataset: tf.data.Dataset, given_teacher: keras.Model | None) -> Any:
        keras.utils.set_random_seed(1)
        student = make_net()
        loss = KnowledgeDistillation(3.0, teacher_from_logits=True)
        distiller = Distiller(given_teacher, student, loss)
        distiller.compile("adam", loss=CE, metrics=["accuracy"])
        distiller.fit(dataset, validation_data=dataset, epochs=2, verbose=0, shuffle=False)
        distiller.evaluate(dataset, verbose=0)
        assert distiller.predict(dataset, verbose=0).shape == (16, 3)
        return student.get_weights()

    expected = train(batches_of(data), teacher)
    cached = cache_teacher(batches_of(data), teacher)
    before = asked(teacher)
    got = train(cached, teacher if with_teacher else None)
    assert asked(teacher) == before
    for a, b in zip(expected, got, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_class_weights_reach_the_cached_teachers_loss(
    make_net: Make, teacher: keras.Model, data: Data
) -> None:
    logs = []
    for dataset in (batches_of(data, 16), cache_teacher(batches_of(data, 16), teacher)):
        keras.utils.set_random_seed(1)
        distiller = Distiller(teacher, make_net(), KnowledgeDistillation())
        distiller.compile("sgd", loss=CE)
        weights = {0: 0.0, 1: 3.0, 2: 0.5}
        history = distiller.fit(dataset, class_weight=weights, verbose=0, shuffle=False).history
        logs.append({name: values[0] for name, values in history.items()})
    assert logs[1] == pytest.approx(logs[0], rel=1e-4)


def test_shuffle_and_augmentation_come_after(
    make_net: Make, teacher: keras.Model, data: Data
) -> None:
    def flip(inputs: DistillationInputs, labels: Any) -> Any:
        return inputs._replace(inputs=tf.image.flip_left_right(inputs.inputs)), labels

    cached = cache_teacher(batches_of(data), teacher)
    mixed = cached.unbatch().shuffle(16, seed=1).batch(4).map(flip)
    elements = rows(mixed)
    x = np.concatenate([element[0].inputs for element in elements])[:, :, ::-1]
    assert not np.array_equal(x, data[0])
    outputs = np.concatenate([element[0].teacher_outputs for element in elements])
    np.testing.assert_allclose(outputs, head(teacher, x), rtol=1e-4, atol=1e-5)
    distiller = Distiller(None, make_net(), KnowledgeDistillation(teacher_from_logits=True))
    distiller.compile("sgd", loss=CE)
    distiller.fit(mixed.repeat(2), verbose=0, shuffle=False)


def test_second_call_takes_the_file(
    teacher: keras.Model, data: Data, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "folder" / "teacher.cache"
    cache_teacher(batches_of(data), teacher, path)
    written = path.stat().st_mtime_ns
    assert asked(teacher) == 4
    teacher.save(tmp_path / "teacher.keras")
    loaded = keras.saving.load_model(tmp_path / "teacher.keras")
    check(cache_teacher(batches_of(data, 16), teacher, path), teacher, data)
    check(cache_teacher(batches_of(data), loaded, path), teacher, data)
    # One batch each to see that the teacher is still the same.
    assert (asked(teacher), asked(loaded)) == (5, 1)
    assert path.stat().st_mtime_ns == written
    assert [file.name for file in path.parent.iterdir()] == ["teacher.cache"]


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 999), count=st.integers(1, 16))
def test_another_order_or_a_part_takes_the_file_in_that_order(
    tmp_path_factory: Any, seed: int, count: int
) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, 3, (16, 6, 6, 1)).astype("float32"), rng.integers(0, 3, 16)
    inputs = keras.Input((6, 6, 1))
    outputs = keras.layers.Dense(3, name="head")(keras.layers.Flatten()(inputs))
    teacher = keras.Model(inputs, outputs)
    path = tmp_path_factory.mktemp("cache") / "t"
    cache_teacher(batches_of((x, y)), teacher, path)
    written = path.stat().st_mtime_ns
    chosen = rng.permutation(16)[:count]
    part = (x[chosen], y[chosen])
    check(cache_teacher(batches_of(part, 3), teacher, path), teacher, part)
    assert path.stat().st_mtime_ns == written


def change_weights(teacher: keras.Model, data: Data) -> tuple[keras.Model, Data]:
    kernel, bias = teacher.get_layer("head").get_weights()
    bias[1] += 1e-3
    teacher.get_layer("head").set_weights([kernel, bias])
    return teacher, data


def change_inputs(teacher: keras.Model, data: Data) -> tuple[keras.Model, Data]:
    x = data[0].copy()
    x[3, 2, 1, 0] = np.nextafter(x[3, 2, 1, 0], np.float32(9))
    return teacher, (x, data[1])


def change_labels(teacher: keras.Model, data: Data) -> tuple[keras.Model, Data]:
    return teacher, (data[0], (data[1] + 1) % 3)


def add_a_sample(teacher: keras.Model, data: Data) -> tuple[keras.Model, Data]:
    return teacher, (np.append(data[0], data[0][:1] + 1, axis=0), np.append(data[1], 2))


CHANGES = [change_weights, change_inputs, change_labels, add_a_sample]


@pytest.mark.parametrize("change", CHANGES)
def test_what_changed_is_asked_again(
    teacher: keras.Model, data: Data, tmp_path: pathlib.Path, change: Any
) -> None:
    path = tmp_path / "teacher.cache"
    cache_teacher(batches_of(data), teacher, path)
    before = asked(teacher)
    teacher, data = change(teacher, data)
    check(cache_teacher(batches_of(data), teacher, path), teacher, data)
    assert asked(teacher) > before
    check(cache_teacher(batches_of(data), teacher, path), teacher, data)


def test_same_weights_in_another_architecture_are_asked_again(
    data: Data, tmp_path: pathlib.Path
) -> None:
    def net(activation: str) -> keras.Model:
        layers = [keras.layers.Flatten(), keras.layers.Dense(3, activation)]
        return keras.Sequential([keras.Input((6, 6, 1)), *layers], name="teacher")

    path, first, second = tmp_path / "teacher.cache", net("linear"), net("softmax")
    second.set_weights(first.get_weights())
    cache_teacher(batches_of(data), first, path)
    outputs = [e[0].teacher_outputs for e in rows(cache_teacher(batches_of(data), second, path))]
    np.testing.assert_allclose(np.concatenate(outputs).sum(-1), 1, rtol=1e-5)


def test_code_of_own_layers_counts(data: Data, tmp_path: pathlib.Path) -> None:
    def net(factor: float) -> keras.Model:
        class Scale(keras.layers.Layer):
            def call(self, inputs: Any) -> Any:
                return inputs * 2.0 if factor == 2.0 else inputs * 3.0

        class ScaleByThree(keras.layers.Layer):
            def call(self, inputs: Any) -> Any:
                return inputs * 3.0

        kind = Scale if factor == 2.0 else ScaleByThree
        kind.__qualname__ = kind.__name__ = "Scale"
        inputs = keras.Input((6, 6, 1))
        return keras.Model(inputs, kind(name="scale")(inputs), name="teacher")

    path = tmp_path / "teacher.cache"
    cache_teacher(batches_of(data), net(2.0), path)
    elements = rows(cache_teacher(batches_of(data), net(3.0), path))
    outputs = np.concatenate([element[0].teacher_outputs for element in elements])
    np.testing.assert_allclose(outputs, data[0] * 3, rtol=1e-6)


def module_of(source: str) -> types.ModuleType:
    """A module as a script would be, whose source may be another in the next run."""
    module = types.ModuleType("teachers")
    module.__dict__["keras"] = keras
    exec(textwrap.dedent(source), module.__dict__)
    return module


def scaling(
    said: str = "h", helped: str = "h", given: str = "h", power: int = 1, inner: str = "h"
) -> keras.Model:
    """A teacher without weights; each argument is a place where its code may differ."""
    module = module_of(f"""
        def elsewhere(h): return {given}

        class Inner(keras.layers.Layer):
            def call(self, h): return {inner}

        class Outer(keras.layers.Layer):
            def __init__(self, **kwargs):
                super().__init__(**kwargs)
                self.power, self.parts = {power}, {{"one": [Inner(name="inner")]}}

            def helper(self, h): return {helped}

            def call(self, h):
                h = elsewhere(self.helper(self.parts["one"][0](h))) ** self.power
                return (lambda h: {said})(h)
    """)
    inputs = keras.Input((6, 6, 1), name="x")
    return keras.Model(inputs, module.Outer(name="outer")(inputs), name="teacher")


def activated(said: str, kind: str) -> keras.Model:
    """A teacher with a registered function, as an activation or in a layer of Keras's own."""
    function = module_of(f"def act(h): return {said}").act
    with keras.saving.custom_object_scope({"act": function}):
        inputs = keras.Input((6, 6, 1), name="x")
        layers = {
            "activation": keras.layers.Activation,
            "lambda": keras.layers.Lambda,
            "conv": lambda f, name: keras.layers.Conv2D(
                1, 1, activation=f, kernel_initializer="ones", name=name
            ),
        }
        return keras.Model(inputs, layers[kind](function, name="act")(inputs), name="teacher")


TEACHERS: dict[str, Callable[[str], keras.Model]] = {
    "helper method": lambda e: scaling(helped=e),
    "module-level function": lambda e: scaling(given=e),
    "lambda inside call": lambda e: scaling(said=e),
    "attribute of __init__": lambda e: scaling(power=1 + (e != "h")),
    "nested own layer": lambda e: scaling(inner=e),
    "activation": lambda e: activated(e, "activation"),
    "activation of a layer of Keras": lambda e: activated(e, "conv"),
    "Lambda": lambda e: activated(e, "lambda"),
}


@pytest.mark.parametrize("by", ["digest", "probe"])
@pytest.mark.parametrize("place", TEACHERS)
def test_code_that_changed_anywhere_is_noticed(
    data: Data, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, place: str, by: str
) -> None:
    old, same, new = (TEACHERS[place](e) for e in ("h", "h", "h * h"))
    if by == "digest":
        assert own_code(old) == own_code(same) != own_code(new)
        return
    monkeypatch.setattr(teachers, "own_code", lambda model: b"")
    path = tmp_path / "teacher.cache"
    first = cache_teacher(batches_of(data), old, path, layers=[1])
    written = path.stat().st_mtime_ns
    cache_teacher(batches_of(data), same, path, layers=[1])
    assert path.stat().st_mtime_ns == written
    second = cache_teacher(batches_of(data), new, path, layers=[1])
    for cached, expected in ((first, data[0]), (second, data[0] ** 2)):
        for part in ("teacher_outputs", "teacher_layers"):
            values = [tf.nest.flatten(getattr(e[0], part))[0] for e in rows(cached)]
            np.testing.assert_allclose(np.concatenate(values), expected, rtol=1e-6)


def test_code_is_the_same_in_another_process_and_when_compiled() -> None:
    source = """
        import keras
        FACTOR = 2.0
        class Own(keras.layers.Layer):
            def call(self, h): return h * FACTOR if self.name in {"a", "b", "c", "d"} else h
        model = keras.Sequential([keras.Input((4,)), Own(name="a"), keras.layers.Dense(3)])
    """
    model = module_of(source).model
    code = own_code(model)
    assert own_code(module_of(source.replace("2.0", "3.0")).model) != code
    script = f"{textwrap.dedent(source)}\nfrom tfcomp.distillation.own_code import own_code\n"
    done = subprocess.run(
        [sys.executable, "-c", f"{script}print(own_code(model).hex())"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "77"},
    )
    assert bytes.fromhex(done.stdout.split()[-1]) == code
    model.compile("sgd", loss=lambda y, z: keras.ops.mean(z - y))
    model.fit(np.ones((2, 4)), np.ones((2, 3)), verbose=0)
    assert own_code(model) == code
    assert own_code(keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "relu")])) == b""


def test_views_are_probed_and_a_teacher_that_differs_as_hardware_does_is_the_same(
    data: Data, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teachers, "own_code", lambda model: b"")

    def jitter(x: Any, seed: Any) -> Any:
        return x + tf.random.stateless_normal(tf.shape(x), seed)

    path, slices = tmp_path / "t", tf.data.Dataset.from_tensor_slices(data)
    views = augmented_views(slices, jitter, views=3).shuffle(48)
    written = []
    for factor in ("1.0", "1.0002", "1.01"):
        cached = cache_teacher(views, scaling(said=f"h * {factor}"), path)
        written.append(path.stat().st_mtime_ns)
    assert written[0] == written[1] != written[2]
    for inputs, _ in rows(cached):
        np.testing.assert_allclose(inputs.teacher_outputs, inputs.inputs * 1.01, rtol=1e-6)


def test_the_probe_is_of_32_samples_or_of_the_batch_that_a_teacher_is_for(
    tmp_path: pathlib.Path,
) -> None:
    class Samples(keras.layers.Layer):
        def build(self, shape: Any) -> None:
            self.count = tf.Variable(0, trainable=False)

        def call(self, inputs: Any) -> Any:
            self.count.assign_add(tf.shape(inputs)[0])
            return inputs

    x = np.random.default_rng(0).random((100, 4)).astype("float32")
    for batch, probe in ((None, 32), (50, 50)):
        inputs, counter = keras.Input(batch_shape=(batch, 4)), Samples()
        outputs = counter(inputs)
        if batch:
            outputs = keras.ops.matmul(np.eye(batch, dtype="float32"), outputs)
        teacher = keras.Model(inputs, outputs)
        dataset = tf.data.Dataset.from_tensor_slices(x).batch(50)
        for total in (100, 100 + probe):
            cache_teacher(dataset, teacher, tmp_path / f"{batch}")
            assert int(counter.count) == total


def test_half_precision_may_differ_more(
    data: Data, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teachers, "own_code", lambda model: b"")
    keras.config.set_dtype_policy("mixed_float16")
    try:
        made = [scaling(said=f"h * {factor}") for factor in ("1.0", "1.004", "1.05")]
    finally:
        keras.config.set_dtype_policy("float32")
    written = []
    for teacher in made:
        cache_teacher(batches_of(data), teacher, tmp_path / "t")
        written.append((tmp_path / "t").stat().st_mtime_ns)
    assert written[0] == written[1] != written[2]


@pytest.mark.parametrize("size", [4, 6, 9])
def test_images_of_another_size_are_resized_for_the_teacher_and_for_the_student(
    make_net: Make, data: Data, size: int
) -> None:
    teacher = make_net()
    x = np.random.default_rng(0).integers(0, 255, (16, size, size, 1)).astype("uint8")
    cached = cache_teacher(batches_of((x, data[1])), teacher, layers=["pool"])
    fitted = tf.image.resize(x, (6, 6), antialias=True)
    said = np.concatenate([e[0].teacher_outputs for e in rows(cached)])
    np.testing.assert_allclose(said, teacher(fitted), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(np.concatenate([e[0].inputs for e in rows(cached)]), x)
    labelled = pseudo_labels(batches_of((x, data[1])), teacher)
    labels = np.concatenate([label for _, label in rows(labelled)])
    np.testing.assert_allclose(labels, keras.ops.softmax(teacher(fitted)), rtol=1e-3, atol=1e-4)
    distiller = Distiller(None, make_net(), KnowledgeDistillation(teacher_from_logits=True))
    distiller.compile("sgd", loss=CE)
    assert np.isfinite(distiller.fit(cached, validation_data=cached, verbose=0).history["loss"])
    told = distiller.predict(x, verbose=0)
    np.testing.assert_allclose(told, distiller.student(fitted), rtol=1e-4, atol=1e-4)


def test_teacher_without_configuration_gets_no_file(data: Data, tmp_path: pathlib.Path) -> None:
    class Teacher(keras.Model):
        def __init__(self, scale: Any) -> None:
            super().__init__()
            self.scale, self.flat = scale, keras.layers.Flatten()

        def call(self, inputs: Any) -> Any:
            return self.flat(inputs) * self.scale

    teacher = Teacher(np.float32(2.0))
    teacher(data[0])
    with pytest.raises(TfcompError, match="leave `path` out"):
        cache_teacher(batches_of(data), teacher, tmp_path / "t")
    outputs = [e[0].teacher_outputs for e in rows(cache_teacher(batches_of(data), teacher))]
    np.testing.assert_allclose(np.concatenate(outputs), 2 * data[0].reshape(16, -1))


def test_lists_of_outputs_stay_comparable_for_losses_of_keras() -> None:
    def net(width: int) -> keras.Model:
        inputs = keras.Input((4,))
        hidden = keras.layers.Dense(width)(inputs)
        return keras.Model(inputs, [keras.layers.Dense(n)(hidden) for n in (3, 2)])

    teacher = net(8)
    kl = keras.losses.KLDivergence()
    loss = keras.distillation.LogitsDistillation(2.0, loss=[kl, kl])
    labels = (np.zeros(6, "int32"), np.zeros(6, "int32"))
    dataset = tf.data.Dataset.from_tensor_slices((np.random.rand(6, 4), labels)).batch(6)
    logs = []
    for data in (dataset, cache_teacher(dataset, teacher)):
        keras.utils.set_random_seed(1)
        distiller = Distiller(teacher, net(4), loss)
        distiller.compile("sgd", loss=CE)
        logs.append(distiller.fit(data, verbose=0, shuffle=False).history["distillation_loss"][0])
    assert logs[1] == pytest.approx(logs[0], rel=1e-4)


@pytest.mark.parametrize("damage", ["cut", "empty", "overwritten", "other"])
def test_damaged_file_is_made_again(
    teacher: keras.Model, data: Data, tmp_path: pathlib.Path, damage: str
) -> None:
    path = tmp_path / "teacher.cache"
    cache_teacher(batches_of(data), teacher, path)
    whole = path.read_bytes()
    kept = {"cut": whole[:-9], "empty": b"", "overwritten": whole[: len(whole) // 2], "other": b"x"}
    path.write_bytes(kept[damage])
    check(cache_teacher(batches_of(data), teacher, path), teacher, data)
    assert asked(teacher) == 8
    assert path.stat().st_size == len(whole)


def test_interrupted_run_leaves_the_old_file(
    teacher: keras.Model, data: Data, tmp_path: pathlib.Path
) -> None:
    def broken() -> Iterator[Data]:
        yield data
        raise KeyboardInterrupt

    path = tmp_path / "teacher.cache"
    cache_teacher(batches_of(data), teacher, path)
    old = path.read_bytes()
    spec = tuple(tf.TensorSpec((None, *part.shape[1:]), part.dtype) for part in data)
    half = tf.data.Dataset.from_generator(broken, output_signature=spec)
    change_weights(teacher, data)
    with pytest.raises((KeyboardInterrupt, tf.errors.OpError)):
        cache_teacher(half, teacher, path)
    assert path.read_bytes() == old
    assert [file.name for file in tmp_path.iterdir()] == ["teacher.cache"]


def test_bad_datasets_are_refused_in_one_line(
    teacher: keras.Model, data: Data, tmp_path: pathlib.Path
) -> None:
    slices = tf.data.Dataset.from_tensor_slices
    ragged = slices(tf.ragged.constant([[1.0], [1.0, 2.0]])).batch(2)
    words = slices((data[0], ["word"] * 16)).batch(4)
    cases = [
        (data[0], "Expected a tf.data.Dataset"),
        (batches_of(data).repeat(), "finite"),
        (batches_of(data).take(0), "empty"),
        (ragged, "dense tensors"),
        (words, "string"),
        (slices(np.zeros((4, 36))).batch(2), "4 axes"),
        (slices(np.zeros((4, 6, 6, 3))).batch(2), "does not fit the teacher"),
        (cache_teacher(batches_of(data), teacher), "Cache once"),
    ]
    for dataset, words_of_message in cases:
        with pytest.raises(TfcompError, match=words_of_message) as caught:
            cache_teacher(dataset, teacher)
        assert "\n" not in str(caught.value)
    with pytest.raises(TfcompError, match="a folder"):
        cache_teacher(batches_of(data), teacher, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(TfcompError, match="Cannot write"):
        cache_teacher(batches_of(data), teacher, tmp_path / "file" / "cache")
    with pytest.raises(TfcompError, match="as teacher"):
        cache_teacher(batches_of(data), "teacher.keras")


def test_a_dataset_that_the_teacher_cannot_take_is_told_in_one_line(teacher: keras.Model) -> None:
    wrong = tf.data.Dataset.from_tensor_slices((np.zeros((6, 99), "float32"), np.zeros(6))).batch(2)
    with pytest.raises(TfcompError, match="does not fit the teacher") as error:
        cache_teacher(wrong, teacher)
    assert "\n" not in str(error.value)
