"""What all losses on layers hold to in a Distiller: models that differ, saving, precision."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

from tfcomp.callbacks import DistillationStage
from tfcomp.distillation import (
    ActivationBoundaries,
    AttentionTransfer,
    Distiller,
    FactorTransfer,
    FitNetsHint,
    FlowOfSolutionProcedure,
    GradientAttentionTransfer,
    KnowledgeDistillation,
    NeuronSelectivityTransfer,
    VariationalInformationDistillation,
)

CE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
Make = Callable[[], Any]

LOSSES: list[Make] = [
    FitNetsHint,
    AttentionTransfer,
    GradientAttentionTransfer,
    ActivationBoundaries,
    NeuronSelectivityTransfer,
    FlowOfSolutionProcedure,
    VariationalInformationDistillation,
    FactorTransfer,
]
each_loss = pytest.mark.parametrize("make", LOSSES)
# Those with layers of several kinds; for the others there is nothing more to save.
with_layers = (ActivationBoundaries, VariationalInformationDistillation, FactorTransfer)
each_saved = pytest.mark.parametrize(
    "make",
    [
        make if make in with_layers else pytest.param(make, marks=pytest.mark.long)
        for make in LOSSES
    ],
)


def net(width: int, depth: int, size: int = 8, norm: bool = True) -> keras.Model:
    """Two stages of `depth` convolutions; the activations of the first ones are fused."""
    x = inputs = keras.Input((size, size, 1))
    for stage in (1, 2):
        for index in range(depth):
            activation = "relu" if index == 0 else None
            x = keras.layers.Conv2D(
                width * stage,
                3,
                2 if index == 0 else 1,
                padding="same",
                activation=activation,
                name=f"conv{stage}_{index}",
            )(x)
        if norm:
            x = keras.layers.BatchNormalization(name=f"norm{stage}")(x)
        x = keras.layers.ReLU(name=f"relu{stage}")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(3)(x))


@pytest.fixture(scope="module")
def images() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    return rng.standard_normal((16, 8, 8, 1)).astype("float32"), rng.integers(0, 3, 16)


def ready(loss: Any, teacher: keras.Model, x: Any) -> None:
    if isinstance(loss, FactorTransfer):
        loss.fit_paraphraser(teacher, x, epochs=1, verbose=0)


@each_loss
def test_configuration_comes_back(make: Make) -> None:
    loss = make()
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(loss)))
    clone = keras.saving.deserialize_keras_object(config)
    assert type(clone) is type(loss)
    assert clone.get_config() == loss.get_config()


@pytest.mark.parametrize(
    "loss",
    [
        FitNetsHint("a", -2),
        AttentionTransfer(["a", "b"], [1, 2], 3, "max_p", "paper", "name"),
        GradientAttentionTransfer(True, False, "name"),
        ActivationBoundaries(["a"], ["b"], 0.5, "paper", "name"),
        FlowOfSolutionProcedure([["a", "b"]], [[0, -1]], "name"),
        VariationalInformationDistillation("a", "b", 2.0, "name"),
        FactorTransfer("a", "b", 0.25, 2, "paper", "name", paraphraser_epochs=3),
    ],
)
def test_arguments_are_in_the_configuration(loss: Any) -> None:
    config = loss.get_config()
    assert type(loss).from_config(json.loads(json.dumps(config))).get_config() == config
    defaults = type(loss)().get_config()
    # Every argument given above differs from its default.
    assert [key for key in config if config[key] == defaults[key]] in ([], ["name"])


@each_saved
def test_models_of_other_width_and_depth_train_and_go_on_after_loading(
    make: Make, images: Any, tmp_path: pathlib.Path
) -> None:
    (x, y), teacher, student = images, net(6, 2), net(4, 1)
    names = [w.path for w in student.weights]
    of_teacher = teacher.get_weights()
    loss = make()
    distiller = Distiller(teacher, student, [loss, KnowledgeDistillation(2.0)])
    ready(loss, teacher, x)
    before = [layer.get_weights() for layer in distiller.loss_layers]
    distiller.compile("adam", loss=CE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        distiller.fit(x, y, batch_size=8, epochs=1, verbose=0)
    # Every trainable weight of a regressor has moved, and none is in the student.
    for layer, old in zip(distiller.loss_layers, before, strict=True):
        new = layer.get_weights()
        for weight, a, b in zip(layer.weights, old, new, strict=True):
            assert np.isfinite(b).all()
            if any(weight is one for one in layer.trainable_weights):
                assert not np.array_equal(a, b) or _is_useless(weight.path), weight.path
    assert distiller.student is student
    assert [w.path for w in student.weights] == names
    for old, new in zip(of_teacher, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)

    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    for model in (distiller, loaded):
        model.fit(x, y, batch_size=8, verbose=0, shuffle=False)
    for old, new in zip(distiller.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_allclose(old, new, rtol=1e-4, atol=1e-6)


def _is_useless(path: str) -> bool:
    """What batch normalisation takes off again."""
    return "connector" in path and path.endswith("bias")


def trained_with_all(teacher: keras.Model, student: keras.Model, images: Any) -> dict[str, Any]:
    """One step with all of the losses at once."""
    x, y = images
    losses = [make() for make in LOSSES]
    for loss in losses:
        if not isinstance(loss, GradientAttentionTransfer):
            layers: Any = ["relu1", "relu2"] if loss.several else "relu2"
            if isinstance(loss, FlowOfSolutionProcedure):
                layers = [["conv1_0", "relu2"]]
            loss.teacher_layer = loss.student_layer = layers
        ready(loss, teacher, x)
    distiller = Distiller(teacher, student, losses)
    distiller.compile("sgd", loss=CE)
    history: dict[str, Any] = distiller.fit(x, y, verbose=0).history
    assert len(distiller.distillation_losses) == len(LOSSES) < len(history)
    return history


@pytest.mark.parametrize("size", [4, pytest.param(16, marks=pytest.mark.long)])
def test_maps_of_other_sizes_are_compared(images: Any, size: int) -> None:
    history = trained_with_all(net(6, 2), net(4, 1, size), images)
    assert all(np.isfinite(values).all() for values in history.values())
    assert all(history[name][0] != 0 for name in history)


@pytest.mark.parametrize("sizes", [(5,), (3, 4, 2)])
def test_maps_with_one_or_three_axes(sizes: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    teacher = rng.normal(size=(2, *sizes, 4)).astype("float32")
    student = rng.normal(size=(2, *sizes, 3)).astype("float32")
    for make in LOSSES:
        loss = make()
        pair: Any = (teacher, student)
        if isinstance(loss, GradientAttentionTransfer):
            continue
        if isinstance(loss, FlowOfSolutionProcedure):
            larger = [np.repeat(maps, 2, axis=1) for maps in pair]
            pair = [[[big, maps]] for big, maps in zip(larger, pair, strict=True)]
        elif loss.several:
            pair = ([teacher], [student])
        loss.validate_outputs(*pair)
        if isinstance(loss, FactorTransfer):
            loss.layers[1].fitted.assign(1.0)
        assert loss.per_sample(*pair).shape == (2,)
        assert np.all(loss.per_sample(*pair) > 0)


def test_half_precision_trains(images: Any) -> None:
    keras.config.set_dtype_policy("mixed_float16")
    try:
        student = net(4, 1)
        history = trained_with_all(net(6, 1), student, images)
    finally:
        keras.config.set_dtype_policy("float32")
    assert all(np.isfinite(values).all() for values in history.values())
    for weight in student.get_weights():
        assert np.isfinite(weight).all()


def test_several_share_one_pass_and_sample_weights_count(images: Any) -> None:
    (x, y), teacher, student = images, net(6, 1), net(4, 1)
    losses = [AttentionTransfer(), NeuronSelectivityTransfer(), FitNetsHint()]
    distiller = Distiller(teacher, student, losses, student_loss_weight=0.0)
    distiller.compile(keras.optimizers.SGD(0.0))
    weights = np.arange(16) / 8
    plain = distiller.fit(x, verbose=0, batch_size=16).history
    halved = distiller.fit(x, y, sample_weight=0.5 * np.ones(16), verbose=0, batch_size=16).history
    for name in ("attention_transfer", "neuron_selectivity_transfer", "fitnets_hint"):
        assert halved[name][0] == pytest.approx(0.5 * plain[name][0], rel=1e-3)
    assert np.isfinite(distiller.fit(x, y, sample_weight=weights, verbose=0).history["loss"]).all()


def test_boundaries_initialise_then_the_response_is_distilled(images: Any) -> None:
    (x, y), teacher, student = images, net(6, 1), net(4, 1)
    losses = [ActivationBoundaries(), KnowledgeDistillation()]
    distiller = Distiller(teacher, student, losses)
    distiller.compile(keras.optimizers.Adam(0.01), loss=CE)
    head, connector = student.layers[-1].get_weights()[0], distiller.loss_layers[0]
    stage = DistillationStage("activation_boundaries", epochs=30)
    history = distiller.fit(x, y, epochs=30, verbose=0, callbacks=[stage]).history
    values = history["activation_boundaries"]
    assert values[-1] < 0.8 * values[0]
    np.testing.assert_array_equal(student.layers[-1].get_weights()[0], head)
    kernel = connector.get_weights()[0]
    stage = DistillationStage("activation_boundaries", epochs=30)
    distiller.fit(x, y, initial_epoch=30, epochs=32, verbose=0, callbacks=[stage])
    assert not np.array_equal(student.layers[-1].get_weights()[0], head)
    np.testing.assert_array_equal(connector.get_weights()[0], kernel)


def test_boundaries_look_before_fused_activations() -> None:
    teacher, student = net(4, 1, norm=False), net(4, 1, norm=False)
    x = np.random.default_rng(0).standard_normal((8, 8, 8, 1)).astype("float32")
    loss = ActivationBoundaries("conv1_0", "conv1_0", variant="paper")
    distiller = Distiller(teacher, student, loss, student_loss_weight=0.0)
    distiller.compile(keras.optimizers.SGD(0.0))
    before = [
        np.asarray(keras.ops.conv(x, model.get_layer("conv1_0").kernel, strides=2, padding="same"))
        for model in (teacher, student)
    ]
    gap = np.maximum(1 - np.where(before[0] > 0, before[1], -before[1]), 0)
    value = distiller.fit(x, verbose=0).history["distillation_loss"][0]
    assert value == pytest.approx((gap**2).sum() / 8, rel=1e-4)


MIRRORED = """
    import keras, numpy as np, tensorflow as tf
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
    )
    from tfcomp.distillation import *

    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((24, 6, 6, 1)).astype("float32"), rng.integers(0, 3, 24)
    CE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def net(width):
        layers = [keras.layers.Conv2D(width, 3, activation="tanh", name=n) for n in "ab"]
        layers += [keras.layers.Flatten(), keras.layers.Dense(3)]
        return keras.Sequential([keras.Input((6, 6, 1)), *layers])

    LOSSES = [
        AttentionTransfer, GradientAttentionTransfer, ActivationBoundaries, FactorTransfer,
        NeuronSelectivityTransfer, VariationalInformationDistillation,
        lambda: FlowOfSolutionProcedure([["a", "b"]], [["a", "b"]]),
    ]

    def train(strategy, make):
        keras.utils.set_random_seed(1)
        with strategy.scope():
            teacher, student = net(4), net(3)
            loss = make()
            distiller = Distiller(teacher, student, loss, student_loss_weight=0.3)
            distiller.compile(keras.optimizers.SGD(0.1), loss=CE)
            data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
            if isinstance(loss, FactorTransfer):
                loss.fit_paraphraser(teacher, data, epochs=2, verbose=0)
        before = student.get_weights()
        distiller.fit(data, verbose=0, shuffle=False)
        assert np.abs(student.get_weights()[0] - before[0]).max() > 1e-4
        return distiller.get_weights()

    mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    for make in LOSSES:
        for a, b in zip(train(tf.distribute.get_strategy(), make), train(mirrored, make)):
            assert np.abs(a - b).max() < 1e-5, (make, np.abs(a - b).max())
        print("equal:", make)
"""


@pytest.mark.long
def test_two_replicas_make_the_update_of_one() -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MIRRORED)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("equal:") == 7
