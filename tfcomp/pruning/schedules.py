"""How sparse a model is at each training step."""

from __future__ import annotations

import abc
import math
import numbers
from typing import Any

import keras

from tfcomp.errors import TfcompError
from tfcomp.pruning.configured import Configured


def check_sparsity(name: str, value: Any) -> float:
    """Returns `value` as a float, or raises unless it is a fraction in [0, 1).

    Args:
        name: Name of the argument, for the message.
        value: What the caller passed.

    Returns:
        The fraction.

    Raises:
        TfcompError: If it is no number or outside [0, 1).

    Example:
        >>> check_sparsity("sparsity", 80)
        Traceback (most recent call last):
        ...
        tfcomp.errors.TfcompError: `sparsity` must be a fraction in [0, 1). Received: \
sparsity=80. Did you mean 0.8?
    """
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if is_number and 0 <= value < 1:
        return float(value)
    message = f"`{name}` must be a fraction in [0, 1). Received: {name}={value!r}."
    if is_number and 1 < value < 100:
        message += f" Did you mean {float(value) / 100:.6g}?"
    raise TfcompError(message)


class Schedule(Configured, abc.ABC):
    """Sparsity as a function of the training step: it never falls, and ends exactly.

    A step is one batch of `fit`. `schedule(t)` is the sparsity that the model should have
    after `t` steps: 0 before `begin_step`, the final value from `end_step` on.

    To make a schedule of your own, subclass this, set `begin_step`, `end_step` and
    `final_sparsity`, and define `__call__` and `get_config`.

    Attributes:
        begin_step: Steps after which weights are first removed.
        end_step: Steps after which the final sparsity holds.
        final_sparsity: The fraction removed in the end, in [0, 1).
    """

    begin_step: int
    end_step: int
    final_sparsity: float

    @abc.abstractmethod
    def __call__(self, step: int) -> float:
        """The fraction of weights to be zero after `step` steps, in [0, 1)."""

    @abc.abstractmethod
    def get_config(self) -> dict[str, Any]:
        """The arguments that make the same schedule again."""


def sparsity_at(schedule: Schedule, step: int) -> float:
    """What a schedule asks for after so many steps.

    Raises:
        TfcompError: If that is no fraction in [0, 1).
    """
    value = schedule(step)
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if is_number and 0 <= value < 1:
        return float(value)
    raise TfcompError(
        f"A schedule must give a fraction in [0, 1) for each step. Received: {value!r} at step "
        f"{step} from {schedule!r}."
    )


def check_schedule(schedule: Schedule) -> None:
    """Raises unless a schedule has what its class promises, and ends where it says."""
    missing = [
        name for name in ("begin_step", "end_step", "final_sparsity") if not hasattr(schedule, name)
    ]
    if missing:
        raise TfcompError(
            f"A schedule must have begin_step, end_step and final_sparsity. Received: "
            f"{type(schedule).__name__} without {', '.join(missing)}."
        )
    check_sparsity("final_sparsity", schedule.final_sparsity)
    end = sparsity_at(schedule, _check_step("end_step", schedule.end_step))
    if not math.isclose(end, schedule.final_sparsity, abs_tol=1e-9):
        raise TfcompError(
            f"A schedule must end at its final_sparsity, {schedule.final_sparsity:g}. Received: "
            f"{end:g} at its end_step, {schedule.end_step}, from {schedule!r}."
        )


@keras.saving.register_keras_serializable(package="tfcomp")
class ConstantSparsity(Schedule):
    """s_t = `sparsity` from `begin_step` on: one cut, then fine-tuning of what is left.

    Pruned once at a step of your choice this is one-shot pruning (Han, Pool, Tran and Dally
    2015, arXiv:1506.02626, a single round of prune and retrain).

    Args:
        sparsity: Fraction of weights to remove, in [0, 1).
        begin_step: Steps after which they are removed. Default 0: before the first.

    Raises:
        TfcompError: If an argument is out of its range.

    Example:
        >>> schedule = ConstantSparsity(0.5, begin_step=100)
        >>> [schedule(step) for step in (0, 99, 100, 5000)]
        [0.0, 0.0, 0.5, 0.5]
    """

    def __init__(self, sparsity: float, begin_step: int = 0) -> None:
        self.final_sparsity = check_sparsity("sparsity", sparsity)
        self.begin_step = _check_step("begin_step", begin_step)
        self.end_step = self.begin_step

    def __call__(self, step: int) -> float:
        return self.final_sparsity if step >= self.begin_step else 0.0

    def get_config(self) -> dict[str, Any]:
        return {"sparsity": self.final_sparsity, "begin_step": self.begin_step}


class _Ramp(Schedule):
    """From an initial to a final sparsity, in jumps `frequency` steps apart."""

    def __init__(
        self,
        initial_sparsity: float,
        final_sparsity: float,
        begin_step: int,
        end_step: int,
        frequency: int | None,
    ) -> None:
        self.initial_sparsity = check_sparsity("initial_sparsity", initial_sparsity)
        self.final_sparsity = check_sparsity("final_sparsity", final_sparsity)
        if self.initial_sparsity > self.final_sparsity:
            raise TfcompError(
                "`initial_sparsity` must be at most `final_sparsity`, since removed weights do "
                f"not come back. Received: initial_sparsity={initial_sparsity}, "
                f"final_sparsity={final_sparsity}."
            )
        self.begin_step = _check_step("begin_step", begin_step)
        self.end_step = _check_step("end_step", end_step)
        if self.end_step <= self.begin_step:
            raise TfcompError(
                "`end_step` must be greater than `begin_step`. "
                f"Received: begin_step={begin_step}, end_step={end_step}."
            )
        self.frequency = None if frequency is None else _check_step("frequency", frequency, 1)

    @abc.abstractmethod
    def _remaining(self, progress: float) -> float:
        """Share of the way still to go, from 1 at progress 0 to 0 at progress 1."""

    def __call__(self, step: int) -> float:
        if step < self.begin_step:
            return 0.0
        if step >= self.end_step:
            return self.final_sparsity
        length = self.end_step - self.begin_step
        # A default of 100 alone would make one jump of a ramp of 90 steps.
        period = self.frequency or min(100, math.ceil(length / 10))
        progress = (step - self.begin_step) // period * period / length
        span = self.initial_sparsity - self.final_sparsity
        value = self.final_sparsity + span * self._remaining(progress)
        # The sum rounds, and could pass either end by the last bit.
        return min(max(value, self.initial_sparsity), self.final_sparsity)

    def get_config(self) -> dict[str, Any]:
        return {
            "initial_sparsity": self.initial_sparsity,
            "final_sparsity": self.final_sparsity,
            "begin_step": self.begin_step,
            "end_step": self.end_step,
            "frequency": self.frequency,
        }


@keras.saving.register_keras_serializable(package="tfcomp")
class PolynomialDecay(_Ramp):
    """Automated gradual pruning: fast at first, slow where few weights are left.

    s_t = s_f + (s_i − s_f)·(1 − (t − t_0)/(n·Δt))^power for t in {t_0, t_0 + Δt, …},
    held in between; exactly s_f from t_0 + n·Δt on (Zhu and Gupta 2017, arXiv:1710.01878,
    with power 3).

    Args:
        initial_sparsity: s_i, the fraction removed at `begin_step`, in [0, 1).
        final_sparsity: s_f, the fraction removed from `end_step` on, in [s_i, 1).
        begin_step: t_0, in steps.
        end_step: t_0 + n·Δt, in steps; leave some training after it.
        power: The exponent, > 0. 1 is a straight line. Default 3.
        frequency: Δt, the number of steps from one removal to the next. Default: 100, or a
            tenth of the ramp where that is shorter.

    Raises:
        TfcompError: If an argument is out of its range.

    Example:
        >>> schedule = PolynomialDecay(0.0, 0.8, begin_step=0, end_step=400, frequency=100)
        >>> [round(schedule(step), 4) for step in (0, 99, 100, 200, 300, 400)]
        [0.0, 0.0, 0.4625, 0.7, 0.7875, 0.8]
    """

    def __init__(
        self,
        initial_sparsity: float,
        final_sparsity: float,
        begin_step: int,
        end_step: int,
        power: float = 3,
        frequency: int | None = None,
    ) -> None:
        super().__init__(initial_sparsity, final_sparsity, begin_step, end_step, frequency)
        is_number = isinstance(power, numbers.Real) and not isinstance(power, bool)
        if not is_number or not 0 < power < math.inf:
            raise TfcompError(f"`power` must be a number above 0. Received: power={power!r}.")
        self.power = float(power)

    def _remaining(self, progress: float) -> float:
        return (1.0 - progress) ** self.power

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "power": self.power}


@keras.saving.register_keras_serializable(package="tfcomp")
class CosineDecay(_Ramp):
    """Slow at both ends of the ramp, fast in its middle.

    s_t = s_f + (s_i − s_f)·(1 + cos(π·(t − t_0)/(n·Δt)))/2 for t in {t_0, t_0 + Δt, …}, held
    in between; exactly s_f from t_0 + n·Δt on. The half cosine is that of learning-rate
    annealing (Loshchilov and Hutter 2017, arXiv:1608.03983).

    Args:
        initial_sparsity: s_i, the fraction removed at `begin_step`, in [0, 1).
        final_sparsity: s_f, the fraction removed from `end_step` on, in [s_i, 1).
        begin_step: t_0, in steps.
        end_step: t_0 + n·Δt, in steps; leave some training after it.
        frequency: Δt, the number of steps from one removal to the next. Default: 100, or a
            tenth of the ramp where that is shorter.

    Raises:
        TfcompError: If an argument is out of its range.

    Example:
        >>> schedule = CosineDecay(0.0, 0.8, begin_step=0, end_step=400, frequency=100)
        >>> [round(schedule(step), 4) for step in (0, 100, 200, 300, 400)]
        [0.0, 0.1172, 0.4, 0.6828, 0.8]
    """

    def __init__(
        self,
        initial_sparsity: float,
        final_sparsity: float,
        begin_step: int,
        end_step: int,
        frequency: int | None = None,
    ) -> None:
        super().__init__(initial_sparsity, final_sparsity, begin_step, end_step, frequency)

    def _remaining(self, progress: float) -> float:
        return (1.0 + math.cos(math.pi * progress)) / 2.0


@keras.saving.register_keras_serializable(package="tfcomp")
class IterativeSparsity(Schedule):
    """Prune, retrain, prune again: the same share of what is left goes in each round.

    s_t = 1 − (1 − s_f)^(r/R) in round r of R, of which each takes `round_steps` steps; round 1
    begins at `begin_step`. Train on for as long as the last round is to be retrained (Han, Pool,
    Tran and Dally 2015, arXiv:1506.02626; with equal shares Frankle and Carbin 2018,
    arXiv:1803.03635).

    Args:
        final_sparsity: s_f, the fraction removed from the last round on, in [0, 1).
        rounds: R, 1 or more. 1 is one-shot pruning.
        round_steps: Steps of training from one removal to the next.
        begin_step: Steps before the first removal. Default 0.

    Raises:
        TfcompError: If an argument is out of its range.

    Example:
        >>> schedule = IterativeSparsity(0.875, rounds=3, round_steps=100)
        >>> [schedule(step) for step in (0, 99, 100, 200, 1000)]
        [0.5, 0.5, 0.75, 0.875, 0.875]
    """

    def __init__(
        self, final_sparsity: float, rounds: int, round_steps: int, begin_step: int = 0
    ) -> None:
        self.final_sparsity = check_sparsity("final_sparsity", final_sparsity)
        self.rounds = _check_step("rounds", rounds, 1)
        self.round_steps = _check_step("round_steps", round_steps, 1)
        self.begin_step = _check_step("begin_step", begin_step)
        self.end_step = self.begin_step + (self.rounds - 1) * self.round_steps

    def __call__(self, step: int) -> float:
        if step < self.begin_step:
            return 0.0
        if step >= self.end_step:
            return self.final_sparsity
        done = 1 + (step - self.begin_step) // self.round_steps
        # The power rounds, and could pass the end by the last bit.
        return min(1 - (1 - self.final_sparsity) ** (done / self.rounds), self.final_sparsity)

    def get_config(self) -> dict[str, Any]:
        return {
            "final_sparsity": self.final_sparsity,
            "rounds": self.rounds,
            "round_steps": self.round_steps,
            "begin_step": self.begin_step,
        }


def _check_step(name: str, value: Any, least: int = 0) -> int:
    # Steps computed from batch counts often arrive as 1200.0 or np.float64(1200).
    whole = (
        isinstance(value, numbers.Real)
        and not isinstance(value, bool)
        and float(value).is_integer()
    )
    if not whole or value < least:
        raise TfcompError(
            f"`{name}` must be a whole number of steps, {least} or more. "
            f"Received: {name}={value!r}."
        )
    return int(value)
