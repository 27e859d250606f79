"""Files that `convert` makes, run by LiteRT and compared with Keras; and those it refuses."""

import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

from tfcomp.conversion import convert
from tfcomp.conversion import convert as convert_function
from tfcomp.errors import ConversionError, TfcompError, UnsupportedModelError
from tfcomp.quantization import quantization_report, quantize_aware

layers = keras.layers
SHAPE = (16, 16, 3)
CLASSES = 5


def blobs(count, shape=SHAPE, classes=CLASSES):
    """Images in each of which one of a few places is brighter."""
    rng = np.random.default_rng(count)
    y = rng.integers(0, classes, count)
    x = rng.normal(size=(count, *shape)).astype("float32")
    for label in range(classes):
        x[y == label, 3 * label : 3 * label + 4] += 1.5
    return x, y


def trained(model, epochs=2):
    loss = keras.losses.SparseCategoricalCrossentropy()
    model.compile(keras.optimizers.Adam(0.01), loss, metrics=["accuracy"], jit_compile=False)
    model.fit(*blobs(512), epochs=epochs, batch_size=32, verbose=0)
    return model


def many_patterns():
    """Most of what the scheme knows, in one model: each conversion takes seconds."""
    keras.utils.set_random_seed(0)
    conv = layers.Conv2D
    inputs = keras.Input(SHAPE, name="image")
    x = layers.Rescaling(0.5, offset=0.1)(inputs)
    x = conv(8, 3, padding="same", use_bias=False)(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    # An inverted residual.
    y = layers.ReLU(6.0)(layers.BatchNormalization()(conv(16, 1, use_bias=False)(x)))
    y = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(y)
    y = layers.ReLU(6.0)(layers.BatchNormalization()(y))
    y = layers.BatchNormalization()(conv(8, 1, use_bias=False)(y))
    x = layers.Add()([x, y])
    # Squeeze and excite.
    s = layers.GlobalAveragePooling2D(keepdims=True)(x)
    s = conv(8, 1, activation="hard_sigmoid")(conv(4, 1, activation="relu")(s))
    x = x * s
    # Branches, standalone normalisation, activations with an op of their own, down and up.
    a = conv(6, 3, padding="same", activation="leaky_relu")(x)
    b = layers.ReLU(4.0)(layers.BatchNormalization()(layers.MaxPooling2D(2)(x)))
    b = layers.UpSampling2D()(conv(6, 3, padding="same", activation="hard_silu")(b))
    c = layers.SeparableConv2D(6, 3, padding="same", activation="silu")(x)
    x = layers.Concatenate()([a, b, c])
    x = layers.Conv2DTranspose(8, 2, strides=2, use_bias=False)(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.AveragePooling2D(4)(x)
    x = layers.Dropout(0.1)(layers.Flatten()(layers.ZeroPadding2D()(x)))
    x = layers.BatchNormalization()(layers.Dense(12, activation="relu")(x))
    return keras.Model(inputs, layers.Dense(CLASSES, activation="softmax", name="classes")(x))


@pytest.fixture(scope="module")
def qat():
    model = quantize_aware(trained(many_patterns()))
    return trained(model)


@pytest.fixture(scope="module")
def plain():
    keras.utils.set_random_seed(1)
    stem = [layers.Conv2D(32, 3, strides=2, activation="relu"), layers.Conv2D(32, 3)]
    rest = [layers.ReLU(), layers.GlobalAveragePooling2D(), layers.Dense(CLASSES)]
    return trained(keras.Sequential([keras.Input(SHAPE), *stem, *rest, layers.Softmax()]))


def test_all_integer_with_integer_borders_and_the_same_classes(qat, tmp_path):
    assert quantization_report(qat).skipped == {}
    weights = qat.get_weights()
    artifact = convert(qat, tmp_path / "a.tflite", dtype="int8", io_dtype="int8")
    assert artifact.audit.float_ops == ()
    assert {op.op for op in artifact.audit.ops}.isdisjoint({"DEQUANTIZE", "SHAPE", "TILE"})
    assert [t.dtype for t in (*artifact.audit.inputs, *artifact.audit.outputs)] == ["int8"] * 2
    parity = artifact.compare(qat, blobs(1000)[0])
    assert parity.argmax_agreement >= 0.995
    assert parity.mean_abs < 0.01
    assert all(np.array_equal(a, b) for a, b in zip(weights, qat.get_weights(), strict=True))


def test_float_borders_and_the_same_bytes_again(plain, tmp_path):
    qat = trained(quantize_aware(plain), epochs=1)
    first = convert(qat, tmp_path / "a.tflite", dtype="int8")
    second = convert(qat, tmp_path / "b.tflite", dtype="int8")
    assert first.audit.inputs[0].dtype == first.audit.outputs[0].dtype == "float32"
    assert first.path.read_bytes() == second.path.read_bytes()
    assert first.compare(qat, blobs(1000)[0]).argmax_agreement >= 0.995


def test_a_float_op_is_named_and_the_old_file_stays(tmp_path):
    model = keras.Sequential(
        [keras.Input((8,)), layers.Dense(4), layers.LayerNormalization(name="ln")]
    )
    qat = quantize_aware(keras.Sequential([model, layers.Dense(3)]))
    qat(np.random.default_rng(0).normal(size=(32, 8)), training=True)
    path = tmp_path / "model.tflite"
    path.write_bytes(b"old")
    with pytest.raises(ConversionError, match=r"of dtype int8.* ops are not: .*#\d+ \(.*ln"):
        convert(qat, path, dtype="int8")
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["model.tflite"]


@pytest.mark.long
def test_float_ops_where_allowed(tmp_path):
    qat = quantize_aware(keras.Sequential([keras.Input((8,)), layers.Dense(4), layers.ELU()]))
    x = np.random.default_rng(0).normal(size=(32, 8)).astype("float32")
    qat(x, training=True)
    artifact = convert(qat, tmp_path / "a.tflite", dtype="int8", allow_float_ops=True)
    assert [op.op for op in artifact.audit.float_ops if "QUANT" not in op.op] == ["ELU"]
    assert artifact.compare(qat, x).max_abs < 0.1


@pytest.mark.long
@pytest.mark.parametrize(
    "dtype, stored, agreement",
    [("float32", "float32", 1.0), ("float16", "float16", 0.995), ("dynamic", "int8", 0.99)],
)
def test_the_other_types(plain, tmp_path, dtype, stored, agreement):
    artifact = convert(plain, tmp_path / "a.tflite", dtype=dtype)
    sizes = artifact.audit.weight_bytes
    assert max(sizes, key=sizes.get) == stored
    assert artifact.compare(plain, blobs(500)[0]).argmax_agreement >= agreement


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["int8", "int16x8"])
def test_measured_ranges(plain, tmp_path, dtype):
    x = blobs(1000)[0]
    artifact = convert(plain, tmp_path / "a.tflite", dtype=dtype, calibration=x[:64])
    assert artifact.audit.float_ops == ()
    activations = {t.dtype for op in artifact.audit.ops[1:-1] for t in op.outputs}
    assert activations == {"int16" if dtype == "int16x8" else "int8"}
    assert artifact.compare(plain, x).argmax_agreement >= 0.97


@pytest.mark.long
def test_float_file_of_a_quantisation_aware_model(qat, tmp_path):
    artifact = convert(qat, tmp_path / "a.tflite")
    assert set(artifact.audit.weight_bytes) <= {"float32", "int32"}
    assert artifact.compare(qat, blobs(500)[0]).argmax_agreement >= 0.98


@pytest.mark.long
def test_edge_tpu_form(plain, tmp_path):
    qat = trained(quantize_aware(plain, target="edgetpu"), epochs=1)
    artifact = convert(qat, tmp_path / "a.tflite", dtype="int8", target="edgetpu")
    dense = [op for op in artifact.audit.ops if op.op == "FULLY_CONNECTED"]
    assert [op.weights[0].scales for op in dense] == [1]
    assert artifact.audit.inputs[0].shape == (1, *SHAPE)
    assert artifact.compare(qat, blobs(1000)[0]).argmax_agreement >= 0.995


@pytest.mark.long
def test_two_inputs_and_a_dict_of_outputs(tmp_path):
    left, right = keras.Input((6, 4), name="left"), keras.Input((24,), name="right")
    x = layers.Conv1D(8, 3, padding="same")(left)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Flatten()(layers.MaxPooling1D(2)(x))
    x = layers.Subtract()([x, layers.Dense(24, activation="tanh")(right)])
    outputs = {"logits": layers.Dense(3)(x), "score": layers.Dense(1, activation="sigmoid")(x)}
    qat = quantize_aware(keras.Model({"left": left, "right": right}, outputs))
    rng = np.random.default_rng(0)
    x = {"left": rng.normal(size=(64, 6, 4)), "right": rng.normal(size=(64, 24))}
    x = {name: value.astype("float32") for name, value in x.items()}
    qat(x, training=True)
    artifact = convert(qat, tmp_path / "a.tflite", dtype="int8", io_dtype="int8")
    parity = artifact.compare(qat, x)
    assert {output.name for output in parity.outputs} == {"logits", "score"}
    assert parity.max_steps <= 3


@pytest.mark.long
def test_pruned_to_nothing_and_half_precision(tmp_path):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        inputs = keras.Input((8, 8, 3))
        x = layers.Conv2D(8, 3, activation="relu", name="conv")(inputs)
        model = keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))
    finally:
        keras.config.set_dtype_policy("float32")
    kernel = np.asarray(model.get_layer("conv").kernel) * (np.arange(8) > 3)
    model.get_layer("conv").kernel.assign(kernel)
    qat = quantize_aware(model)
    x = np.random.default_rng(0).normal(size=(64, 8, 8, 3)).astype("float32")
    qat(x, training=True)
    artifact = convert(qat, tmp_path / "a.tflite", dtype="int8")
    assert artifact.compare(qat, x).max_steps <= 3


@pytest.mark.long
def test_mobilenet_v2(tmp_path):
    keras.utils.set_random_seed(0)
    model = keras.applications.MobileNetV2((32, 32, 3), alpha=0.35, weights=None, classes=CLASSES)
    qat = quantize_aware(model)
    assert quantization_report(qat).skipped == {}
    loss = keras.losses.SparseCategoricalCrossentropy()
    qat.compile(keras.optimizers.Adam(0.003), loss, jit_compile=False)
    qat.fit(*blobs(256, (32, 32, 3)), epochs=12, batch_size=32, verbose=0)
    artifact = convert(qat, tmp_path / "a.tflite", dtype="int8", io_dtype="int8")
    assert artifact.compare(qat, blobs(500, (32, 32, 3))[0]).argmax_agreement >= 0.97


def tiny(trained_ranges=False):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2, name="head")])
    return quantize_aware(model) if trained_ranges else model


@pytest.mark.parametrize(
    "model, options, message",
    [
        (tiny(), {"dtype": "int4"}, "dtype to be one of"),
        (tiny(), {"target": "tpu"}, "target to be one of"),
        (tiny(), {"target": "ethos-u55-128"}, "not there yet"),
        (tiny(), {"target": "edgetpu", "dtype": "float16"}, 'expected dtype="int8"'),
        (tiny(), {"io_dtype": "int8"}, "io_dtype for 'float32'"),
        (tiny(), {"dtype": "int8"}, "pass calibration="),
        (tiny(), {"dtype": "int16x8"}, "pass calibration="),
        (tiny(), {"calibration": np.ones((3, 4))}, "expected calibration=None|calibration=None"),
        (tiny(), {"dtype": "int8", "calibration": np.ones((3, 5))}, r"received \(3, 5\)"),
        (tiny(), {"dtype": "int8", "calibration": []}, "received none"),
        (tiny(True), {"dtype": "int8"}, "never observed"),
        (tiny(True), {"dtype": "int8", "calibration": np.ones((3, 4))}, "its own ranges"),
        (tiny(True), {"dtype": "int16x8"}, "16 bits"),
    ],
)
def test_what_cannot_be_honoured_is_refused(model, options, message, tmp_path):
    with pytest.raises(TfcompError, match=message) as caught:
        convert(model, tmp_path / "a.tflite", **options)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_subclassed_models_and_files_that_cannot_be_written(tmp_path):
    class Own(keras.Model):
        pass

    with pytest.raises(UnsupportedModelError):
        convert(Own(), tmp_path / "a.tflite")
    (tmp_path / "file").write_text("")
    with pytest.raises(TfcompError, match="Cannot write"):
        convert(tiny(), tmp_path / "file" / "a.tflite")


def test_dense_scales_that_the_edge_tpu_does_not_take_are_told(tmp_path):
    with pytest.warns(UserWarning, match="one scale per dense kernel"), pytest.raises(TfcompError):
        convert(tiny(True), tmp_path / "a.tflite", dtype="int8", target="edgetpu")


def test_what_the_converter_says_is_told_in_one_line(tmp_path, monkeypatch):
    module = sys.modules[convert_function.__module__]

    def dies(*args, **kwargs):
        return subprocess.CompletedProcess(args, -11, "", "")

    monkeypatch.setattr(module.subprocess, "run", dies)
    with pytest.raises(ConversionError, match="crashed \\(SIGSEGV\\)"):
        convert(tiny(), tmp_path / "a.tflite")

    def fails(*args, **kwargs):
        log = "Traceback\n" + 2 * "TF Select ops: Erfinv, Qr\n" + "Details:\n"
        return subprocess.CompletedProcess(args, 1, "", log)

    monkeypatch.setattr(module.subprocess, "run", fails)
    with pytest.raises(ConversionError, match="no op for Erfinv, Qr\\."):
        convert(tiny(), tmp_path / "a.tflite")

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(module.subprocess, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(tiny(), tmp_path / "a.tflite")
    assert list(pathlib.Path(tmp_path).iterdir()) == []


def test_only_a_tflite_is_written(tmp_path):
    kept = tmp_path / "model.keras"
    kept.write_bytes(b"a trained model")
    with pytest.raises(TfcompError, match=r"ends in \.tflite"):
        convert(tiny(), kept)
    assert kept.read_bytes() == b"a trained model"


def test_batch_of_the_training_data_does_not_reach_the_file(tmp_path):
    model = keras.Sequential([layers.Dense(4), layers.Dense(3)])
    model.compile("sgd", "mse")
    model.fit(np.zeros((64, 8)), np.zeros((64, 3)), verbose=0)
    assert model.input_shape == (32, 8)
    artifact = convert(model, tmp_path / "m.tflite")
    assert artifact.audit.inputs[0].shape == (1, 8)
    assert artifact.compare(model, np.ones((64, 8), "float32")).max_abs < 1e-5


def test_open_image_size_runs_on_images_of_any_size(tmp_path):
    image = keras.Input((None, None, 3))
    x = layers.SeparableConv2D(4, 3)(layers.Conv2D(4, 3)(image))
    model = keras.Model(image, layers.Dense(3)(layers.GlobalMaxPooling2D()(x)))
    artifact = convert(model, tmp_path / "m.tflite")
    for size in (9, 16):
        assert artifact.compare(model, np.ones((2, size, size, 3), "float32")).max_abs < 1e-5
    with pytest.raises(TfcompError, match="open size cannot be timed"):
        artifact.benchmark()


def test_the_policy_in_force_does_not_reach_an_integer_file(tmp_path):
    model = keras.Sequential(
        [keras.Input((6, 6, 3)), layers.Conv2D(4, 3, activation="relu"),
         layers.BatchNormalization(), layers.Flatten(), layers.Dense(3)]
    )  # fmt: skip
    qat = quantize_aware(model)
    qat(np.ones((2, 6, 6, 3), "float32"), training=True)
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        assert not convert(qat, tmp_path / "m.tflite", dtype="int8").audit.float_ops
    finally:
        keras.mixed_precision.set_global_policy("float32")
