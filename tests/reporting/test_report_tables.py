"""Terminal tables at the widths of real terminals."""

import io
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from tfcomp.errors import TfcompError
from tfcomp.reporting import edgetpu_table, layer_table, stage_table

_TABLES = [stage_table, layer_table, edgetpu_table]


def _print(table: Table, width: int) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width, color_system=None).print(table)
    return stream.getvalue()


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("make", _TABLES)
def test_fits(make: Callable[[Any], Table], width: int, report: dict[str, Any]) -> None:
    text = _print(make(report), width)
    assert all(len(line) <= width for line in text.splitlines())
    assert "…" not in text


@pytest.mark.parametrize("width", [80, 120])
def test_stage_table_has_the_figures(width: int, report: dict[str, Any]) -> None:
    lines = _print(stage_table(report), width).splitlines()
    (last,) = [" ".join(line.split()) for line in lines if line.strip().startswith("int8")]
    assert last == "int8 89.8% 118 k 98.3% 6.12 M 136 KiB 110 KiB 0.413 / 0.459"
    (qat,) = [line.split() for line in lines if line.strip().startswith("qat")]
    assert qat[-1] == "–"
    assert "99.8%" in qat  # 99.816 %: not "100%"


def test_edgetpu_table_groups_and_explains(report: dict[str, Any]) -> None:
    text = _print(edgetpu_table(report), 120)
    assert "Edge TPU, predicted: 13 of 14 ops map" in text
    assert "CONV_2D × 4" in text
    assert "0–3" in text
    assert "Operation not supported" in text
    report["edgetpu"]["ops"][0]["reason"] = "Mapped to Edge TPU"  # says no more than `mapped`
    assert _print(edgetpu_table(report), 120) == text
    report["edgetpu"]["predicted"] = False
    assert "Edge TPU, as compiled" in _print(edgetpu_table(report), 120)


@pytest.mark.parametrize("make", _TABLES)
def test_missing_fields_and_markup(make: Callable[[Any], Table]) -> None:
    bare = {"name": "[red]x[/nope]"}
    report = {"stages": [bare, {}], "layers": [bare, {}],
              "edgetpu": {"ops": [{"op": "[red]x[/nope]"}, {}]}}  # fmt: skip
    text = _print(make(report), 80)
    assert "[red]x[/nope]" in text
    assert "–" in text
    assert "None" not in text
    _print(make({}), 80)


@pytest.mark.parametrize("make", _TABLES)
def test_refuses_another_schema(make: Callable[[Any], Table]) -> None:
    with pytest.raises(TfcompError, match="schema 1, received schema 3"):
        make({"schema": 3})
