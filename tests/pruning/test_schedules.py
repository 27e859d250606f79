"""Sparsity schedules: values, order, ends, configuration and bad arguments."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfcomp.callbacks import PruneWeights
from tfcomp.errors import TfcompError
from tfcomp.pruning import (
    ConstantSparsity,
    CosineDecay,
    IterativeSparsity,
    PolynomialDecay,
    Schedule,
)

fractions = st.floats(0, 1, exclude_max=True, allow_subnormal=False)
begins = st.integers(0, 500)


@st.composite
def ramps(draw: Callable[..., Any], kind: type[Any]) -> Schedule:
    first, last = sorted((draw(fractions), draw(fractions)))
    begin = draw(begins)
    arguments: dict[str, Any] = {
        "begin_step": begin,
        "end_step": begin + draw(st.integers(1, 700)),
        "frequency": draw(st.none() | st.integers(1, 900)),
    }
    if kind is PolynomialDecay:
        arguments["power"] = draw(st.floats(0.1, 9))
    schedule: Schedule = kind(first, last, **arguments)
    return schedule


class ScheduleContract:
    """What every schedule keeps to. Subclass once for each, with `schedules`."""

    schedules: st.SearchStrategy[Schedule]

    def test_never_falls_and_stays_a_fraction(self) -> None:
        @given(self.schedules)
        @settings(max_examples=60, deadline=None)
        def check(schedule: Schedule) -> None:
            values = [schedule(step) for step in range(schedule.end_step + 3)]
            assert values == sorted(values)
            assert 0 <= values[0] <= values[-1] < 1

        check()

    def test_nothing_before_the_beginning(self) -> None:
        @given(self.schedules)
        @settings(max_examples=60, deadline=None)
        def check(schedule: Schedule) -> None:
            assert all(schedule(step) == 0 for step in range(schedule.begin_step))

        check()

    def test_ends_exactly_and_for_good(self) -> None:
        @given(self.schedules, st.integers(0, 10**9))
        @settings(max_examples=60, deadline=None)
        def check(schedule: Schedule, later: int) -> None:
            assert schedule(schedule.end_step) == schedule.final_sparsity
            assert schedule(schedule.end_step + later) == schedule.final_sparsity

        check()

    def test_round_trips(self) -> None:
        @given(self.schedules)
        @settings(max_examples=60, deadline=None)
        def check(schedule: Schedule) -> None:
            config = json.loads(json.dumps(schedule.get_config()))
            clone = type(schedule).from_config(config)
            assert clone == schedule
            assert hash(clone) == hash(schedule)
            assert clone.get_config() == schedule.get_config()
            stored = json.loads(json.dumps(keras.saving.serialize_keras_object(schedule)))
            assert keras.saving.deserialize_keras_object(stored) == schedule
            assert eval(repr(schedule)) == schedule

        check()


class TestConstantSparsity(ScheduleContract):
    schedules = st.builds(ConstantSparsity, fractions, begins)

    def test_is_one_cut(self) -> None:
        schedule = ConstantSparsity(0.3, begin_step=2)
        assert [schedule(step) for step in range(5)] == [0, 0, 0.3, 0.3, 0.3]


class TestPolynomialDecay(ScheduleContract):
    schedules = ramps(PolynomialDecay)

    @given(fractions, fractions, begins, st.integers(1, 40), st.integers(1, 30), st.data())
    @settings(deadline=None)
    def test_is_the_formula_of_the_paper(
        self, a: float, b: float, begin: int, n: int, delta: int, data: st.DataObject
    ) -> None:
        first, last = sorted((a, b))
        schedule = PolynomialDecay(first, last, begin, begin + n * delta, frequency=delta)
        k = data.draw(st.integers(0, n))
        t = begin + k * delta
        # Equation 1 of arXiv:1710.01878.
        expected = last + (first - last) * (1 - (t - begin) / (n * delta)) ** 3
        assert schedule(t) == pytest.approx(expected, abs=1e-12)
        held = t + data.draw(st.integers(0, delta - 1))
        assert schedule(held) == schedule(t)

    def test_power_one_is_a_straight_line(self) -> None:
        schedule = PolynomialDecay(0.2, 0.6, 10, 14, power=1, frequency=1)
        values = [schedule(step) for step in range(10, 15)]
        np.testing.assert_allclose(values, np.linspace(0.2, 0.6, 5), atol=1e-15)


class TestIterativeSparsity(ScheduleContract):
    schedules = st.builds(
        IterativeSparsity, fractions, st.integers(1, 9), st.integers(1, 90), begins
    )


class TestCosineDecay(ScheduleContract):
    schedules = ramps(CosineDecay)

    def test_is_half_a_cosine(self) -> None:
        schedule = CosineDecay(0.1, 0.9, 5, 25, frequency=1)
        for step in range(5, 26):
            angle = math.pi * (step - 5) / 20
            assert schedule(step) == pytest.approx(0.9 - 0.8 * (1 + math.cos(angle)) / 2, abs=1e-12)


@pytest.mark.parametrize("kind", [PolynomialDecay, CosineDecay])
class TestRamps:
    def test_default_frequency_is_100_on_long_ramps(self, kind: type[Any]) -> None:
        schedule = kind(0.0, 0.9, 0, 2000)
        assert len({schedule(step) for step in range(2001)}) == 21
        assert schedule(99) == schedule(0) < schedule(100)

    def test_default_frequency_gives_short_ramps_ten_jumps(self, kind: type[Any]) -> None:
        schedule = kind(0.0, 0.9, 0, 30)
        assert len({schedule(step) for step in range(31)}) == 11

    def test_refuses_to_fall(self, kind: type[Any]) -> None:
        with pytest.raises(TfcompError, match=r"at most `final_sparsity`.*initial_sparsity=0\.9"):
            kind(0.9, 0.5, 0, 10)

    @pytest.mark.parametrize("end", [5, 4])
    def test_refuses_to_end_before_it_begins(self, kind: type[Any], end: int) -> None:
        with pytest.raises(TfcompError, match=f"greater than `begin_step`.*end_step={end}"):
            kind(0.0, 0.5, 5, end)

    @pytest.mark.parametrize("frequency", [0, -1, 2.5, True, "100"])
    def test_refuses_a_frequency_that_is_no_number_of_steps(
        self, kind: type[Any], frequency: Any
    ) -> None:
        with pytest.raises(TfcompError, match="`frequency` must be a whole number of steps, 1 or"):
            kind(0.0, 0.5, 0, 10, frequency=frequency)


@pytest.mark.parametrize("value, hint", [(80, "0.8"), (99.5, "0.995"), (50, "0.5"), (2, "0.02")])
def test_a_percentage_is_refused_with_the_fraction(value: float, hint: str) -> None:
    with pytest.raises(TfcompError) as raised:
        ConstantSparsity(value)
    assert str(raised.value) == (
        f"`sparsity` must be a fraction in [0, 1). Received: sparsity={value}. Did you mean {hint}?"
    )


@pytest.mark.parametrize("value", [1, 1.0, 100, -0.1, math.nan, math.inf, True, None, "0.5"])
def test_what_is_no_fraction_is_refused_without_a_guess(value: Any) -> None:
    with pytest.raises(TfcompError, match=r"in \[0, 1\)") as raised:
        PolynomialDecay(0.0, value, 0, 10)
    assert "Did you mean" not in str(raised.value)
    assert "final_sparsity=" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("step", [-1, 1.5, math.nan, math.inf, False, "7"])
def test_steps_are_whole_numbers(step: Any) -> None:
    with pytest.raises(TfcompError, match="`begin_step` must be a whole number of steps, 0 or"):
        ConstantSparsity(0.5, begin_step=step)


def test_numbers_of_numpy_will_do() -> None:
    schedule = PolynomialDecay(np.float32(0), np.float64(0.5), np.int64(0), np.float64(1200))
    assert schedule.end_step == 1200
    assert isinstance(schedule.end_step, int)
    json.dumps(schedule.get_config())


@pytest.mark.parametrize("power", [0, -1, math.nan, math.inf, "3", True])
def test_power_is_above_zero(power: Any) -> None:
    with pytest.raises(TfcompError, match="`power` must be a number above 0"):
        PolynomialDecay(0.0, 0.5, 0, 10, power=power)


def test_schedules_of_different_kinds_differ() -> None:
    assert PolynomialDecay(0.0, 0.5, 0, 10) != CosineDecay(0.0, 0.5, 0, 10)
    assert ConstantSparsity(0.5) != ConstantSparsity(0.5, begin_step=1)
    assert ConstantSparsity(0.5) != 0.5


class Own(Schedule):
    """One of a user's own, right or wrong."""

    begin_step, end_step, final_sparsity = 0, 4, 0.5

    def __init__(self, values: Any) -> None:
        self.values = values

    def __call__(self, step: int) -> float:
        return self.values[min(step, len(self.values) - 1)]

    def get_config(self) -> dict[str, Any]:
        return {"values": self.values}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([float("nan")], "fraction in .0, 1. for each step.*nan at step 4"),
        ([1.5], "1.5 at step 4"),
        ([None], "None at step 4"),
        ([True], "True at step 4"),
        ([0.3], "must end at its final_sparsity, 0.5. Received: 0.3 at its end_step, 4"),
    ],
)
def test_an_end_that_is_none_is_refused(values: Any, message: str) -> None:
    for make in (
        lambda: PruneWeights(Own(values)),
        lambda: PruneWeights(ConstantSparsity(0.5), overrides={"a": Own(values)}),
    ):
        with pytest.raises(TfcompError, match=message) as error:
            make()
        assert "\n" not in str(error.value)


def test_attributes_that_are_missing_are_named() -> None:
    class Bare(Own):
        pass

    schedule = Bare([0.5])
    del Own.final_sparsity
    try:
        with pytest.raises(TfcompError, match="Bare without final_sparsity"):
            PruneWeights(schedule)
    finally:
        Own.final_sparsity = 0.5


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.0, 0.4, 0.2, 0.2, 0.5], "never fall.*0.4 and then 0.2 at step 2"),
        ([0.0, -1.0, 0.2, 0.3, 0.5], "-1.0 at step 1"),
        ([0.0, float("nan"), 0.2, 0.3, 0.5], "nan at step 1"),
    ],
)
def test_a_course_that_is_none_ends_the_training(values: Any, message: str) -> None:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5)])
    model.compile("sgd", "mse")
    x, y = np.ones((6, 4)), np.ones((6, 5))
    with pytest.raises(TfcompError, match=message) as error:
        model.fit(x, y, batch_size=1, verbose=0, callbacks=[PruneWeights(Own(values))])
    assert "\n" not in str(error.value)
    assert model.layers[0].kernel.constraint is None


def test_one_of_ones_own_is_taken() -> None:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5)])
    model.compile("sgd", "mse")
    prune = PruneWeights(Own([0.0, 0.1, 0.1, 0.4, 0.5]))
    model.fit(np.ones((6, 4)), np.ones((6, 5)), batch_size=1, verbose=0, callbacks=[prune])
    assert (np.asarray(model.layers[0].kernel) == 0).sum() == 10
