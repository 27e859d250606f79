"""The interpreter in real units: any number of rows, any border dtype, damaged files."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tfcomp.errors import DamagedFileError, TfcompError
from tfcomp.runtime import Interpreter
from tfcomp.runtime.interpreter import dequantize, quantize


@pytest.mark.parametrize("name", ["float32", "int8", "int8_open", "int8_float_io"])
@pytest.mark.parametrize("rows", [1, 5, 130])
def test_rows_together_equal_rows_alone(tiny_files, name, rows):
    images = np.resize(tiny_files.images, (rows, 8, 8, 3))
    interpreter = Interpreter(tiny_files[name])
    together = interpreter.run(images)
    assert together.shape == (rows, 10)
    assert together.dtype == np.float32
    alone = [interpreter.run(images[i : i + 1])[0] for i in (0, rows // 2, rows - 1)]
    np.testing.assert_allclose(together[[0, rows // 2, rows - 1]], alone, atol=1e-5)


def test_raw_takes_and_gives_codes(tiny_files):
    interpreter = Interpreter(tiny_files["int8"])
    codes = np.random.default_rng(0).integers(-128, 127, (3, 8, 8, 3), "int8", endpoint=True)
    raw = interpreter.run(codes, raw=True)
    assert raw.dtype == np.int8
    scale, zero = 1 / 255, -128
    real = interpreter.run((codes.astype("float32") - zero) * np.float32(scale))
    assert np.ptp(raw.astype(int)) > 20
    steps = real / np.diff(np.unique(real)).min()
    assert np.abs(np.diff(steps - raw)).max() <= 2.0


def test_names_shapes_and_several_outputs(tiny_files):
    interpreter = Interpreter(tiny_files["heads"], threads=2)
    assert set(interpreter.input_names) == {"left", "right"}
    assert interpreter.output_names == ("a", "b")
    assert interpreter.input_shape("left") == (None, 6)
    assert interpreter.batch_size is None
    x = {"left": np.ones((4, 6)), "right": np.ones((4, 4))}
    result = interpreter.run(x)
    assert {key: value.shape for key, value in result.items()} == {"a": (4, 3), "b": (4, 2)}
    listed = interpreter.run([x[name] for name in interpreter.input_names])
    np.testing.assert_array_equal(listed["a"], result["a"])


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ({"left": np.ones((4, 6))}, "expected inputs"),
        ([np.ones((4, 6))], "expected 2 inputs"),
        ({"left": np.ones((4, 5)), "right": np.ones((4, 4))}, "expected shape"),
        ({"left": np.ones((4, 6)), "right": np.ones((3, 4))}, "same number of rows"),
        ({"left": np.ones((0, 6)), "right": np.ones((0, 4))}, "one or more"),
    ],
)
def test_wrong_inputs_are_refused(tiny_files, x, message):
    with pytest.raises(TfcompError, match=message) as caught:
        Interpreter(tiny_files["heads"]).run(x)
    assert "\n" not in str(caught.value)


def test_random_inputs_are_the_same_for_a_seed(tiny_files):
    interpreter = Interpreter(tiny_files["int8"])
    first, again, other = (interpreter.random_inputs(seed) for seed in (1, 1, 2))
    [name] = first
    assert first[name].dtype == np.int8
    assert first[name].shape == (1, 8, 8, 3)
    assert np.array_equal(first[name], again[name])
    assert not np.array_equal(first[name], other[name])


@given(
    values=hnp.arrays(np.float32, (7,), elements=st.floats(-100, 100, width=32)),
    scale=st.floats(0.01, 2.0),
    zero=st.integers(-128, 127),
)
def test_a_quantised_value_is_within_half_a_step_or_clipped(values, scale, zero):
    detail = {"dtype": np.int8, "quantization": (scale, zero)}
    codes = quantize(values, detail)
    back = dequantize(codes, detail)
    low, high = (-128 - zero) * scale, (127 - zero) * scale
    expected = np.clip(values, low, high)
    assert codes.dtype == np.int8
    assert np.all(np.abs(back - expected) <= scale / 2 + 1e-3)


def test_halves_round_away_from_zero_as_the_runtimes_reference_does():
    detail = {"dtype": np.int8, "quantization": (1.0, 0)}
    codes = quantize(np.array([0.5, 1.5, 2.5, -0.5, -1.5], "float32"), detail)
    assert codes.tolist() == [1, 2, 3, -1, -2]


def test_integers_without_scale_pass():
    detail = {"dtype": np.int32, "quantization": (0.0, 0)}
    assert quantize(np.array([3.0, 7.0]), detail).tolist() == [3, 7]
    assert dequantize(np.array([3, 7]), detail).tolist() == [3, 7]


def test_bad_files_and_arguments(tiny_files, tmp_path):
    path = tmp_path / "x.tflite"
    for content in (b"", b"junk of some length", tiny_files["int8"].read_bytes()[:2000]):
        path.write_bytes(content)
        with pytest.raises(DamagedFileError, match="expected a TFLite file") as caught:
            Interpreter(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(TfcompError, match="Cannot read"):
        Interpreter(tmp_path / "none.tflite")
    with pytest.raises(TfcompError, match="threads"):
        Interpreter(tiny_files["int8"], threads=0)


@settings(deadline=None, max_examples=50)
@given(cut=st.floats(0, 0.99))
def test_truncation_is_told_before_anything_runs(tiny_files, tmp_path_factory, cut):
    content = tiny_files["int8"].read_bytes()
    path = tmp_path_factory.getbasetemp() / "truncated.tflite"
    path.write_bytes(content[: int(cut * len(content))])
    with pytest.raises(DamagedFileError) as caught:
        Interpreter(path)
    assert "\n" not in str(caught.value)
