"""AdversarialDistiller: both updates by hand, both optimizers saved, two replicas as one."""

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

from tfcomp.distillation import (
    AdversarialDistiller,
    DistillationInputs,
    JacobianMatching,
    KnowledgeDistillation,
    LogitL1,
    cache_teacher,
)
from tfcomp.errors import TfcompError

CE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
X = np.random.default_rng(0).standard_normal((16, 4)).astype("float32")
Y = np.random.default_rng(1).integers(0, 3, 16)


def mlp(width: int, activation: str | None = None, dtype: str | None = None) -> keras.Model:
    dense = keras.layers.Dense
    layers = [dense(width, "tanh", dtype=dtype), dense(3, activation, dtype="float32")]
    return keras.Sequential([keras.Input((4,)), *layers])


def small(l2: float = 0.0) -> keras.Model:
    inputs = keras.Input((3,))
    hidden = keras.layers.Dense(5, "tanh", kernel_regularizer=keras.regularizers.L2(l2))(inputs)
    return keras.Model(inputs, [keras.layers.Dense(1)(hidden), keras.layers.Dense(3)(hidden)])


def copy(model: keras.Model) -> keras.Model:
    twin = keras.models.clone_model(model)
    twin.set_weights(model.get_weights())
    return twin


def log_sigmoid(a: Any) -> Any:
    return -tf.math.log(1 + tf.exp(-a))


def log_p(z: Any, labels: np.ndarray) -> Any:
    log_all = z - tf.math.log(tf.reduce_sum(tf.exp(z), axis=-1, keepdims=True))
    return tf.gather(log_all, labels, axis=1, batch_dims=1)


def gradient_step(loss: Any, tape: tf.GradientTape, model: keras.Model, rate: float) -> None:
    gradients = tape.gradient(loss, model.trainable_variables)
    for variable, gradient in zip(model.trainable_variables, gradients, strict=True):
        variable.assign_sub(rate * gradient)


@pytest.mark.parametrize("objective", ["minimax", "non_saturating"])
@pytest.mark.parametrize("ending", [None, "softmax"])
def test_both_updates_are_those_by_hand(objective: Any, ending: str | None) -> None:
    teacher, student, judge = mlp(6), mlp(4, ending), small(0.1)
    twin, twin_judge = copy(student), copy(judge)
    weights = np.random.default_rng(2).random(16).astype("float32")

    z_t = teacher(X)
    if ending:
        z_t = tf.math.log(tf.nn.softmax(z_t))
    with tf.GradientTape(persistent=True) as tape:
        z_s = tf.math.log(twin(X)) if ending else twin(X)
        judged = [twin_judge(z_t), twin_judge(tf.stop_gradient(z_s))]
        told = -log_sigmoid(judged[0][0][:, 0]) - log_sigmoid(-judged[1][0][:, 0])
        values = 0.5 * (told - log_p(judged[0][1], Y) - log_p(judged[1][1], Y))
        of_judge = tf.reduce_mean(weights * values)
        decay = 0.1 * tf.reduce_sum(twin_judge.layers[1].kernel ** 2)
        both = of_judge + decay
    right = np.mean([judged[0][0][:, 0] > 0, judged[1][0][:, 0] < 0])
    gradient_step(both, tape, twin_judge, 0.5)
    with tf.GradientTape() as tape:
        z_s = tf.math.log(twin(X)) if ending else twin(X)
        source, classes = twin_judge(z_s)
        source = source[:, 0]
        deceit = log_sigmoid(-source) if objective == "minimax" else -log_sigmoid(source)
        adversarial = tf.reduce_mean(weights * 0.5 * (deceit - log_p(classes, Y)))
        l1 = tf.reduce_mean(weights * tf.reduce_sum(tf.abs(z_s - z_t), axis=-1))
        supervised = -tf.reduce_mean(weights * log_p(z_s, Y))
        loss = 0.4 * supervised + 0.6 * (l1 + 0.7 * adversarial)
    gradient_step(loss, tape, twin, 0.2)

    distiller = AdversarialDistiller(
        teacher,
        student,
        student_loss_weight=0.4,
        adversarial_weight=0.7,
        objective=objective,
        discriminator=judge,
    )
    own_loss = keras.losses.SparseCategoricalCrossentropy(from_logits=ending is None)
    distiller.compile(
        keras.optimizers.SGD(0.2), own_loss, discriminator_optimizer=keras.optimizers.SGD(0.5)
    )
    logs = distiller.fit(X, Y, sample_weight=weights, batch_size=16, verbose=0).history
    expected = {
        "loss": loss,
        "student_loss": supervised,
        "logit_l1": l1,
        "adversarial_loss": adversarial,
        "discriminator_loss": of_judge,
        "discriminator_accuracy": right,
        "distillation_loss": l1 + 0.7 * adversarial,
    }
    assert set(logs) == set(expected)
    for key, value in expected.items():
        assert logs[key][0] == pytest.approx(float(value), rel=1e-4), key
    for model, by_hand in [(student, twin), (judge, twin_judge)]:
        for a, b in zip(model.get_weights(), by_hand.get_weights(), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_the_discriminator_is_no_part_of_the_student_s_training() -> None:
    distiller = AdversarialDistiller(mlp(6), mlp(4))
    distiller.compile("adam", CE, metrics=["accuracy"])
    distiller.fit(X, Y, verbose=0)
    trained = {id(variable) for variable in distiller.trainable_variables}
    assert trained == {id(variable) for variable in distiller.student.trainable_variables}
    units = [layer.units for layer in distiller.discriminator.layers[1:]]
    assert units == [128, 256, 128, 1, 3]
    assert set(distiller.evaluate(X, Y, verbose=0, return_dict=True)) == {"loss", "accuracy"}
    assert distiller.predict(X, verbose=0).shape == (16, 3)


def start(dtype: str | None = None) -> AdversarialDistiller:
    keras.utils.set_random_seed(4)
    losses = [KnowledgeDistillation(2.0), LogitL1()]
    distiller = AdversarialDistiller(
        mlp(6, dtype=dtype), mlp(4, dtype=dtype), losses, [1.0, 0.5], objective="non_saturating"
    )
    distiller.compile(keras.optimizers.Adam(0.01), CE, discriminator_optimizer="rmsprop")
    return distiller


FIT: dict[str, Any] = {"batch_size": 8, "shuffle": False, "verbose": 0}


def assert_same(ours: AdversarialDistiller, theirs: AdversarialDistiller) -> None:
    for part in ("student", "discriminator"):
        pairs = [getattr(distiller, part).get_weights() for distiller in (ours, theirs)]
        for a, b in zip(*pairs, strict=True):
            np.testing.assert_array_equal(a, b)
    optimizers = [distiller.discriminator_optimizer for distiller in (ours, theirs)]
    for a, b in zip(*(optimizer.variables for optimizer in optimizers), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", [None, "mixed_float16"])
def test_saved_in_the_middle_it_goes_on_to_the_same_weights(
    tmp_path: pathlib.Path, dtype: str | None
) -> None:
    previous = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype or previous)
    try:
        whole, part = start(dtype), start(dtype)
        whole.fit(X, Y, epochs=2, **FIT)
        part.fit(X, Y, **FIT)
        part.save(tmp_path / "part.keras")
    finally:
        keras.config.set_dtype_policy(previous)
    loaded = keras.saving.load_model(tmp_path / "part.keras")
    ours, theirs = part.get_config(), loaded.get_config()
    for key in ("objective", "adversarial_weight", "distillation_loss_weights", "name"):
        assert theirs[key] == ours[key]
    assert [loss.name for loss in loaded.distillation_losses] == [
        "knowledge_distillation",
        "logit_l1",
        "adversarial_loss",
    ]
    loaded.fit(X, Y, **FIT)
    assert_same(whole, loaded)
    scaled = keras.optimizers.LossScaleOptimizer
    for optimizer in (loaded.optimizer, loaded.discriminator_optimizer):
        assert isinstance(optimizer, scaled) == (dtype is not None)
    assert int(loaded.discriminator_optimizer.iterations) == 4


class KilledError(Exception):
    """As if the process had ended."""


def test_backup_and_restore_goes_on_to_the_same_weights(tmp_path: pathlib.Path) -> None:
    class Kill(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            if epoch == 1:
                raise KilledError

    whole, killed, resumed = start(), start(), start()
    whole.fit(X, Y, epochs=2, **FIT)
    backup = [keras.callbacks.BackupAndRestore(tmp_path / "backup") for _ in range(2)]
    with pytest.raises(KilledError):
        killed.fit(X, Y, epochs=2, callbacks=[backup[0], Kill()], **FIT)
    resumed.fit(X, Y, epochs=2, callbacks=[backup[1]], **FIT)
    assert_same(whole, resumed)


def test_a_cached_teacher_and_samples_without_labels() -> None:
    teacher, student = mlp(6), mlp(4)
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8)
    both = []
    for cached in (False, True):
        distiller = AdversarialDistiller(teacher, copy(student), discriminator=small())
        distiller.discriminator.set_weights([0.1 + 0 * w for w in small().get_weights()])
        distiller.compile("sgd", CE, discriminator_optimizer="sgd")
        distiller.fit(cache_teacher(data, teacher) if cached else data, verbose=0)
        both.append(distiller.student.get_weights())
    for a, b in zip(*both, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)

    labelled = np.arange(16) < 8
    moved = []
    for wrong in (0, 1):
        labels = np.where(labelled, Y, wrong)
        inputs = DistillationInputs(X, labelled=labelled)
        marked = tf.data.Dataset.from_tensor_slices((inputs, labels)).batch(16)
        distiller = AdversarialDistiller(teacher, copy(student), discriminator=small())
        distiller.discriminator.set_weights([0.1 + 0 * w for w in small().get_weights()])
        distiller.compile("sgd", CE, discriminator_optimizer="sgd")
        distiller.fit(marked, verbose=0)
        moved.append([*distiller.student.get_weights(), *distiller.discriminator.get_weights()])
    for a, b in zip(*moved, strict=True):
        np.testing.assert_array_equal(a, b)


def test_it_mixes_with_losses_that_ask_for_gradients() -> None:
    losses = [LogitL1(), JacobianMatching()]
    distiller = AdversarialDistiller(mlp(6), mlp(4), losses, [1.0, 0.1])
    distiller.compile("adam", CE)
    logs = distiller.fit(X, Y, epochs=2, verbose=0).history
    assert np.isfinite(list(logs.values())).all()


def test_mistakes_are_told_in_one_line() -> None:
    one = keras.optimizers.SGD()
    inputs = keras.Input((4,))
    heads = [keras.layers.Dense(3)(inputs) for _ in range(2)]
    several = [keras.Model(inputs, heads), keras.Model(inputs, list(heads))]
    narrow = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4)])
    other = keras.Sequential([keras.Input((5,)), keras.layers.Dense(4)])

    def compiled(**kwargs: Any) -> AdversarialDistiller:
        distiller = AdversarialDistiller(mlp(6), mlp(4), student_loss_weight=0.0)
        distiller.compile(one, **kwargs)
        return distiller

    mistakes: list[tuple[Callable[[], object], str]] = [
        (lambda: AdversarialDistiller(*several), "one output"),
        (lambda: AdversarialDistiller(mlp(6), mlp(4), discriminator=narrow), "two heads"),
        (lambda: AdversarialDistiller(mlp(6), mlp(4), discriminator=other), "take logits"),
        (lambda: AdversarialDistiller(mlp(6), mlp(4), objective="wgan"), "objective"),  # type: ignore[arg-type]
        (lambda: AdversarialDistiller(mlp(6), mlp(4), adversarial_weight=-1.0), "≥ 0"),
        (lambda: AdversarialDistiller(mlp(6), mlp(4), LogitL1(), [1.0, 2.0]), "expected 1"),
        (lambda: AdversarialDistiller(None, mlp(4)), "teacher_from_logits"),
        (lambda: compiled(discriminator_optimizer=one), "an optimizer each"),
        (
            lambda: compiled(discriminator_optimizer=keras.optimizers.SGD(use_ema=True)),
            "averaged",
        ),
        (lambda: compiled().fit(X, verbose=0), "labelled dataset"),
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
    from tfcomp.distillation import AdversarialDistiller

    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((24, 6)).astype("float32"), rng.integers(0, 3, 24)
    weights = rng.random(24).astype("float32")
    CE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def net(width):
        layers = [keras.layers.Dense(width, "tanh"), keras.layers.Dense(3)]
        return keras.Sequential([keras.Input((6,)), *layers])

    def judge():
        inputs = keras.Input((3,))
        hidden = keras.layers.Dense(8, "tanh", kernel_regularizer="l2")(inputs)
        return keras.Model(inputs, [keras.layers.Dense(1)(hidden), keras.layers.Dense(3)(hidden)])

    def train(strategy):
        keras.utils.set_random_seed(1)
        with strategy.scope():
            distiller = AdversarialDistiller(net(8), net(4), discriminator=judge())
            distiller.compile(
                keras.optimizers.SGD(0.1, momentum=0.9), CE, metrics=["accuracy"],
                discriminator_optimizer=keras.optimizers.SGD(0.2, momentum=0.9),
            )
        before = [*distiller.student.get_weights(), *distiller.discriminator.get_weights()]
        data = tf.data.Dataset.from_tensor_slices((x, y, weights)).batch(8)
        logs = distiller.fit(data, verbose=0).history
        after = [*distiller.student.get_weights(), *distiller.discriminator.get_weights()]
        assert all(np.abs(a - b).max() > 1e-3 for a, b in zip(before, after))
        return after, logs

    one = train(tf.distribute.get_strategy())
    two = train(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]))
    for a, b in zip(one[0], two[0]):
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
