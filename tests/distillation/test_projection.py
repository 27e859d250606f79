"""KnowledgeProjection: the routes' loss by hand, their pruning, and going on after a break."""

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

from tfcomp.distillation import KnowledgeDistillation, KnowledgeProjection, cache_teacher
from tfcomp.errors import TfcompError

CE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
X = np.random.default_rng(0).standard_normal((16, 4)).astype("float32")
Y = np.random.default_rng(1).integers(0, 3, 16)
ROUTES = [("a", "a"), ("b", "a"), ("b", "b")]
NAMES = ["a_to_a", "b_to_a", "b_to_b"]
FIT: dict[str, Any] = {"batch_size": 8, "shuffle": False, "verbose": 0}


def mlp(width: int, dtype: str | None = None) -> keras.Model:
    layers = [
        keras.layers.Dense(width, "tanh", name="a", dtype=dtype),
        keras.layers.Dense(width + 1, "tanh", name="b", dtype=dtype),
        keras.layers.Dense(3, name="head", dtype="float32"),
    ]
    return keras.Sequential([keras.Input((4,)), *layers])


def images(width: int, size: int = 9) -> keras.Model:
    layers = [
        keras.layers.Conv2D(width, 3, 2, activation="relu", name="conv1"),
        keras.layers.Conv2D(2 * width, 3, padding="same", activation="relu", name="conv2"),
        keras.layers.MaxPooling2D(2, name="pool"),
        keras.layers.Flatten(name="flat"),
        keras.layers.Dense(3, name="head"),
    ]
    return keras.Sequential([keras.Input((size, size, 1)), *layers])


def hidden(model: keras.Model, x: Any) -> dict[str, Any]:
    a = model.get_layer("a")(x)
    b = model.get_layer("b")(a)
    return {"a": a, "b": b, "head": model.get_layer("head")(b)}


def test_a_step_is_that_by_hand() -> None:
    teacher, student = mlp(6), mlp(3)
    twin = keras.models.clone_model(student)
    twin.set_weights(student.get_weights())
    distiller = KnowledgeProjection(
        teacher, student, ROUTES, student_loss_weight=0.4, projection_weight=0.7
    )
    assert [layer.units for layer in distiller.loss_layers] == [3, 3, 4]
    kernels = [tf.Variable(layer.kernel.numpy()) for layer in distiller.loss_layers]
    weights = np.random.default_rng(2).random(16).astype("float32")
    with tf.GradientTape() as tape:
        of_teacher, of_student = hidden(teacher, X), hidden(twin, X)
        values = []
        for (one, other), kernel in zip(ROUTES, kernels, strict=True):
            gap = tf.reduce_sum((of_teacher[one] @ kernel - of_student[other]) ** 2, axis=1)
            size = tf.stop_gradient(tf.reduce_sum(of_student[other] ** 2, axis=1))
            values.append(tf.reduce_mean(weights * gap / size))
        supervised = CE(Y, of_student["head"], sample_weight=weights)
        loss = 0.4 * supervised + 0.6 * 0.7 * sum(values)
    variables = [*twin.trainable_variables, *kernels]
    gradients = tape.gradient(loss, [getattr(v, "value", v) for v in twin.trainable_variables])
    expected = [np.asarray(v) - 0.3 * g for v, g in zip(variables, gradients, strict=False)]
    distiller.compile(keras.optimizers.SGD(0.3), CE)
    logs = distiller.fit(X, Y, sample_weight=weights, batch_size=16, verbose=0).history
    assert [logs[name][0] for name in NAMES] == pytest.approx([float(v) for v in values], rel=1e-4)
    assert logs["loss"][0] == pytest.approx(float(loss), rel=1e-4)
    for received, by_hand in zip(student.get_weights(), expected, strict=True):
        np.testing.assert_allclose(received, by_hand, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("prune_every", [1, 2])
def test_the_worst_route_is_pruned_until_one_is_left(prune_every: int) -> None:
    seen: list[list[tuple[str, str]]] = []

    class Watch(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            seen.append(list(self.model.routes))

    distiller = KnowledgeProjection(mlp(6), mlp(3), ROUTES, prune_every=prune_every)
    distiller.compile(keras.optimizers.Adam(0.01), CE)
    logs = distiller.fit(X, Y, epochs=5, callbacks=Watch(), **FIT).history
    scores = np.array([logs[name] for name in NAMES])
    left, expected = [0, 1, 2], []
    for epoch in range(5):
        if (epoch + 1) % prune_every == 0 and len(left) > 1:
            since = scores[:, epoch + 1 - prune_every : epoch + 1].mean(1)
            worst = max(left, key=lambda number, since=since: since[number])
            left.remove(worst)
            expected.append((*ROUTES[worst], epoch + 1, pytest.approx(since[worst], rel=1e-6)))
        assert seen[epoch] == [ROUTES[number] for number in left]
    assert [tuple(route) for route in distiller.pruned_routes] == expected
    assert len(distiller.routes) == 1
    last = ROUTES.index(distiller.routes[0])
    assert all((scores[number, -1] == 0) == (number != last) for number in range(3))


def test_a_pruned_route_has_no_part_in_training() -> None:
    """After the pruning a step is that of a distiller which never had the route."""
    keras.utils.set_random_seed(3)
    distiller = KnowledgeProjection(mlp(6), mlp(3), ROUTES[:2])
    distiller.compile(keras.optimizers.SGD(0.1), CE)
    distiller.fit(X, Y, **FIT)
    remaining = distiller.routes[0]
    other = keras.models.clone_model(distiller.student)
    other.set_weights(distiller.student.get_weights())
    alone = KnowledgeProjection(distiller.teacher, other, [remaining])
    projection = distiller.loss_layers[ROUTES.index(remaining)]
    alone.loss_layers[0].set_weights(projection.get_weights())
    alone.compile(keras.optimizers.SGD(0.1), CE)
    distiller.fit(X, Y, **FIT)
    logs = alone.fit(X, Y, epochs=2, initial_epoch=1, **FIT).history
    assert set(logs) == {"loss", "student_loss", "distillation_loss"}
    for a, b in zip(distiller.student.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def start(dtype: str | None = None, prune_every: int = 2) -> KnowledgeProjection:
    keras.utils.set_random_seed(4)
    distiller = KnowledgeProjection(
        mlp(6, dtype),
        mlp(3, dtype),
        ROUTES,
        [KnowledgeDistillation(2.0)],
        [0.5],
        projection_weight=[1.0, 0.9, 0.8],
        prune_every=prune_every,
    )
    distiller.compile(keras.optimizers.Adam(0.01), CE)
    return distiller


def assert_same(ours: KnowledgeProjection, theirs: KnowledgeProjection) -> None:
    assert ours.routes == theirs.routes
    assert ours.pruned_routes == theirs.pruned_routes
    for a, b in zip(ours.student.get_weights(), theirs.student.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", [None, "mixed_float16"])
def test_saved_in_the_middle_it_goes_on_to_the_same_weights(
    tmp_path: pathlib.Path, dtype: str | None
) -> None:
    previous = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype or previous)
    try:
        whole, part = start(dtype), start(dtype)
        whole.fit(X, Y, epochs=5, **FIT)
        # Between two prunings, so that a score is half known.
        part.fit(X, Y, epochs=3, **FIT)
        part.save(tmp_path / "part.keras")
    finally:
        keras.config.set_dtype_policy(previous)
    loaded = keras.saving.load_model(tmp_path / "part.keras")
    assert loaded.distillation_loss_weights == [0.5, 1.0, 0.9, 0.8]
    assert loaded.prune_every == 2
    assert (len(part.routes), len(loaded.routes)) == (2, 2)
    assert loaded.pruned_routes == part.pruned_routes
    assert loaded.get_config()["routes"] == [list(route) for route in ROUTES]
    loaded.fit(X, Y, epochs=5, initial_epoch=3, **FIT)
    assert_same(whole, loaded)
    assert isinstance(loaded.optimizer, keras.optimizers.LossScaleOptimizer) == (dtype is not None)


class KilledError(Exception):
    """As if the process had ended."""


def test_backup_and_restore_goes_on_to_the_same_weights(tmp_path: pathlib.Path) -> None:
    class Kill(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            if epoch == 2:
                raise KilledError

    whole, killed, resumed = (start(prune_every=1) for _ in range(3))
    whole.fit(X, Y, epochs=4, **FIT)
    backup = [keras.callbacks.BackupAndRestore(tmp_path / "backup") for _ in range(2)]
    with pytest.raises(KilledError):
        killed.fit(X, Y, epochs=4, callbacks=[backup[0], Kill()], **FIT)
    resumed.fit(X, Y, epochs=4, callbacks=[backup[1]], **FIT)
    assert_same(whole, resumed)


def test_images_automatic_and_other_sizes_from_a_cache() -> None:
    x = np.random.default_rng(0).standard_normal((8, 9, 9, 1)).astype("float32")
    y = np.arange(8) % 3
    teacher = images(4)
    automatic = KnowledgeProjection(teacher, images(2))
    assert automatic.routes == [("pool", "pool"), ("conv2", "conv2")]
    given = KnowledgeProjection(teacher, images(2), [(-3, "conv2"), ("conv1", 2), ("flat", "flat")])
    assert given.routes == [("pool", "conv2"), ("conv1", "pool"), ("flat", "flat")]
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(4)
    given.compile("adam", CE)
    cached = cache_teacher(data, teacher, layers=["pool", "conv1", "flat"])
    logs = given.fit(cached, epochs=3, validation_data=data, verbose=0).history
    assert np.isfinite(list(logs.values())).all()
    assert {key for key in logs if key.startswith("val_")} == {"val_loss"}
    assert len(given.routes) == 1


def test_a_route_without_a_value_is_the_worst_and_dead_features_are_no_nan() -> None:
    distiller = KnowledgeProjection(mlp(6), mlp(3), ROUTES)
    distiller.student.get_layer("a").set_weights([np.zeros((4, 3)), np.zeros(3)])
    distiller.compile(keras.optimizers.SGD(0.01), CE)
    logs = distiller.fit(X, Y, **FIT).history
    assert np.isfinite(list(logs.values())).all()
    left = dict(zip(NAMES, ROUTES, strict=True))
    names = [f"{one}_to_{other}" for one, other in distiller.routes]
    distiller.end_epoch({names[0]: 1e9, names[1]: float("nan")})
    assert distiller.routes == [left[names[0]]]


def test_mistakes_are_told_in_one_line() -> None:
    conv, dense = images(2), mlp(3)
    mistakes: list[tuple[Callable[[], object], str]] = [
        (lambda: KnowledgeProjection(mlp(6), dense, []), "pairs"),
        (lambda: KnowledgeProjection(mlp(6), dense, [("a", "b", "c")]), "pairs"),  # type: ignore[list-item]
        (lambda: KnowledgeProjection(mlp(6), dense, [("a", 0), (0, "a")]), "given once"),
        (lambda: KnowledgeProjection(mlp(6), dense, [("z", "a")]), "no layer 'z'"),
        (lambda: KnowledgeProjection(mlp(6), dense, [(9, "a")]), "no layer 9"),
        (lambda: KnowledgeProjection(mlp(6), dense), "paired by themselves"),
        (lambda: KnowledgeProjection(images(4), conv, [("conv1", "flat")]), "No regressor"),
        (lambda: KnowledgeProjection(mlp(6), dense, ROUTES, prune_every=0), "prune_every"),
        (lambda: KnowledgeProjection(mlp(6), dense, ROUTES, projection_weight=-1.0), "≥ 0"),
        (lambda: KnowledgeProjection(mlp(6), dense, ROUTES, projection_weight=[1.0]), "expected 3"),
        (lambda: KnowledgeProjection(None, dense, ROUTES), "teacher"),  # type: ignore[arg-type]
        (
            lambda: start().fit(X, Y, callbacks=keras.callbacks.CallbackList()),
            "list of callbacks",
        ),
    ]
    for mistake, words in mistakes:
        with pytest.raises(TfcompError, match=words) as caught:
            mistake()
        assert "\n" not in str(caught.value)


MIRRORED = """
    import keras, numpy as np, tensorflow as tf
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
    )
    from tfcomp.distillation import KnowledgeProjection

    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((24, 6)).astype("float32"), rng.integers(0, 3, 24)
    CE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def net(width):
        dense = keras.layers.Dense
        layers = [dense(width, "tanh", name="a"), dense(width, "tanh", name="b"), dense(3)]
        return keras.Sequential([keras.Input((6,)), *layers])

    def train(strategy):
        keras.utils.set_random_seed(1)
        with strategy.scope():
            routes = [("a", "a"), ("b", "a"), ("b", "b")]
            distiller = KnowledgeProjection(net(8), net(4), routes)
            distiller.compile(keras.optimizers.SGD(0.1, momentum=0.9), CE, metrics=["accuracy"])
        data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
        logs = distiller.fit(data, epochs=4, verbose=0).history
        return distiller, logs

    one = train(tf.distribute.get_strategy())
    two = train(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]))
    assert one[0].routes == two[0].routes and len(two[0].pruned_routes) == 2
    for a, b in zip(one[0].student.get_weights(), two[0].student.get_weights()):
        assert np.abs(a - b).max() < 1e-5, np.abs(a - b).max()
    for name, value in one[1].items():
        assert np.allclose(value, two[1][name], rtol=1e-4), (name, value, two[1][name])
    print("equal")
"""


@pytest.mark.long
def test_two_replicas_make_the_updates_of_one() -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MIRRORED)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "equal"
