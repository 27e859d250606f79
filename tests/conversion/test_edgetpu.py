"""The Edge TPU prediction against compiled files, each rule, and the compiler's own log."""

import collections
import json
import os
import pathlib
import stat
import sys

import pytest
from ai_edge_litert import schema_py_generated as schema
from hypothesis import given, settings
from hypothesis import strategies as st

from tfcomp.conversion import convert
from tfcomp.conversion.audit import OpInfo, TensorInfo, audit
from tfcomp.conversion.edgetpu import analyse, analyse_ops, partition, rules
from tfcomp.conversion.edgetpu_compiler import compile_edgetpu, parse_log
from tfcomp.conversion.edgetpu_conditions import CONDITIONS
from tfcomp.errors import ConversionError, TfcompError

ROOT = pathlib.Path(__file__).resolve().parents[2]
FILES = pathlib.Path(os.environ.get("TFCOMP_EDGETPU_FILES", ROOT.parent / "shared" / "edgetpu"))
REASONS = rules()["reasons"]
NAMES = {
    "2019_mobilenet_v2_1.0_224_quant",
    "deeplab_mobilenet_edgetpu_slim_cityscapes_quant",
    "deeplabv3_mnv2_dm05_pascal_quant",
    "mobilenet_v1_0.25_128_quant",
    "posenet_posenet_mobilenet_v1_075_353_481_16_quant_decoder",
    "tools_split_concat",
}


def truth_of(name):
    if not (FILES / "truth.json").exists():
        pytest.skip(f"no compiled pairs in {FILES}; set TFCOMP_EDGETPU_FILES")
    return json.loads((FILES / "truth.json").read_text())[f"{name}.tflite"]


# --- Compiled files ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(NAMES))
def test_the_very_ops_left_on_the_cpu_are_predicted(name):
    truth = truth_of(name)
    found = audit(FILES / f"{name}.tflite")
    report = analyse(found)
    assert len(report.ops) == truth["total_ops"]
    assert found.op_counts == truth["src_ops"]
    assert [op.index for op in report.unmapped] == truth["cpu_op_indices"]
    assert collections.Counter(op.op for op in report.unmapped) == truth["cpu_ops"]
    assert report.refused is None


def test_an_all_mapped_guess_is_wrong_where_the_prediction_is_right():
    wrong = [name for name in NAMES if truth_of(name)["cpu_op_indices"]]
    assert len(wrong) == 3


def test_files_of_todays_converter(tiny_files):
    fixed = analyse(tiny_files["int8"])
    assert {op.reason for op in fixed.ops} == {REASONS["mapped"]}
    border = analyse(tiny_files["int8_float_io"])
    assert {op.op: op.reason for op in border.unmapped} == {
        "QUANTIZE": REASONS["limitation"],
        "DEQUANTIZE": REASONS["dtype"],
    }
    opened = analyse(tiny_files["int8_open"])
    assert not opened.mapped
    assert REASONS["dynamic"] in {op.reason for op in opened.ops}
    assert not analyse(tiny_files["float32"]).mapped


def test_report_text_and_dict(tiny_files):
    report = analyse(tiny_files["int8_float_io"])
    text = str(report)
    assert "predicted" in text
    assert f"all-mapped baseline {len(report.ops)} of {len(report.ops)}" in text
    assert "io_dtype='int8'" in " ".join(text.split())
    kept = json.loads(json.dumps(report.to_dict()))
    assert kept["predicted"]
    assert kept["mapped"] == len(report.mapped) == kept["total"] - 2


# --- Each rule --------------------------------------------------------------------------------


def tensor(shape, dtype="int8", constant=False, **more):
    tensor.count += 1
    index = tensor.count
    return TensorInfo(f"t{index}", shape, dtype, constant=constant, index=index, **more)


tensor.count = 0


def const(shape, dtype="int8", **more):
    return tensor(shape, dtype, constant=True, **more)


def ints(*values):
    return const((len(values),), "int32", values=values)


def op(name, inputs, outputs, version=1, index=0, **options):
    return OpInfo(index, name, version, tuple(inputs), tuple(outputs), options)


def image(side=8, channels=4, **more):
    return tensor((1, side, side, channels), **more)


def vector(n=10, **more):
    return tensor((1, n), **more)


def conv(x, y, version=3, **options):
    weights = [const((4, 3, 3, 4), scales=4), const((4,), "int32")]
    return op("CONV_2D", [x, *weights], [y], version, **options)


def dense(y, scales=1, **options):
    weights = [const((10, 6), scales=scales), const((10,), "int32", scales=scales)]
    return op("FULLY_CONNECTED", [vector(6), *weights], [y], 4, **options)


def resize(before, after, name="RESIZE_BILINEAR"):
    return op(name, [image(before), ints(after, after)], [image(after)])


def single(name, x=None, y=None, *more, version=1, **options):
    return op(name, [x or image(), *more], [y or image()], version, **options)


# For every condition of the rules: an op that meets it, and one that does not.
CONDITION_CASES = {
    "no_fused_activation": (
        single("MAX_POOL_2D", fused_activation_function="NONE"),
        single("MAX_POOL_2D", fused_activation_function="RELU"),
    ),
    "constant_only_pads": (
        op("CONCATENATION", [image(), const((1, 8, 8, 4), all_zero=True)], [image()]),
        op("CONCATENATION", [image(), const((1, 8, 8, 4))], [image()]),
    ),
    "constant_weights": (
        conv(image(), image()),
        op("CONV_2D", [image(), tensor((1, 3, 3, 4))], [image()], 3),
    ),
    "same_dilation": (
        conv(image(), image(), dilation_w_factor=2, dilation_h_factor=2),
        conv(image(), image(), dilation_w_factor=2, dilation_h_factor=1),
    ),
    "default_weights_format": (dense(vector()), dense(vector(), weights_format=1)),
    "one_dimensional_output": (dense(vector()), dense(tensor((1, 5, 10)))),
    "one_dimensional_input": (
        single("SOFTMAX", vector(), vector()),
        single("SOFTMAX", tensor((1, 5, 10)), tensor((1, 5, 10))),
    ),
    "per_tensor_weights": (dense(vector()), dense(vector(), scales=10)),
    "axis_not_batch": (single("PACK", axis=1), single("PACK", axis=0)),
    "axes_not_batch": (
        single("MEAN", image(), vector(4), ints(1, 2)),
        single("MEAN", image(), vector(4), ints(0, 1)),
    ),
    "reduced_depth_multiple": (
        single("MEAN", image(channels=8), None, ints(-1)),
        single("MEAN", image(channels=6), None, ints(3)),
    ),
    "paddings_not_batch": (
        single("PAD", None, None, ints(0, 0, 1, 1, 1, 1, 0, 0)),
        single("PAD", None, None, ints(0, 1, 1, 1, 1, 1, 0, 0)),
    ),
    "one_dimensional_alpha": (
        single("PRELU", None, None, const((1, 1, 4))),
        single("PRELU", None, None, const((8, 8, 4))),
    ),
    "elements_at_most": (
        single("SOFTMAX", vector(16000), vector(16000)),
        single("SOFTMAX", vector(16001), vector(16001)),
    ),
    "resize_at_most": (resize(24, 48), resize(33, 513)),
    "output_side_at_most": (resize(24, 48), resize(256, 512)),
    "squeezes_leading_ones": (
        single("SQUEEZE", tensor((1, 1, 8, 4)), tensor((8, 4))),
        single("SQUEEZE", tensor((1, 8, 1, 4)), tensor((1, 8, 4))),
    ),
    "unit_strides": (
        single("STRIDED_SLICE", image(), image(), ints(0, 0), ints(4, 4), ints(1, 1)),
        single("STRIDED_SLICE", image(), image(), ints(0, 0), ints(4, 4), ints(1, 2)),
    ),
    "option_is_zero": (
        single("STRIDED_SLICE", ellipsis_mask=0, new_axis_mask=0),
        single("STRIDED_SLICE", ellipsis_mask=0, new_axis_mask=1),
    ),
}
# Where the op is mapped all the same, and only the answer is less sure.
ONLY_LESS_SURE = {"per_tensor_weights", "output_side_at_most"}


def test_every_condition_has_a_case_and_a_rule():
    named = {
        condition["check"]
        for rule in rules()["ops"].values()
        for condition in rule.get("conditions", ())
    }
    assert set(CONDITION_CASES) == set(CONDITIONS) == named


@pytest.mark.parametrize("name", sorted(CONDITION_CASES))
def test_condition(name):
    meets, fails = CONDITION_CASES[name]
    [met] = analyse_ops([meets]).ops
    [failed] = analyse_ops([fails]).ops
    assert met.mapped
    assert met.reason == "Mapped to Edge TPU"
    if name in ONLY_LESS_SURE:
        assert failed.mapped
        assert (met.certainty, failed.certainty) == ("proven", "uncertain")
    else:
        assert not failed.mapped
        assert failed.reason.startswith("Operation is otherwise supported, but not mapped")
    assert failed.suggestion


FLOAT = {"dtype": "float32"}
WHOLE_MODEL_CASES = [
    ("float input of QUANTIZE", single("QUANTIZE", image(**FLOAT)), "limitation"),
    ("uint8 to int8", single("QUANTIZE", image(dtype="uint8")), "mapped"),
    ("DEQUANTIZE", single("DEQUANTIZE", None, image(**FLOAT)), "dtype"),
    ("float ADD", single("ADD", image(**FLOAT), image(**FLOAT)), "dtype"),
    ("16-bit activations", single("ADD", image(dtype="int16"), image(dtype="int16")), "dtype"),
    ("int64 ARG_MAX: dtype before name", single("ARG_MAX", None, vector(dtype="int64")), "dtype"),
    ("int8 custom op: the name", single("CUSTOM:Mine"), "unsupported"),
    ("float custom op: dtype before name", single("CUSTOM:Mine", image(**FLOAT)), "dtype"),
    ("int4 weights", op("CONV_2D", [image(), const((4, 3, 3, 4), "int4")], [image()]), "dtype"),
    ("dynamic batch", single("RELU", tensor((None, 8, 8, 4))), "dynamic"),
    ("batch of 2", single("RELU", tensor((2, 8, 8, 4)), tensor((2, 8, 8, 4))), "rank"),
    ("rank 5, outer ones", single("RELU", tensor((1, 1, 8, 8, 4))), "mapped"),
    ("GATHER", single("GATHER"), "unsupported"),
    ("HARD_SWISH", single("HARD_SWISH"), "unsupported"),
    ("LEAKY_RELU", single("LEAKY_RELU"), "unsupported"),
    ("not in any list", single("COS"), "unsupported"),
    ("TILE", single("TILE", None, None, ints(1, 2, 2, 1)), "mapped"),
    ("upsampling 4×", resize(8, 32), "limitation"),
    ("nearest 2×", resize(8, 16, "RESIZE_NEAREST_NEIGHBOR"), "mapped"),
    ("transposed", op("TRANSPOSE_CONV", [ints(1, 8, 8, 4), const((4, 3, 3, 4)), image()],
                      [image()]), "mapped"),
    ("LSTM state", single("UNIDIRECTIONAL_SEQUENCE_LSTM", None, None, vector(dtype="int16")),
     "mapped"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "case", "reason"), WHOLE_MODEL_CASES, ids=lambda v: str(v)[:30])
def test_rule(what, case, reason):
    [mapping] = analyse_ops([case]).ops
    assert mapping.reason == REASONS[reason], what
    assert mapping.mapped == (reason == "mapped")
    if not mapping.mapped:
        assert mapping.suggestion


def test_table_is_well_formed():
    table = rules()
    known = {name for name in vars(schema.BuiltinOperator) if name.isupper()}
    assert set(table["ops"]) <= known
    assert set(table["unsupported"]) <= known
    assert set(table["refused"]["versions"]) <= known
    assert not set(table["ops"]) & set(table["unsupported"])
    for rule in (*table["ops"].values(), *table["unsupported"].values()):
        assert rule["certainty"] in ("proven", "documented", "uncertain")
        for condition in rule.get("conditions", ()):
            assert condition["certainty"] in ("proven", "documented", "uncertain")
            assert condition["suggest"]


def test_an_unknown_version_refuses_the_whole_file():
    x, y, z = image(), image(), image()
    report = analyse_ops([conv(x, y, version=6), single("ADD", y, z)])
    assert report.refused == "Didn't find op for builtin opcode 'CONV_2D' version '6'"
    assert not report.mapped
    assert "refused" in str(report)
    newer = analyse_ops([conv(x, y, version=5)])
    assert newer.refused is None
    assert newer.ops[0].mapped
    assert newer.ops[0].certainty == "uncertain"


def test_parameters_beyond_the_cache_are_told(tmp_path):
    from tfcomp.conversion.audit import Audit

    weights = const((3000, 3000), nbytes=9_000_000)
    ops = (op("FULLY_CONNECTED", [vector(3000), weights], [vector(3000)], 4),)
    report = analyse(Audit(tmp_path / "x.tflite", 1, 1, (), (), ops))
    assert "streamed" in report.notes[-1]
    assert report.path == tmp_path / "x.tflite"


# --- Partition --------------------------------------------------------------------------------


def chain(kinds):
    """A straight line of ops: True is one that the Edge TPU runs."""
    tensors = [image() for _ in range(len(kinds) + 1)]
    return [
        single("RELU" if kind else "COS", tensors[i], tensors[i + 1])
        for i, kind in enumerate(kinds)
    ]


def test_one_subset_is_kept_and_what_waits_is_named():
    ops = chain([False, True, True, False, True])
    report = analyse_ops(ops)
    assert [m.mapped for m in report.ops] == [False, True, True, False, False]
    assert report.ops[4].reason == "More than one subgraph is not supported"
    assert report.ops[4].suggestion == "It waits for COS."


def test_an_op_after_an_unsupported_one_is_mapped_if_it_does_not_depend_on_it():
    x, a, b, c, d = (image() for _ in range(5))
    ops = [single("RELU", x, a), single("COS", a, b), single("RELU", a, c), single("ADD", c, d, b)]
    assert [m.mapped for m in analyse_ops(ops).ops] == [True, False, True, False]


def test_a_small_first_subset_is_kept_but_not_for_certain():
    report = analyse_ops(chain([True, False, True, True]))
    assert [m.mapped for m in report.ops] == [True, False, False, False]
    assert {m.certainty for m in report.ops[2:]} == {"uncertain"}


@st.composite
def graphs(draw):
    """Ops in execution order, each reading some tensors made before it."""
    count = draw(st.integers(1, 12))
    tensors, ops, supported = [image()], [], []
    for index in range(count):
        chosen = draw(st.lists(st.sampled_from(tensors), min_size=1, max_size=3, unique=True))
        made = image()
        kind = draw(st.booleans())
        name = "ADD" if kind else "COS"
        ops.append(op(name, chosen, [made], index=index))
        supported.append(kind)
        tensors.append(made)
    return ops, supported


def readers(ops):
    makers = {o.outputs[0].index: i for i, o in enumerate(ops)}
    return [[makers[t.index] for t in o.inputs if t.index in makers] for o in ops]


@settings(max_examples=150, deadline=None)
@given(graphs())
def test_partition_is_that_of_a_closed_formula(graph):
    ops, supported = graph
    subsets = partition(ops, supported)
    assert sorted(i for _, subset in subsets for i in subset) == list(range(len(ops)))
    # Subset k is of the first op's kind for even k: each op is in the first of its kind that
    # is not before any subset it reads from.
    level = []
    for kind, sources in zip(supported, readers(ops), strict=True):
        earliest = max((level[s] for s in sources), default=0)
        level.append(earliest + ((earliest % 2 == 0) != (kind == supported[0])))
    found = {i: k for k, (_, subset) in enumerate(subsets) for i in subset}
    assert [found[i] for i in range(len(ops))] == level
    assert all(all(supported[i] == kind for i in subset) for kind, subset in subsets)


@settings(max_examples=150, deadline=None)
@given(graphs())
def test_mapped_ops_form_one_convex_part(graph):
    ops, supported = graph
    mapped = [m.mapped for m in analyse_ops(ops).ops]
    assert any(mapped) == any(supported)
    assert all(kind for kind, on_tpu in zip(supported, mapped, strict=True) if on_tpu)
    # No way out of the mapped part leads back into it.
    left = []
    for index, sources in enumerate(readers(ops)):
        left.append(any(left[s] or mapped[s] for s in sources) and not mapped[index])
        left[-1] = left[-1] or any(left[s] for s in sources)
        assert not (mapped[index] and any(left[s] for s in sources))


# --- The compiler -----------------------------------------------------------------------------

LOG = """Edge TPU Compiler version 16.0.384591198
Started a compilation timeout timer of 180 seconds.

Model compiled successfully in 93 ms.

Input model: /models/tiny.tflite
Input size: 4.50KiB
Output model: /models/tiny_edgetpu.tflite
Output size: 40.25KiB
On-chip memory used for caching model parameters: 3.00KiB
On-chip memory remaining for caching model parameters: 7.67MiB
Off-chip memory used for streaming uncached model parameters: 0.00B
Number of Edge TPU subgraphs: 1
Total number of operations: {total}
Operation log: /models/tiny_edgetpu.log

Operator                       Count      Status

{rows}
Compilation child process completed within timeout period.
Compilation succeeded!
"""


def log_of(rows):
    lines = "\n".join(f"{name:<30} {count:<10} {status}" for name, count, status in rows)
    return LOG.format(total=sum(row[1] for row in rows), rows=lines)


def test_log():
    rows = [("CONV_2D", 2, REASONS["mapped"]), ("CONV_2D", 12, REASONS["subgraph"])]
    log = parse_log(log_of(rows))
    assert log.version == "16.0.384591198"
    assert [(row.op, row.count, row.status) for row in log.ops] == rows
    assert [row.mapped for row in log.ops] == [True, False]
    assert log.sizes["On-chip memory used for caching model parameters"] == 3 * 1024
    assert log.sizes["Off-chip memory used for streaming uncached model parameters"] == 0


@given(st.text())
def test_any_other_text_is_a_log_without_ops(text):
    assert parse_log(text).ops == () or "Operator" in text


@pytest.fixture
def fake_compiler(tmp_path, monkeypatch):
    """Puts a script on PATH that prints a log and writes the output file."""

    def install(log, writes=True, code=0):
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        (folder / "log.txt").write_text(log)
        script = folder / "edgetpu_compiler"
        script.write_text(
            f"#!{sys.executable}\n"
            "import pathlib, sys\n"
            "assert sys.argv[1:3] == ['-s', '-o'], sys.argv\n"
            "source = pathlib.Path(sys.argv[4])\n"
            f"if {writes}:\n"
            "    made = pathlib.Path(sys.argv[3]) / f'{source.stem}_edgetpu.tflite'\n"
            "    made.write_bytes(source.read_bytes() + b'compiled')\n"
            "print(pathlib.Path(__file__).with_name('log.txt').read_text())\n"
            f"sys.exit({code})\n"
        )
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    return install


def predicted_rows(path):
    return [(name, count, reason) for (name, reason), count in analyse(path).counts.items()]


def test_the_compiler_is_called_and_agrees(tiny_files, tmp_path, fake_compiler):
    source = tiny_files["int8_float_io"]
    fake_compiler(log_of(predicted_rows(source)))
    made = compile_edgetpu(source, tmp_path / "out.tflite")
    assert made.path.read_bytes() == source.read_bytes() + b"compiled"
    assert made.disagreements == ()
    assert len(made.baseline_disagreements) == 2
    assert "disagreements with the prediction: none" in str(made)
    assert json.loads(json.dumps(made.to_dict()))["version"] == "16.0.384591198"


def test_disagreements_are_shown(tiny_files, tmp_path, fake_compiler):
    source = tiny_files["int8"]
    rows = [
        (name, count, REASONS["limitation"] if name == "RESHAPE" else status)
        for name, count, status in predicted_rows(source)
    ]
    fake_compiler(log_of(rows))
    made = compile_edgetpu(source, tmp_path / "out.tflite")
    assert made.disagreements == ("RESHAPE: compiled 0 of 1 mapped, predicted 1 of 1",)
    assert made.disagreements[0] in " ".join(str(made).split())


def test_a_refusal_is_told_in_the_compilers_words(tiny_files, tmp_path, fake_compiler):
    fake_compiler(
        "Edge TPU Compiler version 16.0.384591198\n"
        "ERROR: Didn't find op for builtin opcode 'CONV_2D' version '6'. An older version of "
        "this builtin might be supported.\n\nERROR: Registration failed.\n\n"
        "Invalid model: x.tflite\nModel could not be parsed\n",
        writes=False,
        code=1,
    )
    with pytest.raises(ConversionError, match="CONV_2D' version '6'") as caught:
        compile_edgetpu(tiny_files["int8"], tmp_path / "out.tflite")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.tflite").exists()


def test_without_a_compiler_the_way_is_shown(tiny_files, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TfcompError, match="not on PATH"):
        compile_edgetpu(tiny_files["int8"])


def _convert_for_edgetpu(tiny_files, path):
    return convert(
        tiny_files.model, path, dtype="int8", target="edgetpu", calibration=tiny_files.images
    )


def test_convert_calls_the_compiler_where_there_is_one(tiny_files, tmp_path, fake_compiler):
    predicted = _convert_for_edgetpu(tiny_files, tmp_path / "plain.tflite").edgetpu
    assert predicted.to_dict()["predicted"]
    fake_compiler(log_of(predicted_rows(tmp_path / "plain.tflite")))
    compiled = _convert_for_edgetpu(tiny_files, tmp_path / "model.tflite").edgetpu
    assert not compiled.to_dict()["predicted"]
    assert compiled.disagreements == ()
    assert (tmp_path / "model_edgetpu.tflite").read_bytes().endswith(b"compiled")


def test_what_the_compiler_refuses_is_not_written(tiny_files, tmp_path, fake_compiler):
    fake_compiler("Invalid model: x\n", writes=False, code=1)
    with pytest.raises(ConversionError, match="edgetpu_compiler did not compile"):
        _convert_for_edgetpu(tiny_files, tmp_path / "model.tflite")
    assert [p.name for p in tmp_path.iterdir()] == ["bin"]
