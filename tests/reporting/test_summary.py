"""The bottom line says what the figures say, and what they do not."""

from typing import Any

import pytest

from tfcomp.reporting import summary


def _pair(**changes: Any) -> dict[str, Any]:
    """A report of two stages: the changes are of the last one."""
    first = {
        "name": "teacher",
        "accuracy": 0.91,
        "examples": 1000,
        "bytes": 4000,
        "gzip_bytes": 3000,
        "latency_ms": {"median": 2.0, "p90": 2.2, "threads": 1},
    }
    return {"stages": [first, {**first, "name": "int8", **changes}]}


def _caveats(report: dict[str, Any]) -> str:
    return "\n".join(summary.summarise(report).caveats)


def test_of_the_example(report: dict[str, Any]) -> None:
    found = summary.summarise(report)
    assert found.sentence == (
        "The final file, int8, is 32.2× smaller and 11.7× faster than teacher; its accuracy is "
        "1.5 points lower, which is within the uncertainty of 1,000 test images."
    )
    assert [(figure.label, figure.value.replace("\xa0", " ")) for figure in found.figures] == [
        ("Accuracy", "89.8%"),
        ("File size", "32.2× smaller"),
        ("After gzip", "36.9× smaller"),
        ("Latency, median", "11.7× faster"),
    ]
    assert summary.describe_file(report) == (
        "int8, float32 in and out, 0 float ops, 13 of 14 ops predicted to map to the Edge TPU"
    )
    caveats = "\n".join(found.caveats)
    for words in ("±1.9 points", "−4.1 and +1.1 points", "one seed", "predicted", "1 of 14 ops"):
        assert words in caveats


@pytest.mark.parametrize(
    "changes, words",
    [
        (
            {"bytes": 1000},
            "is 4.0× smaller and about as fast as teacher; its accuracy is the same.",
        ),
        ({"latency_ms": {"median": 4.0}}, "is the same size and 2.0× slower than teacher"),
        ({"bytes": 8000, "latency_ms": None}, "is 2.0× larger than teacher"),
        ({"accuracy": 0.95}, "accuracy is 4.0 points higher."),
        ({"accuracy": 0.912}, "0.2 points higher, which is within the uncertainty of 1,000"),
        ({"accuracy": None}, "accuracy was not measured"),
        ({"bytes": None, "latency_ms": None}, "size and speed were not measured."),
    ],
)
def test_sentence(changes: dict[str, Any], words: str) -> None:
    assert words in summary.summarise(_pair(**changes)).sentence


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"latency_ms": {"median": 4.0}}, "Latency got worse"),
        ({"latency_ms": {"median": 1.95}}, "Latency did not improve"),
        ({"latency_ms": {"median": 0.5, "threads": 4}}, "different numbers of threads"),
        ({"latency_ms": None}, "int8 has no measured latency"),
        ({"bytes": 4000}, "did not shrink"),
        ({"examples": 500}, "was scored on 1,000 images and int8 on 500"),
        ({"examples": None}, "has no interval"),
        ({"parameters": 100, "nonzero_parameters": 20}, "80% of the final weights are zero"),
        ({"accuracy": 91.0}, "expected a fraction in [0, 1], found 91.0; left out"),
        ({"bytes": -4}, "bytes: expected a number of at least 0, found -4; left out"),
        ({"bytes": float("nan")}, "found nan; left out"),
    ],
)
def test_caveats(changes: dict[str, Any], words: str) -> None:
    assert words in _caveats(_pair(**changes))


def test_other_threads_give_no_speed_up() -> None:
    found = summary.summarise(_pair(latency_ms={"median": 0.5, "threads": 4}))
    assert "faster" not in found.sentence
    assert not any("faster" in figure.value for figure in found.figures)


def test_latency_missing_everywhere_is_said(report: dict[str, Any]) -> None:
    for stage in report["stages"]:
        stage["latency_ms"] = None
    found = summary.summarise(report)
    assert any("Latency was not measured" in caveat for caveat in found.caveats)
    assert "faster" not in found.sentence
    assert found.figures[-1].value == "–"
    assert found.figures[-1].detail == "not measured on this machine"


def test_file_caveats(report: dict[str, Any]) -> None:
    report["file"]["float_ops"] = ["SOFTMAX", "SOFTMAX"]
    report["parity"]["argmax_agreement"] = 0.95
    report["edgetpu"].update(predicted=False, mapped=14)
    caveats = _caveats(report)
    assert "in float in 2 of its ops: SOFTMAX." in caveats
    assert "agree on only 95.0%" in caveats
    assert "predicted" not in caveats
    assert "14 of 14 ops mapped to the Edge TPU by its compiler" in str(
        summary.describe_file(report)
    )


def test_nothing_and_one_stage() -> None:
    assert summary.summarise({}).sentence == "No stage has been recorded."
    one = summary.summarise({"stages": [{"name": "only", "accuracy": 0.9}]})
    assert one.sentence == (
        "One stage, only: its accuracy is 90.0%. There is nothing to compare it with."
    )
    assert summary.describe_file({}) is None


def test_a_file_that_the_edge_tpu_compiler_refuses_is_not_called_mapped(
    report: dict[str, Any],
) -> None:
    report["edgetpu"]["refused"] = "Didn't find op for builtin opcode 'CONV_2D' version '6'."
    assert "13 of 14" not in str(summary.describe_file(report))
    assert "predicted to be refused" in str(summary.describe_file(report))
    assert "would refuse the whole file: Didn't find op" in _caveats(report)
