"""Which layers are compared, and what a batch may tell beside the inputs."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcomp.distillation import (
    DistillationInputs,
    Distiller,
    FitNetsHint,
    KnowledgeDistillation,
    PerSampleLoss,
    cache_teacher,
)
from tfcomp.distillation.extractor import FeatureExtractor
from tfcomp.distillation.losses.feature_loss import EmbeddingLoss, FeatureLoss
from tfcomp.distillation.losses.regressor import make_regressor
from tfcomp.distillation.pairing import embedding_layer, layer_name, pair_layers
from tfcomp.errors import TfcompError
from tfcomp.graph import pre_activation, rebuild

CE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def net(width: int, depth: int = 1, size: int = 16, fused: bool = False) -> keras.Model:
    x = inputs = keras.Input((size, size, 3))
    x = keras.layers.Rescaling(1 / 255, name="rescale")(x)
    for stage in (1, 2):
        for block in range(depth):
            strides, activation = 2 if block == 0 else 1, "relu" if fused else None
            name = f"conv{stage}_{block}"
            x = keras.layers.Conv2D(
                width * stage, 3, strides, "same", activation=activation, name=name
            )(x)
            if not fused:
                x = keras.layers.ReLU(name=f"relu{stage}_{block}")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    x = keras.layers.Dropout(0.5, name="dropout")(x)
    return keras.Model(inputs, keras.layers.Dense(3, name="head")(x))


def linear_part(model: keras.Model, name: str) -> keras.Model:
    layer = model.get_layer(name)
    return keras.Model(model.input, pre_activation(layer, layer.input, layer.output))


class Gap(FeatureLoss):
    """Mean squared difference of the means over channels."""

    def per_sample(self, teacher_outputs: Any, student_outputs: Any) -> Any:
        ops = keras.ops
        gap = ops.mean(teacher_outputs, -1) - ops.mean(student_outputs, -1)
        return ops.mean(ops.square(gap), axis=list(range(1, len(gap.shape))))


class Gaps(Gap):
    several = True

    def per_sample(self, teacher_outputs: Any, student_outputs: Any) -> Any:
        return sum(
            Gap.per_sample(self, t, s)
            for t, s in zip(teacher_outputs, student_outputs, strict=True)
        )


class GapBefore(Gap):
    pre_activation = True


class EmbeddingGap(EmbeddingLoss, Gap):
    pass


def test_the_last_layers_of_each_resolution_are_paired_the_deepest_first():
    assert pair_layers(net(8, depth=3), net(4)) == [
        ("relu2_2", "relu2_0"),
        ("relu1_2", "relu1_0"),
    ]
    with pytest.raises(TfcompError, match=r"16×16|8×8 \(conv1_0, relu1_0\)"):
        pair_layers(net(8), net(4, size=18))


def test_layers_by_index_and_the_embedding():
    model = net(4)
    assert layer_name(model, 2) == "conv1_0"
    assert layer_name(model, -1) == "head"
    with pytest.raises(TfcompError, match="7: dropout, 8: head"):
        layer_name(model, 9)
    assert embedding_layer(model) == "pool"
    with pytest.raises(TfcompError, match="no embedding"):
        embedding_layer(keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]))


def test_a_distiller_finds_the_layers():
    teacher, student = net(8, depth=2), net(4)
    by_index, several, embedding = Gap(-4, -4), Gaps(), EmbeddingGap()
    Distiller(teacher, student, [by_index, several, embedding])
    assert (by_index.teacher_layer_name, by_index.student_layer_name) == ("relu2_1", "relu2_0")
    assert several.teacher_layer_name == ["relu2_1", "relu1_1"]
    assert embedding.student_layer_name == "pool"
    assert by_index.get_config()["teacher_layer"] == -4
    assert several.get_config()["teacher_layer"] is None
    with pytest.raises(TfcompError, match="or neither"):
        Gap("relu2_1")
    with pytest.raises(TfcompError, match="one layer of each"):
        Gap(["relu2_1"], ["relu2_0"])
    with pytest.raises(TfcompError, match="as many layers"):
        Gaps(["relu2_1", "relu1_1"], "relu2_0")
    with pytest.raises(TfcompError, match="made for other features"):
        Distiller(net(16), net(4), several)


@pytest.mark.parametrize(
    "student, teacher",
    [
        ((None, 5), (None, 7)),
        ((None, 6, 6, 2), (None, 6, 6, 5)),
        ((None, 7, 6, 2), (None, 4, 6, 5)),
        ((None, 3, 3, 2), (None, 6, 6, 5)),
        ((None, 9, 2), (None, 4, 3)),
        ((None, 4, 2), (None, 9, 3)),
    ],
)
def test_a_regressor_leads_to_the_teachers_shape(student, teacher):
    layer = make_regressor(student, teacher, "regressor")
    assert tuple(layer(np.ones((2, *student[1:]), "float32")).shape) == (2, *teacher[1:])
    assert {w.path.split("/")[-1] for w in layer.trainable_weights} == {"kernel", "bias"}


def test_a_regressor_is_refused_between_a_vector_and_a_map():
    with pytest.raises(TfcompError, match="two vectors or two maps"):
        make_regressor((None, 5), (None, 4, 4, 2), "regressor")


def test_pre_activations_of_fused_and_separate_activations_agree():
    fused, separate = net(4, fused=True), net(4)
    separate.set_weights(fused.get_weights())
    x = np.random.default_rng(0).integers(0, 255, (2, 16, 16, 3)).astype("float32")
    values = [
        linear_part(model, name)(x)
        for model, name in ((fused, "conv2_0"), (separate, "relu2_0"), (separate, "conv2_0"))
    ]
    assert float(np.min(values[0])) < 0
    np.testing.assert_array_equal(values[0], values[1])
    np.testing.assert_array_equal(values[0], values[2])
    # The caller's layer is as it was, and still says what it gave.
    assert fused.get_layer("conv2_0").activation is keras.activations.relu
    assert fused.get_layer("conv2_0").output.shape == (None, 4, 4, 8)


def test_pre_activations_are_trained_through():
    teacher, student = net(8, fused=True), net(4, fused=True)
    loss = GapBefore("conv2_0", "conv2_0")
    distiller = Distiller(teacher, student, loss, student_loss_weight=0.0)
    before = student.get_layer("conv2_0").get_weights()[0]
    distiller.compile(keras.optimizers.SGD(1.0))
    x = np.random.default_rng(0).integers(0, 255, (4, 16, 16, 3)).astype("float32")
    expected = np.mean(
        (
            np.mean(linear_part(teacher, "conv2_0")(x), -1)
            - np.mean(linear_part(student, "conv2_0")(x), -1)
        )
        ** 2
    )
    history = distiller.fit(x, batch_size=4, verbose=0)
    assert history.history["loss"][0] == pytest.approx(expected, rel=1e-5)
    assert not np.array_equal(student.get_layer("conv2_0").get_weights()[0], before)


def test_images_of_two_sizes_are_resized_for_the_model_that_wants_another():
    teacher, student = net(8, size=16), net(4, size=8)
    hint = FitNetsHint("conv1_0", "conv1_0")
    distiller = Distiller(teacher, student, [KnowledgeDistillation(), hint], None, 0.5)
    distiller.compile("sgd", loss=CE, metrics=["accuracy"])
    rng = np.random.default_rng(0)
    for size in (16, 8, 12):
        x = rng.integers(0, 255, (6, size, size, 3)).astype("uint8")
        history = distiller.fit(x, rng.integers(0, 3, 6), verbose=0).history
        assert np.isfinite(history["loss"][0])
        small = tf.image.resize(x, (8, 8), antialias=True)
        np.testing.assert_allclose(
            distiller.predict(x, verbose=0), student.predict(small, verbose=0), rtol=1e-5, atol=1e-6
        )
    other = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
    with pytest.raises(TfcompError, match="same inputs"):
        Distiller(teacher, other, KnowledgeDistillation())


def test_cached_layers_train_as_the_teacher_itself_does(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 255, (12, 16, 16, 3)).astype("float32"), rng.integers(0, 3, 12)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(4)
    teacher = net(8)

    def train(dataset: tf.data.Dataset) -> Any:
        keras.utils.set_random_seed(3)
        losses = [KnowledgeDistillation(), Gaps(), GapBefore()]
        distiller = Distiller(teacher, net(4), losses)
        distiller.compile("sgd", loss=CE)
        distiller.fit(dataset, epochs=2, verbose=0, shuffle=False)
        return distiller.student.get_weights()

    layers = ["relu2_0", "relu1_0", "relu2_0/pre_activation"]
    cached = cache_teacher(data, teacher, tmp_path / "cache", layers=layers)
    element = next(iter(cached))[0]
    assert sorted(element.teacher_layers) == sorted(layers)
    for expected, received in zip(train(data), train(cached), strict=True):
        np.testing.assert_allclose(received, expected, rtol=1e-5, atol=1e-6)
    stamp = (tmp_path / "cache").stat().st_mtime_ns
    cache_teacher(data, teacher, tmp_path / "cache", layers=layers)
    assert (tmp_path / "cache").stat().st_mtime_ns == stamp
    again = cache_teacher(data, teacher, tmp_path / "cache", layers=layers[:1])
    assert list(next(iter(again))[0].teacher_layers) == layers[:1]
    with pytest.raises(TfcompError, match=r"layers \['relu1_0'\]"):
        train(again)


def test_missing_labels_switch_off_the_hard_term_alone():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 255, (8, 16, 16, 3)).astype("float32")
    y, labelled = rng.integers(0, 3, 8), np.arange(8) % 4 != 0
    teacher = net(8)
    student = net(4)
    student.get_layer("dropout").rate = 0.0
    logits = student.predict(x, verbose=0)
    distiller = Distiller(teacher, student, KnowledgeDistillation(2.0), student_loss_weight=0.25)
    distiller.compile(keras.optimizers.SGD(0.0), loss=CE, metrics=["accuracy"])
    inputs = DistillationInputs(x, labelled=labelled)
    data = tf.data.Dataset.from_tensor_slices((inputs, y)).batch(8)
    history = distiller.fit(data, verbose=0).history
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    hard = float(np.sum(-log_p[np.arange(8), y] * labelled) / 8)
    assert history["student_loss"][0] == pytest.approx(hard, rel=1e-5)
    accuracy = np.mean(logits.argmax(1)[labelled] == y[labelled])
    assert history["accuracy"][0] == pytest.approx(accuracy)
    soft = KnowledgeDistillation(2.0).per_sample(teacher.predict(x, verbose=0), logits)
    assert history["distillation_loss"][0] == pytest.approx(float(np.mean(soft)), rel=1e-4)
    assert history["loss"][0] == pytest.approx(
        0.25 * hard + 0.75 * history["distillation_loss"][0], rel=1e-5
    )


class AskStep(PerSampleLoss):
    """Uses all that a step tells."""

    needs_step = True
    needs_input_gradients = True

    def per_sample(self, teacher_outputs: Any, student_outputs: Any, step: Any) -> Any:
        ops = keras.ops
        gap = step.teacher_gradient(teacher_outputs[:, 0]) - step.student_gradient(
            student_outputs[:, 0]
        )
        # The model is deterministic, so that a further pass gives the same.
        other = step.student(step.inputs) - student_outputs + step.teacher(step.inputs)
        labels = ops.cast(ops.expand_dims(step.labels, 1), "float32")
        index = ops.cast(step.index, "float32")
        squares = ops.sum(ops.square(gap), axis=list(range(1, len(gap.shape))))
        return squares + index + ops.sum(0 * other * labels, 1)


def test_a_loss_may_ask_about_the_step():
    """Two linear models: the gradients by the inputs are columns of their kernels."""
    rng = np.random.default_rng(0)

    def linear() -> keras.Model:
        return keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, use_bias=False)])

    teacher, student = linear(), linear()
    distiller = Distiller(teacher, student, AskStep(), student_loss_weight=0.0)
    distiller.compile(keras.optimizers.SGD(0.1))
    x, y = rng.random((6, 4)).astype("float32"), rng.integers(0, 2, 6)
    inputs = DistillationInputs(x, index=np.arange(6))
    (w_t,), (w_s,) = teacher.get_weights(), student.get_weights()
    loss = distiller.fit(
        tf.data.Dataset.from_tensor_slices((inputs, y)).batch(6), verbose=0
    ).history["loss"]
    gap = w_t[:, 0] - w_s[:, 0]
    assert loss[0] == pytest.approx(float(gap @ gap + 2.5), rel=1e-5)
    expected = w_s.copy()
    expected[:, 0] += 0.1 * 2 * gap
    np.testing.assert_allclose(student.get_weights()[0], expected, rtol=1e-5)
    np.testing.assert_array_equal(teacher.get_weights()[0], w_t)
    cached = cache_teacher(tf.data.Dataset.from_tensor_slices((x, y)).batch(6), teacher)
    with pytest.raises(TfcompError, match="gradients"):
        distiller.fit(cached, verbose=0)


def test_a_loaded_sequential_model_gives_its_layers(tmp_path):
    """Keras calls the layers of a Sequential several times when it is loaded."""
    layers = [keras.layers.Dense(4, "relu", name="a"), keras.layers.Dense(3, "relu", name="b")]
    model = keras.Sequential([keras.Input((5,)), *layers, keras.layers.Dense(2)])
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    x = np.random.default_rng(0).standard_normal((3, 5)).astype("float32")
    wanted = ["b", "b/pre_activation", "a"]
    one, two = (FeatureExtractor(m, wanted, "teacher")(x, False) for m in (model, loaded))
    for name in wanted:
        np.testing.assert_array_equal(one.layers[name], two.layers[name])
    np.testing.assert_array_equal(two.outputs, model(x))
    np.testing.assert_array_equal(np.maximum(two.layers["b/pre_activation"], 0), two.layers["b"])


def test_channels_first_is_refused_rather_than_compared_along_wrong_axes():
    def first(width: int) -> keras.Model:
        x = inputs = keras.Input((3, 16, 16))
        x = keras.layers.Conv2D(width, 3, data_format="channels_first", name="conv")(x)
        x = keras.layers.ReLU(name="relu")(x)
        x = keras.layers.GlobalAveragePooling2D(data_format="channels_first", name="pool")(x)
        return keras.Model(inputs, keras.layers.Dense(3)(x))

    for loss in (Gap(), Gap("relu", "relu")):
        with pytest.raises(TfcompError, match=r"channels last.*'conv' has them first"):
            Distiller(first(4), first(4), loss)
    Distiller(first(4), first(4), [EmbeddingGap(), Gap("pool", "pool"), KnowledgeDistillation()])


def test_a_nested_backbone_is_named_with_its_remedy():
    backbone = keras.Model((inner := net(4)).input, inner.get_layer("relu2_0").output, name="body")
    x = inputs = keras.Input((16, 16, 3))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Dense(1)(backbone(x))[..., :1])
    teacher = keras.Model(inputs, keras.layers.Dense(3)(x))
    nested = keras.Sequential([inputs, keras.layers.Resizing(8, 8), keras.layers.Flatten()])
    nested.add(keras.layers.Dense(3))
    with pytest.raises(TfcompError, match=r"inside of 'body'.*tfcomp\.graph\.rebuild"):
        pair_layers(teacher, nested)
    assert pair_layers(rebuild(teacher), net(4))[1] == ("relu1_0", "relu1_0")


def test_an_unbatched_cache_knows_its_length_and_takes_indices():
    x, y = np.zeros((10, 16, 16, 3), "float32"), np.zeros(10, "int32")
    data = tf.data.Dataset.from_tensor_slices((x, y))
    cached = cache_teacher(data, net(4), layers=[-2, "pool"])
    assert cached.cardinality() == 10
    assert sorted(next(iter(cached))[0].teacher_layers) == ["dropout", "pool"]
