"""The audit against hand-counted figures, the runtime's own view, and damaged files."""

import gzip
import json
import pathlib

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from hypothesis import given, settings
from hypothesis import strategies as st

from tfcomp.conversion.audit import Audit, OpInfo, TensorInfo, audit
from tfcomp.conversion.compatibility import compatibility, runtimes
from tfcomp.errors import DamagedFileError, TfcompError

CONV_MACS = 6 * 6 * 4 * 3 * 3 * 3
DENSE_MACS = 6 * 6 * 4 * 10


def test_float_file(tiny_files):
    found = audit(tiny_files["float32"])
    assert found.macs == CONV_MACS + DENSE_MACS
    assert found.op_counts["CONV_2D"] == found.op_counts["FULLY_CONNECTED"] == 1
    assert found.weight_bytes["float32"] == 4 * (108 + 4 + 1440 + 10)
    assert {"CONV_2D", "FULLY_CONNECTED"} <= {op.op for op in found.float_ops}
    assert found.hybrid_ops == ()
    assert found.dynamic_batch
    assert found.inputs[0].shape == (None, 8, 8, 3)
    assert found.inputs[0].dtype == "float32"


def test_int8_file(tiny_files):
    found = audit(tiny_files["int8"])
    assert found.float_ops == ()
    assert found.weight_bytes["int8"] == 108 + 1440
    assert not found.dynamic_batch
    assert found.inputs[0].shape == (1, 8, 8, 3)
    assert [t.dtype for t in (*found.inputs, *found.outputs)] == ["int8", "int8"]
    assert found.inputs[0].scale == pytest.approx(1 / 255, rel=0.01)
    conv = next(op for op in found.ops if op.op == "CONV_2D")
    assert conv.options["fused_activation_function"] == "RELU"
    assert conv.options["stride_w"] == 1
    assert conv.options["padding"] == "VALID"
    assert conv.weights[0].scales == 4
    assert conv.macs == CONV_MACS


def test_the_models_own_float_border_is_no_float_op(tiny_files):
    found = audit(tiny_files["int8_float_io"])
    assert {"QUANTIZE", "DEQUANTIZE"} <= set(found.op_counts)
    assert found.float_ops == ()


def test_a_float_island_in_the_middle_is_seen():
    def tensor(index, dtype):
        return TensorInfo(f"t{index}", (1, 4), dtype, index=index)

    a, b, c, d = (tensor(i, t) for i, t in enumerate(["int8", "float32", "float32", "int8"]))
    ops = (
        OpInfo(0, "DEQUANTIZE", 1, (a,), (b,)),
        OpInfo(1, "EXP", 1, (b,), (c,)),
        OpInfo(2, "QUANTIZE", 1, (c,), (d,)),
    )
    found = Audit(pathlib.Path("x.tflite"), 1, 1, (a,), (d,), ops)
    assert [op.op for op in found.float_ops] == ["DEQUANTIZE", "EXP", "QUANTIZE"]


def test_macs_in_a_loop_are_not_known():
    x, w, y = (TensorInfo(f"t{i}", (1, 4), "int8", constant=i == 1, index=i) for i in range(3))
    once = OpInfo(0, "FULLY_CONNECTED", 1, (x, w), (y,))
    body = OpInfo(0, "FULLY_CONNECTED", 1, (x, w), (y,), subgraph=1)
    reshape = OpInfo(1, "RESHAPE", 1, (x,), (y,), subgraph=1)
    path = pathlib.Path("x.tflite")
    assert Audit(path, 1, 1, (x,), (y,), (once, reshape)).macs == 16
    assert Audit(path, 1, 1, (x,), (y,), (once, body)).macs is None
    assert "subgraph 1" in body.label


def test_dynamic_range_file(tiny_files):
    found = audit(tiny_files["dynamic"])
    assert [op.op for op in found.hybrid_ops] == ["FULLY_CONNECTED"]
    assert found.weight_bytes["int8"] == 1440


def test_float16_file(tiny_files):
    found = audit(tiny_files["float16"])
    assert found.weight_bytes["float16"] == 2 * (108 + 4 + 1440 + 10)
    assert any(op.op == "DEQUANTIZE" for op in found.float_ops)


@pytest.mark.parametrize("name", ["float32", "dynamic", "int8", "int8_float_io", "heads"])
def test_tensors_are_those_that_the_runtime_sees(tiny_files, name):
    native = Interpreter(str(tiny_files[name]))
    native.allocate_tensors()
    details = {detail["index"]: detail for detail in native.get_tensor_details()}
    found = audit(tiny_files[name])
    seen = {t.index: t for op in found.ops for t in (*op.inputs, *op.outputs)}
    assert len(seen) > 5
    for index, tensor in seen.items():
        detail = details[index]
        assert tensor.name == detail["name"]
        assert tensor.dtype == np.dtype(detail["dtype"]).name
        assert tensor.scales == len(detail["quantization_parameters"]["scales"])
        if None not in tensor.shape and len(detail["shape_signature"]) == len(tensor.shape):
            assert tensor.shape == tuple(detail["shape_signature"])
    borders = native.get_input_details(), native.get_output_details()
    for ours, theirs in zip((found.inputs, found.outputs), borders, strict=True):
        assert [t.index for t in ours] == [detail["index"] for detail in theirs]


def test_bytes(tiny_files):
    data = tiny_files["int8"].read_bytes()
    found = audit(tiny_files["int8"])
    assert found.nbytes == len(data)
    assert len(gzip.decompress(gzip.compress(data, 9))) == len(data)
    assert found.gzip_bytes == len(gzip.compress(data, 9, mtime=0))


def test_to_dict_is_json_and_str_is_readable(tiny_files):
    found = audit(tiny_files["int8"])
    assert json.loads(json.dumps(found.to_dict()))["float_ops"] == []
    text = str(found)
    assert "FULLY_CONNECTED" in text
    assert "float ops: none" in text
    assert f"{CONV_MACS + DENSE_MACS:,} MACs" in text


def test_known_runtimes(tiny_files):
    assert all("CONV_2D" in ops for ops in runtimes().values())
    here = next(reversed(runtimes()))
    assert here in audit(tiny_files["int8"]).compatibility.runs_on
    refused = compatibility([("FULLY_CONNECTED", 12), ("CUSTOM:Mine", 1)]).refused_by
    assert refused["tflite-runtime 2.14.0"] == ("custom op Mine", "FULLY_CONNECTED version 12")
    assert all("custom op Mine" in lacking for lacking in refused.values())


@pytest.mark.parametrize("content", [b"", b"TFL3", b"not a model at all", bytes(64)])
def test_other_files_are_refused_in_one_line(tmp_path, content):
    path = tmp_path / "x.tflite"
    path.write_bytes(content)
    with pytest.raises(DamagedFileError, match="expected a TFLite file") as caught:
        audit(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "none.tflite", tmp_path):
        with pytest.raises(TfcompError, match="Cannot read"):
            audit(path)


@pytest.mark.parametrize("name", ["int8", "float32", "heads"])
def test_every_truncation_is_told(tiny_files, tmp_path, name):
    data = tiny_files[name].read_bytes()
    path = tmp_path / "cut.tflite"
    # The last bytes may be padding, without which a file is still whole.
    for length in [*range(0, len(data) - 16, 41), len(data) - 17, len(data) // 2]:
        path.write_bytes(data[:length])
        with pytest.raises(DamagedFileError, match=r"damaged|empty|without") as caught:
            audit(path)
        assert "\n" not in str(caught.value)


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_flipped_bytes_never_bring_another_error(tiny_files, tmp_path_factory, data):
    content = bytearray(tiny_files["int8"].read_bytes())
    flips = st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255))
    for position, value in data.draw(st.lists(flips, min_size=1, max_size=6)):
        content[position] = value
    path = tmp_path_factory.getbasetemp() / "flipped.tflite"
    path.write_bytes(content)
    try:
        found = audit(path)
    except DamagedFileError as error:
        check_one_line(error)
        return
    json.dumps(found.to_dict())
    assert str(found)


def check_one_line(error):
    assert "\n" not in str(error)
