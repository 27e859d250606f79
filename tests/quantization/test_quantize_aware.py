"""Where a quantisation-aware model rounds, and that it is a model like any other."""

import keras
import numpy as np
import pytest

import tfcomp.callbacks
from tfcomp.distillation import Distiller, KnowledgeDistillation
from tfcomp.errors import TfcompError, UnsupportedModelError
from tfcomp.graph import trace
from tfcomp.quantization import (
    FakeQuantize,
    FakeQuantizeWeights,
    quantization_report,
    quantize_aware,
    strip_quantization,
)

layers = keras.layers


def chain(shape, *chained, **options):
    return keras.Sequential([keras.Input(shape), *chained], **options)


def kinds(model):
    short = {"FakeQuantize": "·"}
    return " ".join(
        node.op.layer.__class__.__name__
        if isinstance(node.op, FakeQuantizeWeights)
        else short.get(node.kind, node.kind)
        for node in trace(model).nodes
    )


def small_cnn():
    return chain(
        (8, 8, 3),
        layers.Conv2D(4, 3, use_bias=False, name="conv"),
        layers.BatchNormalization(name="norm"),
        layers.ReLU(name="relu"),
        layers.GlobalAveragePooling2D(),
        layers.Dense(3, name="head"),
    )


def blobs(count=64, shape=(8, 8, 3), classes=3):
    rng = np.random.default_rng(0)
    y = rng.integers(0, classes, count)
    x = rng.normal(size=(count, *shape)).astype("float32")
    return x + y.reshape(-1, *[1] * len(shape)), y


def compiled(model):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"], jit_compile=False)
    return model


@pytest.mark.parametrize(
    "expected, shape, chained",
    [
        (
            "· Conv2D BatchNormalization ReLU · MaxPooling2D Flatten Dense ·",
            (8, 8, 3),
            lambda: [
                layers.Conv2D(4, 3),
                layers.BatchNormalization(),
                layers.ReLU(),
                layers.MaxPooling2D(),
                layers.Flatten(),
                layers.Dense(2),
            ],
        ),
        ("· Dense · Activation ·", (4,), lambda: [layers.Dense(2, activation="softmax")]),
        ("· Dense ·", (4,), lambda: [layers.Dense(2, activation="relu")]),
        (
            "· DepthwiseConv2D Conv2D ·".replace("Conv2D Conv2D", "Conv2D · Conv2D"),
            (8, 8, 3),
            lambda: [layers.SeparableConv2D(4, 3, activation="relu6")],
        ),
        (
            "· Conv2D · BatchNormalization · Dropout UpSampling2D Conv2D ·",
            (8, 8, 3),
            lambda: [
                layers.Conv2D(4, 3, activation="relu"),
                layers.BatchNormalization(),
                layers.Dropout(0.5),
                layers.UpSampling2D(),
                layers.Conv2D(2, 1),
            ],
        ),
        (
            "Embedding · GlobalAveragePooling1D · Dense ·",
            (5,),
            lambda: [layers.Embedding(9, 4), layers.GlobalAveragePooling1D(), layers.Dense(2)],
        ),
        (
            "· Conv2D · LayerNormalization Dropout LayerNormalization · Conv2D ·",
            (8, 8, 3),
            lambda: [
                layers.Conv2D(4, 3),
                layers.LayerNormalization(),
                layers.Dropout(0.1),
                layers.LayerNormalization(),
                layers.Conv2D(2, 1),
            ],
        ),
    ],
    ids=["fused", "softmax", "relu", "separable", "standalone norm", "embedding", "float island"],
)
def test_where_it_rounds(expected, shape, chained):
    assert kinds(quantize_aware(chain(shape, *chained()))) == expected


def test_where_it_rounds_at_joints():
    inputs = keras.Input((8, 8, 3))
    a = layers.Conv2D(4, 3, padding="same", activation="relu")(inputs)
    b = layers.Conv2D(4, 3, padding="same")(a)
    x = layers.ReLU()(layers.Add()([a, b]))
    y = layers.Conv2D(2, 1)(x)
    model = keras.Model(inputs, layers.Concatenate()([x, y]))
    # b is rounded before Add, nothing between Add and ReLU, y not before Concatenate.
    assert kinds(quantize_aware(model)) == "· Conv2D · Conv2D · Add ReLU · Conv2D Concatenate ·"


def test_folded_beforehand_and_for_the_edge_tpu():
    assert kinds(quantize_aware(small_cnn(), fold_batch_norm=True)) == (
        "· Conv2D ReLU · GlobalAveragePooling2D · Dense ·"
    )
    model = chain((4,), layers.Dense(3), layers.BatchNormalization(), layers.Dense(2))
    assert kinds(quantize_aware(model)) == "· Dense BatchNormalization · Dense ·"
    edge = quantize_aware(model, target="edgetpu")
    assert kinds(edge) == "· Dense · Dense ·"
    wrapped = [layer for layer in edge.layers if isinstance(layer, FakeQuantizeWeights)]
    assert [layer.axes for layer in wrapped] == [{"kernel": ()}] * 2


def test_the_callers_model_and_its_layer_names_stay():
    model = small_cnn()
    before = model.get_weights()
    qat = compiled(quantize_aware(model))
    qat.fit(*blobs(), epochs=2, verbose=0)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    assert {"conv", "norm", "relu", "head"} <= {layer.name for layer in qat.layers}
    assert qat.get_layer("conv").kernel.trainable
    kernels = [variable.path.split("/")[-1] for variable in qat.trainable_variables]
    assert sorted(kernels) == ["beta", "bias", "gamma", "kernel", "kernel"]


def test_before_training_it_differs_by_the_rounding_of_weights_only():
    model = small_cnn()
    x, _ = blobs()
    stripped = strip_quantization(quantize_aware(model))
    assert kinds(stripped) == kinds(model)
    expected = np.asarray(stripped(x))
    assert np.allclose(quantize_aware(model)(x), expected, atol=1e-6)
    assert 0 < np.abs(model(x) - expected).max() < 0.05


def test_weights_are_rounded_as_the_folded_kernel_would_be():
    model = small_cnn()
    rng = np.random.default_rng(3)
    norm = model.get_layer("norm")
    norm.set_weights([rng.normal(size=4), rng.normal(size=4), rng.normal(size=4), rng.random(4)])
    stripped = strip_quantization(quantize_aware(model))
    slope = np.asarray(norm.gamma) / np.sqrt(np.asarray(norm.moving_variance) + norm.epsilon)
    folded = np.asarray(model.get_layer("conv").kernel, "float64") * slope
    scale = np.abs(folded).max(axis=(0, 1, 2)) / 127
    expected = np.round(folded / scale) * scale
    got = np.asarray(stripped.get_layer("conv").kernel, "float64") * slope
    assert np.allclose(got, expected, atol=1e-6)


def test_saved_and_loaded_it_goes_on(tmp_path):
    x, y = blobs()
    qat = compiled(quantize_aware(small_cnn()))
    qat.fit(x, y, epochs=1, verbose=0)
    qat.save(tmp_path / "qat.keras")
    loaded = keras.models.load_model(tmp_path / "qat.keras")
    assert np.array_equal(loaded(x), qat(x))
    ranges = [layer.range for layer in loaded.layers if isinstance(layer, FakeQuantize)]
    assert None not in ranges
    assert ranges == [layer.range for layer in qat.layers if isinstance(layer, FakeQuantize)]
    loaded.fit(x, y, epochs=1, verbose=0)
    assert loaded.evaluate(x, y, verbose=0)[0] > 0


def test_pruned_weights_stay_zero():
    x, y = blobs()
    model = small_cnn()
    kernel = np.array(model.get_layer("conv").kernel)
    kernel[np.abs(kernel) < np.median(np.abs(kernel))] = 0
    model.get_layer("conv").kernel.assign(kernel)
    qat = compiled(quantize_aware(model))
    assert np.all(np.asarray(qat.get_layer("conv").rounded("kernel"))[kernel == 0] == 0)
    qat.fit(x, y, verbose=0, callbacks=[tfcomp.callbacks.PruneWeights.from_zeros()])
    after = np.asarray(qat.get_layer("conv").kernel)
    assert np.array_equal(after == 0, kernel == 0)
    assert not np.array_equal(after, kernel)
    stripped = np.asarray(strip_quantization(qat).get_layer("conv").kernel)
    assert np.all(stripped[kernel == 0] == 0)


def test_student_of_a_distiller():
    student = quantize_aware(small_cnn())
    distiller = Distiller(
        small_cnn(), student, distillation_losses=[KnowledgeDistillation(temperature=2.0)]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    distiller.compile("adam", loss=loss, jit_compile=False)
    before = np.array(student.get_layer("conv").kernel)
    distiller.fit(*blobs(), epochs=1, verbose=0)
    assert not np.array_equal(before, student.get_layer("conv").kernel)
    assert all(layer.range for layer in student.layers if isinstance(layer, FakeQuantize))


def test_shared_layers_several_inputs_and_a_dict_of_outputs():
    left, right = keras.Input((6,), name="left"), keras.Input((6,), name="right")
    shared = layers.Dense(4, name="shared")
    x = layers.Subtract()([shared(left), shared(right)])
    outputs = {"a": layers.Dense(2, name="a")(x), "b": layers.Dense(1, activation="sigmoid")(x)}
    qat = quantize_aware(keras.Model({"left": left, "right": right}, outputs))
    assert len([layer for layer in qat.layers if layer.name == "shared"]) == 1
    x = {name: np.random.default_rng(0).normal(size=(16, 6)) for name in ("left", "right")}
    qat.compile("sgd", {"a": "mse", "b": "mse"}, jit_compile=False)
    qat.fit(x, {"a": np.zeros((16, 2)), "b": np.zeros((16, 1))}, verbose=0)
    assert set(qat.predict(x, verbose=0)) == {"a", "b"}


def test_nested_models_operators_and_open_image_sizes():
    inner = chain((None, None, 4), layers.Conv2D(4, 3, padding="same"), layers.ReLU(), name="inner")
    inputs = keras.Input((None, None, 3))
    x = inner(layers.Conv2D(4, 1)(inputs))
    x = x * 0.5 + layers.Conv2D(4, 1)(x)
    qat = quantize_aware(keras.Model(inputs, layers.GlobalMaxPooling2D()(x[:, ::2])))
    assert "inner" not in [layer.name for layer in qat.layers]
    for size in (8, 12):
        assert qat(np.ones((2, size, size, 3), "float32"), training=True).shape == (2, 4)


def test_mixed_precision_trains_and_keeps_float32_variables():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        qat = compiled(quantize_aware(small_cnn()))
        history = qat.fit(*blobs(), epochs=2, verbose=0)
    finally:
        keras.config.set_dtype_policy("float32")
    assert np.all(np.isfinite(history.history["loss"]))
    assert {variable.dtype for variable in qat.trainable_variables} == {"float32"}


def test_what_stays_float_is_listed():
    class Doubled(layers.Dense):
        pass

    model = chain(
        (5, 4),
        layers.Lambda(lambda t: t * 2, name="lambda"),
        layers.LSTM(3, name="lstm"),
        Doubled(2, name="own"),
        layers.Dense(2, activation=lambda t: t**2, name="odd"),
    )
    report = quantization_report(model)
    assert list(report.skipped) == ["lambda", "lstm", "own", "odd_activation"]
    assert "not a layer of Keras's own" in report.skipped["own"]
    assert "lstm stays float: " in str(report)
    qat = quantize_aware(model)
    assert quantization_report(qat) == report
    assert qat(np.ones((2, 5, 4), "float32"), training=True).shape == (2, 2)
    assert quantization_report(small_cnn()).skipped == {}
    assert set(quantization_report(small_cnn()).integer) >= {"conv", "head"}


@pytest.mark.parametrize(
    "options, message",
    [
        ({"momentum": 1.0}, r"momentum in \[0, 1\)"),
        ({"delay": -1}, "delay >= 0"),
        ({"delay": 5, "freeze_step": 5}, "freeze_step None or greater"),
        ({"target": "gpu"}, "'tflite', 'edgetpu'"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(TfcompError, match=message):
        quantize_aware(small_cnn(), **options)


def test_wrong_models():
    with pytest.raises(TfcompError, match="quantisation-aware already"):
        quantize_aware(quantize_aware(small_cnn()))
    with pytest.raises(UnsupportedModelError):
        quantize_aware(keras.Sequential([layers.Dense(2)]))


def test_same_seed_same_model():
    results = []
    for _ in range(2):
        keras.utils.set_random_seed(7)
        qat = compiled(quantize_aware(small_cnn()))
        qat.fit(*blobs(), epochs=1, verbose=0, shuffle=False)
        results.append(qat.get_weights())
    assert all(np.allclose(a, b, atol=1e-6) for a, b in zip(*results, strict=True))
