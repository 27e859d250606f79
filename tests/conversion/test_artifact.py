"""Parity and latency of a file against figures recomputed by hand."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from tfcomp.conversion import Artifact
from tfcomp.errors import DamagedFileError, TfcompError, UnsupportedModelError


def by_hand(path, images):
    """Integer codes of a single-output int8 file, image by image."""
    native = Interpreter(str(path))
    native.allocate_tensors()
    [source], [target] = native.get_input_details(), native.get_output_details()
    scale, zero = source["quantization"]
    codes = []
    for image in images:
        code = np.clip(np.round(image / scale) + zero, -128, 127).astype("int8")
        native.set_tensor(source["index"], code[None])
        native.invoke()
        codes.append(native.get_tensor(target["index"])[0])
    return np.array(codes), target["quantization"]


def test_float_parity(tiny_files):
    parity = Artifact(tiny_files["float32"]).compare(tiny_files.model, tiny_files.images)
    assert parity.examples == 64
    assert parity.argmax_agreement == 1.0
    assert parity.max_steps is None
    assert parity.max_abs < 1e-5


@pytest.mark.parametrize("name", ["int8", "int8_open"])
def test_int8_parity_is_what_a_hand_computation_gives(tiny_files, name):
    model, images = tiny_files.model, tiny_files.images
    codes, (scale, zero) = by_hand(tiny_files["int8"], images)
    expected = np.asarray(model(images))
    difference = np.abs(expected - (codes.astype("float64") - zero) * scale)
    parity = Artifact(tiny_files[name]).compare(model, images)
    # Halves may round either way: one code of an input may differ.
    assert parity.max_steps == pytest.approx(difference.max() / scale, abs=1.0)
    assert parity.mean_abs == pytest.approx(difference.mean(), rel=0.05)
    agreement = np.mean(expected.argmax(-1) == codes.argmax(-1))
    assert parity.argmax_agreement == pytest.approx(agreement, abs=1.5 / 64)
    assert parity.max_steps < 4
    assert parity.outputs[0].step == pytest.approx(scale)


def test_float_border_has_the_step_of_what_is_dequantised(tiny_files):
    inner = Artifact(tiny_files["int8_float_io"]).compare(tiny_files.model, tiny_files.images)
    outer = Artifact(tiny_files["int8"]).compare(tiny_files.model, tiny_files.images)
    assert inner.outputs[0].step == pytest.approx(outer.outputs[0].step)
    assert inner.max_steps < 4


def test_another_model_is_found_out(tiny_files):
    other = keras.models.clone_model(tiny_files.model)
    for variable in other.weights:
        variable.assign(keras.random.normal(variable.shape, seed=3))
    parity = Artifact(tiny_files["int8"]).compare(other, tiny_files.images)
    assert parity.argmax_agreement < 0.9
    assert parity.max_steps > 10


def test_two_inputs_and_a_dict_of_outputs(tiny_files):
    rng = np.random.default_rng(1)
    left, right = rng.random((70, 6), "float32"), rng.random((70, 4), "float32")
    artifact = Artifact(tiny_files["heads"])
    for x in ([left, right], {"left": left, "right": right}):
        parity = artifact.compare(tiny_files.heads, x)
        assert {output.name for output in parity.outputs} == {"a", "b"}
        assert parity.max_abs < 1e-5
    swapped = keras.Model(
        tiny_files.heads.inputs,
        {"a": tiny_files.heads.output["a"] + 1.0, "b": tiny_files.heads.output["b"]},
    )
    worst = {o.name: o.max_abs for o in artifact.compare(swapped, [left, right]).outputs}
    assert worst["a"] == pytest.approx(1.0, abs=1e-4)
    assert worst["b"] < 1e-5


def test_twelve_outputs_of_one_shape_are_told_apart(tmp_path):
    inputs = keras.Input((4,))
    outputs = [keras.layers.Dense(3)(inputs) for _ in range(12)]
    model = keras.Model(inputs, outputs)
    path = tmp_path / "many.tflite"
    path.write_bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())
    x = np.random.default_rng(0).random((5, 4), "float32")
    parity = Artifact(path).compare(model, x)
    assert [o.name for o in parity.outputs] == [f"output_{i}" for i in range(12)]
    assert parity.max_abs < 1e-5
    turned = keras.Model(inputs, outputs[::-1])
    assert Artifact(path).compare(turned, x).max_abs > 0.1


def test_layer_parity_finds_the_layer_that_differs(tiny_files):
    model, images = tiny_files.model, tiny_files.images
    artifact = Artifact(tiny_files["int8"])
    layers = {p.layer: p for p in artifact.compare(model, images, by_layer=True).layers}
    assert layers["conv"].max_steps < 3
    assert layers["conv"].mean_steps <= layers["conv"].max_steps
    broken = keras.models.clone_model(model)
    broken.set_weights([w * (3.0 if w.ndim == 4 else 1.0) for w in model.get_weights()])
    layers = {p.layer: p for p in artifact.compare(broken, images, by_layer=True).layers}
    assert layers["conv"].max_steps > 50


def test_nothing_of_the_model_is_changed(tiny_files):
    model = keras.models.clone_model(tiny_files.model)
    model.get_layer("conv").trainable = False
    weights = model.get_weights()
    Artifact(tiny_files["int8"]).compare(model, tiny_files.images[:3], by_layer=True)
    assert all(np.array_equal(a, b) for a, b in zip(weights, model.get_weights(), strict=True))
    assert not model.compiled
    assert not model.get_layer("conv").trainable
    assert model.get_layer("logits").trainable


def test_a_subclassed_model_is_compared_but_not_by_layer(tiny_files):
    class Wrapped(keras.Model):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def call(self, x):
            return self.inner(x)

    wrapped = Wrapped(tiny_files.model)
    artifact = Artifact(tiny_files["int8"])
    assert artifact.compare(wrapped, tiny_files.images[:5]).max_steps < 4
    with pytest.raises(UnsupportedModelError, match="subclassed"):
        artifact.compare(wrapped, tiny_files.images[:5], by_layer=True)


def test_a_model_of_another_shape_is_refused(tiny_files):
    other = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten()])
    with pytest.raises(TfcompError, match="expected shape"):
        Artifact(tiny_files["int8"]).compare(other, tiny_files.images[:2])


def test_run_benchmark_and_text(tiny_files):
    artifact = Artifact(tiny_files["int8"])
    assert artifact.run(tiny_files.images[:3]).shape == (3, 10)
    assert artifact.benchmark(runs=3, warm_up=1).median_ms > 0
    assert artifact.nbytes == tiny_files["int8"].stat().st_size == artifact.audit.nbytes
    assert artifact.gzip_bytes == artifact.audit.gzip_bytes
    parity = artifact.compare(tiny_files.model, tiny_files.images[:3], by_layer=True)
    assert json.loads(json.dumps(parity.to_dict()))["examples"] == 3
    assert "argmax agreement" in str(parity)
    assert "conv" in str(parity)


def test_a_damaged_file_is_refused(tiny_files, tmp_path):
    path = tmp_path / "half.tflite"
    path.write_bytes(tiny_files["int8"].read_bytes()[:1000])
    with pytest.raises(DamagedFileError):
        Artifact(path)


@pytest.mark.parametrize(
    "shape, words", [((0, 8, 8, 3), "one example or more"), ((2, 8, 9, 3), "expected shape")]
)
def test_examples_that_do_not_fit_are_told_in_one_line(tiny_files, shape, words):
    assert tiny_files.images.shape[1:] == (8, 8, 3)
    artifact = Artifact(tiny_files["float32"])
    with pytest.raises(TfcompError, match=words) as error:
        artifact.compare(tiny_files.model, np.zeros(shape, "float32"))
    assert "\n" not in str(error.value)
