"""Latency: what is measured, in which order, and what is refused."""

import json
import time

import pytest

from tfcomp.errors import TfcompError
from tfcomp.runtime import Interpreter, latencies, latency


def test_one_file(tiny_files):
    found = latency(tiny_files["int8"], runs=20, warm_up=2)
    assert 0 < found.median_ms <= found.p90_ms < 1000
    assert (found.runs, found.warm_up, found.threads) == (20, 2, 1)
    assert json.loads(json.dumps(found.to_dict()))["median_ms"] == found.median_ms
    assert "20 runs, 1 thread)" in str(found)


def test_files_take_turns_and_the_first_changes(tiny_files, monkeypatch):
    order = []
    monkeypatch.setattr(Interpreter, "invoke", lambda self: order.append(self.path.stem))
    latencies([tiny_files["int8"], tiny_files["float32"]], runs=2, warm_up=1)
    rounds = [order[i : i + 2] for i in range(0, 6, 2)]
    assert all(sorted(pair) == ["float32", "int8"] for pair in rounds)
    assert rounds[1] != rounds[2]


def test_figures_are_those_of_the_clock(tiny_files, monkeypatch):
    now = [0]
    ten = iter([5_000_000, *(1_000_000 * (i + 1) for i in range(10))])

    def invoke(self):
        now[0] += next(ten)

    monkeypatch.setattr(Interpreter, "invoke", invoke)
    monkeypatch.setattr(time, "perf_counter_ns", lambda: now[0])
    found = latency(tiny_files["int8"], runs=10, warm_up=1)
    assert found.median_ms == pytest.approx(5.5)
    assert found.p90_ms == pytest.approx(9.1)


@pytest.mark.parametrize("wrong", [{"runs": 0}, {"warm_up": -1}, {"threads": 0}])
def test_senseless_counts_are_refused(tiny_files, wrong):
    with pytest.raises(TfcompError, match="must be"):
        latency(tiny_files["int8"], **wrong)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(TfcompError, match="Cannot read"):
        latencies([tmp_path / "none.tflite"])
