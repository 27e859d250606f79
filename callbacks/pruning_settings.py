"""What a `PruneWeights` was made with, and which kernels share a count for that."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from tfcomp.errors import TfcompError
from tfcomp.pruning.candidates import check_unit
from tfcomp.pruning.criteria import Criterion, Magnitude
from tfcomp.pruning.schedules import (
    ConstantSparsity,
    Schedule,
    check_schedule,
    check_sparsity,
)
from tfcomp.pruning.sparsity import Kernel
from tfcomp.pruning.units import Unit, Weights

Scope = Literal["local", "global"]
# Another final sparsity, another schedule, another unit; None spares.
Override = float | Schedule | Unit | None


@dataclasses.dataclass(frozen=True)
class Group:
    """Kernels that share one count.

    Attributes:
        indices: Which of the kernels.
        schedule: When how much of them is removed.
        unit: What of them is removed together.
    """

    indices: tuple[int, ...]
    schedule: Schedule
    unit: Unit


class _Scaled(Schedule):
    """s′_t = s_t·s′_f/s_f: the same course to another end."""

    def __init__(self, schedule: Schedule, final_sparsity: float) -> None:
        self.schedule, self.final_sparsity = schedule, final_sparsity
        self.begin_step, self.end_step = schedule.begin_step, schedule.end_step

    def __call__(self, step: int) -> float:
        if step >= self.end_step:
            return self.final_sparsity
        share = self.schedule(step) / self.schedule.final_sparsity
        return min(self.final_sparsity * share, self.final_sparsity)

    def get_config(self) -> dict[str, Any]:
        return {"schedule": self.schedule, "final_sparsity": self.final_sparsity}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a `PruneWeights` was made with, as far as masks depend on it."""

    schedule: Schedule
    scope: Scope
    keep_zeros: bool
    unit: Unit = dataclasses.field(default_factory=Weights)
    criterion: Criterion = dataclasses.field(default_factory=Magnitude)
    overrides: tuple[tuple[str, Override], ...] = ()

    def agree(self, other: Settings) -> bool:
        """Whether a training with `other` can go on where one with these ended."""
        return dataclasses.replace(self, keep_zeros=other.keep_zeros) == other

    def spared(self, name: str) -> str | None:
        """The pattern that spares the kernel of that name, if one does."""
        for pattern, value in self.overrides:
            if value is None and _matches(pattern, name):
                return pattern
        return None

    @property
    def removes_nothing(self) -> bool:
        """Whether zeros are kept and none are added."""
        return not self.schedule.final_sparsity and not self.overrides

    def names(self, name: str) -> bool:
        """Whether `overrides` say what to do with the kernel of that name."""
        return any(_matches(pattern, name) for pattern, _ in self.overrides)

    def named_beside(self, names: set[str], every: set[str]) -> set[str]:
        """What patterns take that are of none of some names, but of others."""
        patterns = [
            pattern
            for pattern, value in self.overrides
            if value is not None and not any(_matches(pattern, name) for name in names)
        ]
        return {
            name for name in every - names if any(_matches(pattern, name) for pattern in patterns)
        }

    def why_idle(self, kernel: Kernel) -> str | None:
        """Why masks would never remove anything from a kernel, if that is so."""
        # Zeros that are there already are held all the same.
        return None if self.keep_zeros else self._group(0, kernel).unit.why_idle(kernel)

    def groups(self, kernels: tuple[Kernel, ...]) -> list[Group]:
        """Which kernels share a count: each its own, or with scope "global" all not overridden.

        Raises:
            TfcompError: If the unit of a kernel does not fit it, or its schedule.
        """
        groups: list[Group] = []
        together: list[int] = []
        for index, kernel in enumerate(kernels):
            own = self._group(index, kernel)
            own.unit.check(kernel)
            own.unit.check_sparsity(own.schedule.final_sparsity)
            if self.criterion.of_channels and own.schedule.final_sparsity:
                check_unit(self.criterion, own.unit)
            if own.unit.whole and self.scope != "global":
                raise TfcompError(
                    f'{own.unit!r} compares kernels with each other: expected scope="global". '
                    f"Received: scope={self.scope!r}."
                )
            same = (own.schedule, own.unit) == (self.schedule, self.unit)
            if self.scope == "global" and same:
                together.append(index)
            else:
                groups.append(own)
        if together:
            groups.insert(0, Group(tuple(together), self.schedule, self.unit))
        return groups

    def _group(self, index: int, kernel: Kernel) -> Group:
        found = [value for pattern, value in self.overrides if _matches(pattern, kernel.name)]
        units = [value for value in found if isinstance(value, Unit)]
        schedules = [self._scheduled(value) for value in found if not isinstance(value, Unit)]
        return Group((index,), (schedules or [self.schedule])[0], (units or [self.unit])[0])

    def _scheduled(self, value: Any) -> Schedule:
        if isinstance(value, Schedule):
            return value
        if self.schedule.final_sparsity == 0:
            return ConstantSparsity(value)
        return _Scaled(self.schedule, value)

    def check_patterns(self, kernels: Iterable[Kernel], skipped: Mapping[str, str]) -> None:
        """Raises if a pattern of `overrides` is of no kernel that would be pruned."""
        pruned = [kernel.name for kernel in kernels]
        for pattern, value in self.overrides:
            names = [*pruned, *skipped] if value is None else pruned
            if any(_matches(pattern, name) for name in names):
                continue
            why = [f"{name} is {text}" for name, text in skipped.items() if _matches(pattern, name)]
            raise TfcompError(
                f"`overrides` expects patterns of names of layers or weights that are pruned. "
                f"Received: {pattern!r}, which is of none"
                + (f" ({'; '.join(why)})" if why else "")
                + f". There are: {', '.join(pruned)}."
            )


def checked_overrides(overrides: Mapping[str, Any] | None) -> tuple[tuple[str, Override], ...]:
    """The overrides as pairs, each of a kind that is known.

    Raises:
        TfcompError: If one is not.
    """
    if overrides is not None and not isinstance(overrides, Mapping):
        raise TfcompError(
            '`overrides` must be a dict from patterns of names, as {"block_1*": 0.5}. Received: '
            f"{overrides!r}."
        )
    pairs: list[tuple[str, Override]] = []
    for pattern, value in (overrides or {}).items():
        if not isinstance(pattern, str):
            raise TfcompError(
                f"`overrides` must have patterns of names as its keys. Received: {pattern!r}."
            )
        if isinstance(value, Schedule):
            check_schedule(value)
        elif value is not None and not isinstance(value, Unit):
            value = check_sparsity(f"overrides[{pattern!r}]", value)
        pairs.append((pattern, value))
    return tuple(pairs)


def _matches(pattern: str, name: str) -> bool:
    """Whether a pattern is that of a weight's path or a part of it, a layer's name for one."""
    parts = name.split("/")
    paths = {
        "/".join(parts[start:end])
        for start in range(len(parts))
        for end in range(start + 1, len(parts) + 1)
        # Not that of the variable alone: each kernel is called so.
        if start < len(parts) - 1
    }
    return any(path == pattern or fnmatch.fnmatchcase(path, pattern) for path in paths)
