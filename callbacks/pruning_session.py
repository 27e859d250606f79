"""The masks of one model while one `fit` trains it."""

from __future__ import annotations

import contextlib
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from tfcomp.callbacks.pruning_report import PruningReport
from tfcomp.callbacks.pruning_settings import Group, Settings
from tfcomp.callbacks.training_hooks import after_all_callbacks, unlink, without
from tfcomp.errors import TfcompError
from tfcomp.pruning.candidates import Scores, weight_scores
from tfcomp.pruning.criteria import Criterion, Magnitude
from tfcomp.pruning.dependence import is_cut_by
from tfcomp.pruning.masks import Mask, Masked
from tfcomp.pruning.schedules import Schedule, sparsity_at
from tfcomp.pruning.sparsity import Kernel, measure, networks_of, values_of
from tfcomp.pruning.units import remove_lowest, removed_of, total_of


class Session:
    """The masks of one model during one `fit`."""

    def __init__(
        self,
        model: keras.Model,
        settings: Settings,
        steps_per_epoch: int | None,
        kernels: tuple[Kernel, ...],
        skipped: dict[str, str],
        earlier: Session | None,
    ) -> None:
        self.settings = settings
        self.kernels = kernels
        self.skipped = skipped
        self.groups = settings.groups(kernels)
        # The sparsity that holds now, of each schedule that there is.
        schedules = [settings.schedule, *(group.schedule for group in self.groups)]
        self.targets: dict[Schedule, float] = dict.fromkeys(schedules, 0.0)
        self._model = weakref.ref(model)  # SESSIONS must not keep models alive
        self._newest = earlier
        # A fit that had no epoch to train knows nothing; the one before it may.
        self._earlier: Session | None = (
            earlier._earlier if earlier and not earlier.started else earlier
        )
        self._steps_per_epoch: int | None = steps_per_epoch
        self._history = _weak(getattr(model, "history", None))
        self.started: bool = False
        self.installed = False
        self.complete = False
        self.start_step = self.step = self.epoch_step = 0
        self.rezeroed = 0
        self._checked = False
        self._refuse_two_at_once()
        self._install()

    @property
    def model(self) -> Any:
        return self._model()

    # ---- constraints

    def _install(self) -> None:
        for variable in self.model.weights:  # spared now, and left by a fit that was interrupted
            if hasattr(variable, "constraint"):
                variable.constraint = without(variable, Masked)
        with self.model.distribute_strategy.scope():
            self.constraints = [self._constraint(kernel) for kernel in self.kernels]
        for kernel, constraint in zip(self.kernels, self.constraints, strict=True):
            kernel.variable.constraint = constraint
        self.installed = True

    @staticmethod
    def _constraint(kernel: Kernel) -> Masked:
        own = without(kernel.variable, Masked)  # left by a fit that was interrupted
        shape = tuple(kernel.variable.shape)
        mask = keras.Variable(
            np.ones(shape, np.bool_),
            dtype="bool",
            trainable=False,
            aggregation="only_first_replica",
            name="keep_mask",
        )
        return Masked(mask, own)

    def release(self) -> None:
        if not self.installed:
            return
        for kernel, constraint in zip(self.kernels, self.constraints, strict=True):
            unlink(kernel.variable, constraint)
        self.installed = False
        self.model.make_train_function(force=True)

    @contextlib.contextmanager
    def released_on_error(self) -> Iterator[None]:
        """Takes the masks off where something within raises: no later training is to find them."""
        try:
            yield
        except Exception:
            self.release()
            raise

    def _refuse_two_at_once(self) -> None:
        earlier, self._newest = self._newest, None
        if earlier is None or not earlier.installed or self._history() is None:
            return
        if earlier._history() is self._history():
            earlier.release()
            raise TfcompError(
                "Two PruneWeights callbacks in one fit would prune the same kernels. "
                "Use one, and `skip` for the layers to spare."
            )

    # ---- where to begin

    def start(self, epoch: int) -> None:
        """Decides at which step of the schedule this training begins, and with which masks."""
        earlier = self._earlier if self._earlier and self._earlier.intact() else None
        self._earlier = None
        # Masks of the same model's last training; or any zeros there are, if asked to.
        known = {} if earlier is None else earlier.masks_by_variable()
        masks = [known.get(id(kernel.variable)) for kernel in self.kernels]
        self.start_step = self.step = self._first_step(epoch, earlier)
        if self.settings.keep_zeros:
            masks = [kernel.value() != 0 for kernel in self.kernels]
            self._check_zeros(masks)
        elif earlier is None:
            self._warn_of_zeros_that_grow_back()
        for constraint, mask in zip(self.constraints, masks, strict=True):
            if mask is not None:
                constraint.mask.assign(mask)
        self.started = True
        # Where training goes on from a saved model its zeros are the lowest of all: what has been
        # removed stays so, whatever the criterion says of it now.
        resumed = earlier is None and self.step > 0
        self.prune(self.step, at_once=True, criterion=Magnitude() if resumed else None)

    def _first_step(self, epoch: int, earlier: Session | None) -> int:
        steps = self._steps_before(epoch) if epoch > 0 else range(0, -1, -1)
        for step in steps:
            wanted = self._wanted(step)
            if any(wanted.values()) and step > 0 and self._zeros_reach(wanted):
                return step
        same = earlier is not None and earlier.settings.agree(self.settings)
        if earlier is not None and same:
            return earlier.step
        return 0 if any(self._wanted(steps[-1]).values()) else steps[-1]

    def _steps_before(self, epoch: int) -> range:
        """The steps that may have been done when an epoch begins, the last first.

        It is one where the length of an epoch is known. Else the optimizer tells: of accumulated
        gradients it counts full rounds alone, and once an epoch the step that found no batch left.
        """
        if self._steps_per_epoch:
            step = epoch * self._steps_per_epoch
            return range(step, step - 1, -1)
        optimizer = self.model.optimizer
        optimizer = getattr(optimizer, "inner_optimizer", optimizer)
        each = optimizer.gradient_accumulation_steps or 1
        done = int(optimizer.iterations) * each
        return range(done + each - 1, max(done - epoch, 0) - 1, -1)

    def _zeros_reach(self, targets: dict[Schedule, float]) -> bool:
        held = [kernel.value() != 0 for kernel in self.kernels]
        return all(
            self._n_removed(group, held) >= count - self._slack(group)
            for group, count in self._counts(targets)
        )

    def _check_zeros(self, masks: list[Any]) -> None:
        if (
            masks
            and self.settings.schedule.final_sparsity == 0
            and all(mask.all() for mask in masks)
        ):
            raise TfcompError(
                "PruneWeights.from_zeros() found no zero weight to keep in the model "
                f"{self.model.name!r}. Prune it first, with PruneWeights(schedule)."
            )

    def _warn_of_zeros_that_grow_back(self) -> None:
        size = sum(kernel.size for kernel in self.kernels)
        zeros = sum(_mask_like_zeros(kernel, c) for kernel, c in self._with_constraints())
        asked = self._asked(self._wanted(self.step))
        if zeros > size * (asked + 0.05):
            warnings.warn(
                f"{zeros / size:.1%} of the weights to be pruned are zero already, and grow back "
                f"where the schedule, which begins at {asked:.1%}, does not hold them. Keep them "
                "with PruneWeights.from_zeros(schedule).",
                stacklevel=2,
            )

    # ---- masks

    def _with_constraints(self) -> list[tuple[Kernel, Masked]]:
        return list(zip(self.kernels, self.constraints, strict=True))

    def _masks(self) -> list[Mask]:
        return [values_of(constraint.mask) for constraint in self.constraints]

    def masks_by_variable(self) -> dict[int, Mask]:
        """The masks as they are, by the id of the kernel's variable."""
        return {
            id(kernel.variable): mask
            for kernel, mask in zip(self.kernels, self._masks(), strict=True)
        }

    def holds_more_than_asked(self) -> bool:
        """Whether masks of an earlier training remove more than the schedule would."""
        masks = self._masks()
        counts = self._counts(self.targets)
        removed = sum(self._n_removed(group, masks) for group, _ in counts)
        return removed > sum(count + self._slack(group) for group, count in counts)

    def _wanted(self, step: int) -> dict[Schedule, float]:
        """The sparsity of each schedule at a step."""
        return {schedule: sparsity_at(schedule, step) for schedule in self.targets}

    def _asked(self, targets: dict[Schedule, float]) -> float:
        """One sparsity for all kernels together."""
        schedules = {group.schedule for group in self.groups}
        if len(schedules) < 2:
            return targets[next(iter(schedules), self.settings.schedule)]
        sizes = {g: sum(self.kernels[index].size for index in g.indices) for g in self.groups}
        total = sum(targets[group.schedule] * size for group, size in sizes.items())
        return total / sum(sizes.values())

    def _total(self, group: Group) -> int:
        """What all units of a group count for together."""
        return total_of(group.unit, self._of(group))

    def _of(self, group: Group) -> list[Kernel]:
        return [self.kernels[index] for index in group.indices]

    def _counts(self, targets: dict[Schedule, float]) -> list[tuple[Group, int]]:
        """What the units of each group count for that are to be removed."""
        return [
            (group, group.unit.target(self._total(group), targets[group.schedule]))
            for group in self.groups
        ]

    def _slack(self, group: Group) -> int:
        """By how much whole units may miss a count: half of the largest."""
        return max(int(np.max(group.unit.sizes(kernel))) for kernel in self._of(group)) // 2

    def _n_removed(self, group: Group, masks: list[Mask]) -> int:
        """What the units of a group count for that masks have removed."""
        return removed_of(group.unit, self._of(group), [masks[i] for i in group.indices])

    def prune(
        self, step: int, *, at_once: bool = False, criterion: Criterion | None = None
    ) -> None:
        """Raises the sparsity of the masks to that of `step`, and sets the weights to zero."""
        wanted = self._wanted(step)
        self._check_rising(wanted, step)
        if not at_once and all(wanted[key] <= value for key, value in self.targets.items()):
            return
        self.targets = {key: max(value, wanted[key]) for key, value in self.targets.items()}
        self._checked = False
        masks = self._masks()
        raised = [
            (group, count)
            for group, count in self._counts(self.targets)
            if count > self._n_removed(group, masks)
        ]
        judge = criterion or self.settings.criterion
        scores = self._scores([group for group, _ in raised], judge, masks)
        for group, count in raised:
            self._raise_masks(group, masks, count, scores)
        for kernel, constraint in self._with_constraints():
            kernel.variable.assign(constraint(kernel.variable))

    def _check_rising(self, wanted: dict[Schedule, float], step: int) -> None:
        for schedule, before in self.targets.items():
            if wanted[schedule] < before - 1e-9:
                raise TfcompError(
                    "A schedule must never fall, since removed weights do not come back. "
                    f"Received: {before:g} and then {wanted[schedule]:g} at step {step} from "
                    f"{schedule!r}."
                )

    def _scores(
        self, groups: list[Group], criterion: Criterion, masks: list[Mask]
    ) -> dict[int, Scores]:
        """What a criterion gives to each weight of some groups' kernels, by their indices."""
        units = {index: group.unit for group in groups for index in group.indices}
        found = weight_scores(
            criterion,
            self.model,
            [self.kernels[index] for index in units],
            list(units.values()),
            [masks[index] for index in units] if self.settings.scope == "global" else None,
        )
        return dict(zip(units, found, strict=True))

    def _raise_masks(
        self, group: Group, masks: list[Mask], count: int, scores: dict[int, Scores]
    ) -> None:
        old = [masks[index] for index in group.indices]
        of_group = [scores[index] for index in group.indices]
        new = remove_lowest(group.unit, self._of(group), old, of_group, count)
        for index, mask in zip(group.indices, new, strict=True):
            self.constraints[index].mask.assign(mask)

    # ---- zeros

    def zero(self) -> None:
        """Sets removed weights to zero; bitwise nothing where they are."""
        for kernel, constraint in self._with_constraints():
            kernel.variable.assign(constraint.zeroed(kernel.variable))

    def _alive(self) -> dict[str, int]:
        """By kernel, how many removed weights are not zero."""
        counts = {}
        for kernel, constraint in self._with_constraints():
            wrong = keras.ops.logical_and(
                keras.ops.logical_not(constraint.mask), keras.ops.not_equal(kernel.variable, 0)
            )
            counts[kernel.name] = int(keras.ops.count_nonzero(wrong))
        return {name: count for name, count in counts.items() if count}

    def intact(self) -> bool:
        """Whether the weights that were removed are zero still."""
        return self.started and not self._alive()

    def check_constraints_hold(self) -> None:
        """Raises if the first step after a removal has brought removed weights back."""
        if self._checked:
            return
        self._checked = True
        alive = self._alive()
        if alive:
            self.release()
            raise TfcompError(
                "The model's training step ignores variable constraints, so that pruned weights "
                f"do not stay zero: {_listed(alive)}. Apply gradients through a Keras optimizer."
            )

    def end(self) -> None:
        """Zeros, read back; the layers' own constraints restored."""
        if not self.started:  # no epoch was left to train
            self.release()
            return
        alive = self._alive()
        if alive:
            self.rezeroed = sum(alive.values())
            for kernel, constraint in self._with_constraints():
                kernel.variable.assign(constraint(kernel.variable))
        self.release()
        self._check_counts()

    def _check_counts(self) -> None:
        wrong = []
        held = [kernel.value() != 0 for kernel in self.kernels]
        masks = self._masks()
        for group in self.groups:
            got, count = (self._n_removed(group, of) for of in (held, masks))
            if got < count:
                one = len(group.indices) == 1
                name = self.kernels[group.indices[0]].name if one else "all kernels together"
                wrong.append(f"{name} has {got} {group.unit.plural} of {count}")
        wrong.extend(f"{name} has {n} weights back" for name, n in self._alive().items())
        if wrong:
            raise TfcompError(
                f"The sparsity after training is not the {self._asked(self.targets):g} asked for: "
                f"{'; '.join(wrong)}. Look for what sets weights after PruneWeights."
            )

    def after_all_callbacks(self, function: Callable[[], None]) -> None:
        """Calls `function` when the last callback has seen the end of training."""
        after_all_callbacks(self._history(), function)

    def removes_more_in(self, history: Any) -> bool:
        """Whether this is in use in the `fit` of that History, with a schedule that removes."""
        current = self.installed and history is not None and self._history() is history
        return current and any(schedule.final_sparsity > 0 for schedule in self.targets)

    def _by_units(self) -> float:
        """The sparsity if all units held as many weights."""
        held = [kernel.value() != 0 for kernel in self.kernels]
        zeros, size = 0.0, 0
        for group in self.groups:
            weights = sum(self.kernels[index].size for index in group.indices)
            share = self._n_removed(group, held) / max(self._total(group), 1)
            zeros += share * (group.unit.only_sparsity or 1.0) * weights
            size += weights
        return zeros / max(size, 1)

    def _misses_a_unit(self, masks: list[Mask]) -> bool:
        """Whether more than half a unit is missing: of small kernels, where the last one stays."""
        return any(
            self._n_removed(group, masks) < count - self._slack(group)
            for group, count in self._counts(self.targets)
            if self._slack(group)  # single weights are counted to one
        )

    def _emptied(self, masks: list[Mask], whole: bool) -> tuple[str, ...]:
        """Names of kernels of which nothing is left, where whole layers were to go or where not."""
        return tuple(
            self.kernels[index].name
            for group in self.groups
            if group.unit.whole == whole
            for index in group.indices
            if not masks[index].any()
        )

    def report(self) -> PruningReport:
        masks = self._masks()
        return PruningReport(
            kernels=measure(self.kernels),
            skipped=self.skipped,
            asked=self._asked(self.targets),
            step=self.step,
            end_step=max(schedule.end_step for schedule in self.targets),
            start_step=self.start_step,
            rezeroed=self.rezeroed,
            by_units=self._by_units(),
            last_unit_stays=self._misses_a_unit(masks),
            collapsed=self._emptied(masks, whole=False),
            removed_layers=self._emptied(masks, whole=True),
            disconnected=any(
                is_cut_by(network, self.kernels, masks) for network in networks_of(self.model)
            ),
            unit=repr(self.settings.unit),
            criterion=repr(self.settings.criterion),
            overrides={
                self.kernels[index].name: (self.targets[group.schedule], repr(group.unit))
                for group in self.groups
                for index in group.indices
                if (group.schedule, group.unit) != (self.settings.schedule, self.settings.unit)
            },
        )


# The last session of each model, from which the next one goes on.
SESSIONS: weakref.WeakKeyDictionary[Any, Session] = weakref.WeakKeyDictionary()


def _mask_like_zeros(kernel: Kernel, constraint: Masked) -> int:
    """Zeros that pruning may have made: not those of NonNeg, nor of a kernel born as zeros."""
    zeros = kernel.zeros()
    by_itself = isinstance(constraint.constraint, keras.constraints.NonNeg)
    return 0 if by_itself or zeros == kernel.size else zeros


def _weak(value: Any) -> Callable[[], Any]:
    return weakref.ref(value) if value is not None else lambda: None


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} in {name}" for name, count in counts.items())
