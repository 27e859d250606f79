"""What `tfcomp inspect` shows, and what it says of files that it cannot read."""

import io
import json
import subprocess
import sys
import zipfile

import keras
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfcomp.errors import DamagedFileError, TfcompError
from tfcomp.profiling import inspect_file, load_keras

layers = keras.layers


@pytest.fixture(scope="module")
def keras_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("inspection") / "small.keras"
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, name="only")], name="small")
    model.compile("sgd", "mse")
    model.save(path)
    return path


def test_a_keras_file(keras_file):
    found = inspect_file(keras_file)
    assert found.profile.parameters == 15
    assert found.audit is None
    kept = json.loads(json.dumps(found.to_dict()))
    assert set(kept) == {"size", "profile"}
    assert kept["size"]["nbytes"] == keras_file.stat().st_size
    assert "only" in str(found)


def test_a_tflite_file(tiny_files):
    found = inspect_file(tiny_files["int8"])
    assert found.profile is None
    kept = json.loads(json.dumps(found.to_dict()))
    assert set(kept) == {"size", "audit", "edgetpu"}
    assert kept["edgetpu"]["mapped"] == kept["edgetpu"]["total"]
    text = str(found)
    assert "CONV_2D" in text
    assert "Edge TPU (predicted" in text
    assert "runs on:" in text


def test_a_loaded_model_is_whole_and_uncompiled(keras_file):
    model = load_keras(str(keras_file))
    assert model.name == "small"
    assert not model.compiled


def rewritten(keras_file, tmp_path, change):
    """A copy of the archive whose members went through `change(name, data)`."""
    path = tmp_path / "changed.keras"
    with zipfile.ZipFile(keras_file) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            data = change(name, old.read(name))
            if data is not None:
                new.writestr(name, data)
    return path


@pytest.mark.parametrize("part", ["config.json", "model.weights.h5"])
@pytest.mark.parametrize("kept_bytes", [None, 0, 20, 100])
def test_archives_that_lack_a_part_or_hold_some_of_it(keras_file, tmp_path, part, kept_bytes):
    def change(name, data):
        if name != part:
            return data
        return None if kept_bytes is None else data[:kept_bytes]

    path = rewritten(keras_file, tmp_path, change)
    with pytest.raises(TfcompError) as caught:
        inspect_file(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@settings(deadline=None, max_examples=25)
@given(cut=st.floats(0.0, 0.999))
def test_any_truncation_is_told_in_one_line(keras_file, tmp_path_factory, cut):
    data = keras_file.read_bytes()
    path = tmp_path_factory.getbasetemp() / "cut.keras"
    path.write_bytes(data[: int(cut * len(data))])
    with pytest.raises(DamagedFileError, match=r"expected a \.keras archive") as caught:
        inspect_file(path)
    assert "\n" not in str(caught.value)


def test_a_changed_byte_of_the_weights_is_told(keras_file, tmp_path):
    content = bytearray(keras_file.read_bytes())
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        offset = archive.getinfo("model.weights.h5").header_offset
    content[offset + 200] ^= 0xFF
    path = tmp_path / "flipped.keras"
    path.write_bytes(content)
    with pytest.raises(DamagedFileError):
        inspect_file(path)


@pytest.mark.parametrize("name", ["none.keras", "none.tflite", "model.h5", "notes.txt"])
def test_other_files(tmp_path, name):
    with pytest.raises(TfcompError, match=r"Cannot read|Expected a") as caught:
        inspect_file(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_folders_are_refused(tmp_path):
    for suffix in (".keras", ".tflite"):
        folder = tmp_path / f"folder{suffix}"
        folder.mkdir()
        with pytest.raises(TfcompError, match="Cannot read"):
            inspect_file(folder)


def test_an_unknown_class_is_named(tmp_path):
    class Foreign(layers.Layer):
        def call(self, x):
            return x

    inputs = keras.Input((4,))
    path = tmp_path / "foreign.keras"
    keras.Model(inputs, Foreign()(inputs)).save(path)
    with pytest.raises(TfcompError, match=r"Foreign.*not known") as caught:
        inspect_file(path)
    assert "\n" not in str(caught.value)


def test_this_packages_layers_are_known_without_an_import(tmp_path):
    script = """
import sys, keras
if sys.argv[1] == "save":
    from tfcomp.quantization import quantize_aware
    layers = [keras.Input((6, 6, 2)), keras.layers.Conv2D(3, 3), keras.layers.ReLU()]
    quantize_aware(keras.Sequential(layers)).save(sys.argv[2])
else:
    from tfcomp.profiling import inspect_file
    print("MACS", inspect_file(sys.argv[2]).profile.counted_macs)
"""
    path = str(tmp_path / "aware.keras")
    for step in ("save", "inspect"):
        command = [sys.executable, "-c", script, step, path]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
    assert f"MACS {4 * 4 * 3 * 18}" in done.stdout


def test_a_lambda_is_not_run(tmp_path):
    inputs = keras.Input((4,))
    path = tmp_path / "lambda.keras"
    keras.Model(inputs, layers.Lambda(lambda t: t * 2.0)(inputs)).save(path)
    with pytest.raises(TfcompError, match="Lambda layer") as caught:
        inspect_file(path)
    assert "\n" not in str(caught.value)
