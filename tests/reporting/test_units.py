"""Units and intervals: exact at their borders, and against independent formulas."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tfcomp.reporting import intervals, units


def _plain(text: str) -> str:
    return text.replace("\N{NO-BREAK SPACE}", " ")


@pytest.mark.parametrize(
    "count, text",
    [
        (None, "–"),
        (0, "0 bytes"),
        (1, "1 byte"),
        (1023, "1,023 bytes"),
        (1024, "1.00 KiB"),
        (10_235, "10.0 KiB"),
        (139_472, "136 KiB"),
        (1_048_064, "1.00 MiB"),
        (1_048_063, "1,023 KiB"),
        (1_048_576, "1.00 MiB"),
        (8_331_890_688, "7.76 GiB"),
        (2**50, "1,024 TiB"),
    ],
)
def test_bytes(count: int | None, text: str) -> None:
    assert _plain(units.format_bytes(count)) == text


@given(st.integers(1024, 2**49))
def test_bytes_never_reach_the_next_unit_and_are_within_half_a_per_cent(count: int) -> None:
    number, unit = units.format_bytes(count).split("\N{NO-BREAK SPACE}")
    value = float(number.replace(",", ""))
    assert value < 1024
    power = ("KiB", "MiB", "GiB", "TiB").index(unit) + 1
    assert value * 1024**power == pytest.approx(count, rel=0.0051)


@pytest.mark.parametrize(
    "count, text",
    [
        (None, "–"),
        (0, "0"),
        (999_999, "999,999"),
        (1_000_000, "1.00 M"),
        (999_499_999, "999 M"),
        (999_500_000, "1.00 G"),
    ],
)
def test_counts(count: int | None, text: str) -> None:
    assert _plain(units.format_count(count)) == text


@pytest.mark.parametrize(
    "value, text",
    [(None, "–"), (0, "0 ms"), (0.4127, "0.413 ms"), (1.2, "1.20 ms"), (12.34, "12.3 ms")],
)
def test_milliseconds(value: float | None, text: str) -> None:
    assert _plain(units.format_ms(value)) == text


@pytest.mark.parametrize(
    "seconds, text",
    [
        (None, "–"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.5, "1 min 0 s"),
        (3599.4, "59 min 59 s"),
        (3600, "1 h 0 min"),
        (7199, "2 h 0 min"),
    ],
)
def test_seconds(seconds: float | None, text: str) -> None:
    assert _plain(units.format_seconds(seconds)) == text


@given(st.floats(1e-6, 1e12), st.floats(1e-6, 1e12))
def test_relative_tells_the_true_direction(value: float, base: float) -> None:
    text = units.relative(value, base, "less", "more")
    assert text is not None
    if value == base:
        assert text == "same"
        return
    assert text.endswith("less" if value < base else "more")
    assert not re.match(r"1\.0×", text)
    if "×" in text:
        shown = float(text.split("×")[0].replace(",", ""))
        assert shown == pytest.approx(max(value, base) / min(value, base), rel=0.05)


@pytest.mark.parametrize("value, base", [(None, 1), (1, None), (0, 1), (1, 0), (None, None)])
def test_relative_invents_nothing(value: float | None, base: float | None) -> None:
    assert units.relative(value, base, "less", "more") is None


@given(st.integers(1, 50_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_scipys(counts: tuple[int, int]) -> None:
    right, examples = counts
    expected = stats.binomtest(right, examples).proportion_ci(0.95, method="wilson")
    low, high = intervals.wilson(right / examples, examples)
    assert low == pytest.approx(expected.low, abs=1e-9)
    assert high == pytest.approx(expected.high, abs=1e-9)
    assert 0 <= low <= right / examples <= high <= 1


def test_difference_is_newcombes() -> None:
    # Newcombe (1998), table II, contrast (a) 56/70 − 48/80, method 10: 0.0524 to 0.3339.
    low, high = intervals.difference(56 / 70, 48 / 80, 70, 80)
    assert (round(low, 4), round(high, 4)) == (0.0524, 0.3339)


@pytest.mark.parametrize("fraction, examples", [(1.1, 10), (-0.1, 10), (0.5, 0)])
def test_wilson_refuses(fraction: float, examples: int) -> None:
    with pytest.raises(ValueError, match=r"Expected a fraction .* received"):
        intervals.wilson(fraction, examples)
