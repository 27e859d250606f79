"""Plots: labels that do not collide, the Pareto front, and no trace in matplotlib's settings."""

import itertools
import xml.etree.ElementTree as ET
from typing import Any

import matplotlib
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfcomp.reporting import plots, reading

_BOUNDS = (0.0, 0.0, 340.0, 240.0)


def _touch(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return min(a[2], b[2]) > max(a[0], b[0]) and min(a[3], b[3]) > max(a[1], b[1])


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(30, 310), st.floats(20, 220), st.floats(20, 90)), min_size=1, max_size=7
    )
)
def test_labels_neither_overlap_nor_leave(labels: list[tuple[float, float, float]]) -> None:
    boxes = plots.place_labels(
        [(x, y) for x, y, _ in labels], [(width, 14.0) for *_, width in labels], _BOUNDS
    )
    assert not any(_touch(a, b) for a, b in itertools.combinations(boxes, 2))
    for box in boxes:
        assert box[0] >= -1e-6
        assert box[1] >= -1e-6
        assert box[2] <= _BOUNDS[2] + 1e-6
        assert box[3] <= _BOUNDS[3] + 1e-6


def test_labels_of_coincident_points_spread() -> None:
    boxes = plots.place_labels([(170.0, 120.0)] * 8, [(60.0, 14.0)] * 8, _BOUNDS)
    assert not any(_touch(a, b) for a, b in itertools.combinations(boxes, 2))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=8))
def test_pareto_by_sweep(points: list[tuple[int, int]]) -> None:
    """The oracle sorts and sweeps instead of comparing all pairs."""
    best: dict[int, int] = {}
    for x, y in points:
        best[x] = max(best.get(x, -1), y)
    front, record = set(), -1
    for x in sorted(best):
        if best[x] > record:
            front.add((x, best[x]))
            record = best[x]
    found = plots.pareto([x for x, _ in points], [y for _, y in points])
    assert found == [point in front for point in points]


@pytest.mark.parametrize("quantity", ["bytes", "latency_ms"])
def test_is_xml_and_says_every_stage(report: dict[str, Any], quantity: Any) -> None:
    svg = plots.accuracy_against(report, quantity)
    root = ET.fromstring(svg)
    texts = {"".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")}
    spoken = root.attrib["aria-label"]
    for index, stage in enumerate(report["stages"], start=1):
        measured = quantity == "bytes" or stage["latency_ms"]
        assert (f"{index} {stage['name']}" in texts) == bool(measured)
        assert (f"{stage['name']}: " in spoken) == bool(measured)
    assert svg == plots.accuracy_against(report, quantity)


def test_takes_the_colours_of_the_page(report: dict[str, Any]) -> None:
    svg = plots.accuracy_against(report, "bytes")
    assert "var(--ink, #1d2126)" in svg
    for stand_in in ("#010101", "#020202", "#030303", "#040404", "#050505", "#000000", "#ffffff;"):
        assert stand_in not in svg


def test_names_are_not_formulas_and_are_cut_when_long(report: dict[str, Any]) -> None:
    report["stages"][0]["name"] = "$x^2$ 模型 " + "long " * 20
    svg = plots.accuracy_against(report, "bytes")
    assert "1 $x^2$ 模型 long" in svg
    assert "…</text>" in svg


@pytest.mark.parametrize("values", [[5], [5, 5], [0.001, 1000], [1, 2**40], [1e-9, 2e-9]])
@pytest.mark.parametrize("quantity", ["bytes", "latency_ms"])
def test_any_range_can_be_drawn(values: list[float], quantity: Any) -> None:
    stages = [
        {"name": "s", "accuracy": 0.5, "bytes": int(v) or 1, "latency_ms": {"median": v}}
        for v in values
    ]
    ET.fromstring(plots.accuracy_against({"stages": stages}, quantity))


def test_curves_fall_back_to_the_loss_and_bear_gaps() -> None:
    report = {"stages": [{"name": "a", "history": {"loss": [2.0, float("nan"), 1.0]}}]}
    (stage,) = reading.stages(report)
    assert plots.curves(stage) == ("loss", {"training": [2.0, None, 1.0]})
    assert "a: loss by epoch; training ends at 1." in plots.training_curves(stage)


def test_refuses_an_unknown_quantity(report: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="received 'macs'"):
        plots.accuracy_against(report, "macs")  # type: ignore[arg-type]


def test_leaves_the_settings_of_the_caller_alone(report: dict[str, Any]) -> None:
    with matplotlib.rc_context({"font.size": 23.0, "axes.facecolor": "red"}):
        before = dict(matplotlib.rcParams)
        styled = plots.accuracy_against(report, "bytes")
        assert dict(matplotlib.rcParams) == before
    assert styled == plots.accuracy_against(report, "bytes")
