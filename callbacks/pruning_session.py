"""The masks of one model while one `fit` trains it."""

from __future__ import annotations

import dataclasses
import warnings
import weakref
from collections.abc import Callable
from typing import Any, Literal

import keras
import numpy as np

from tfcomp.callbacks.pruning_report import PruningReport
from tfcomp.errors import TfcompError
from tfcomp.pruning.masks import Mask, Masked, keep_mask, keep_masks, pruned_count
from tfcomp.pruning.schedules import Schedule
from tfcomp.pruning.sparsity import Kernel, measure

Scope = Literal["local", "global"]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a `PruneWeights` was made with, as far as masks depend on it."""

    schedule: Schedule
    scope: Scope
    keep_zeros: bool

    def agree(self, other: Settings) -> bool:
        """Whether a training with `other` can go on where one with these ended."""
        return (self.schedule, self.scope) == (other.schedule, other.scope)


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
        self.target = 0.0
        self.rezeroed = 0
        self._checked = False
        self._refuse_two_at_once()
        self._install()

    @property
    def model(self) -> Any:
        return self._model()

    # ---- constraints

    def _install(self) -> None:
        with self.model.distribute_strategy.scope():
            self.constraints = [self._constraint(kernel) for kernel in self.kernels]
        for kernel, constraint in zip(self.kernels, self.constraints, strict=True):
            kernel.variable.constraint = constraint
        self.installed = True

    @staticmethod
    def _constraint(kernel: Kernel) -> Masked:
        own = kernel.variable.constraint
        while isinstance(own, Masked):  # left by a fit that was interrupted
            own = own.constraint
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
            if kernel.variable.constraint is constraint:
                kernel.variable.constraint = constraint.constraint
        self.installed = False
        self.model.make_train_function(force=True)

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
        self.prune(self.settings.schedule(self.step), at_once=True)

    def _first_step(self, epoch: int, earlier: Session | None) -> int:
        step = self._step_at(epoch) if epoch > 0 else 0
        wanted = self.settings.schedule(step)
        if wanted > 0 and step > 0 and self._zeros_reach(wanted):
            return step
        same = earlier is not None and earlier.settings.agree(self.settings)
        if earlier is not None and same:
            return earlier.step
        return step if wanted == 0 else 0

    def _step_at(self, epoch: int) -> int:
        if self._steps_per_epoch:
            return epoch * self._steps_per_epoch
        optimizer = self.model.optimizer
        optimizer = getattr(optimizer, "inner_optimizer", optimizer)
        return int(optimizer.iterations) * (optimizer.gradient_accumulation_steps or 1)

    def _zeros_reach(self, sparsity: float) -> bool:
        zeros = [kernel.zeros() for kernel in self.kernels]
        return all(
            sum(zeros[index] for index in group) >= count for group, count in self._counts(sparsity)
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
        asked = self.settings.schedule(self.step)
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
        return [np.asarray(keras.ops.convert_to_numpy(c.mask)) for c in self.constraints]

    def masks_by_variable(self) -> dict[int, Mask]:
        """The masks as they are, by the id of the kernel's variable."""
        return {
            id(kernel.variable): mask
            for kernel, mask in zip(self.kernels, self._masks(), strict=True)
        }

    def holds_more_than_asked(self) -> bool:
        """Whether masks of an earlier training remove more than the schedule would."""
        removed = sum(int(mask.size - np.count_nonzero(mask)) for mask in self._masks())
        return removed > sum(count for _, count in self._counts(self.target))

    def _groups(self) -> list[list[int]]:
        """Indices of the kernels that share one count."""
        indices = list(range(len(self.kernels)))
        return [indices] if self.settings.scope == "global" else [[index] for index in indices]

    def _counts(self, sparsity: float) -> list[tuple[list[int], int]]:
        return [
            (group, pruned_count(sum(self.kernels[index].size for index in group), sparsity))
            for group in self._groups()
        ]

    def prune(self, sparsity: float, *, at_once: bool = False) -> None:
        """Raises the sparsity of the masks to `sparsity`, and sets the weights to zero."""
        if sparsity <= self.target and not at_once:
            return
        self.target = sparsity
        self._checked = False
        masks = self._masks()
        for group, count in self._counts(sparsity):
            removed = sum(int(masks[i].size - np.count_nonzero(masks[i])) for i in group)
            if count > removed:
                self._raise_masks(group, masks, count)
        for kernel, constraint in self._with_constraints():
            kernel.variable.assign(constraint(kernel.variable))

    def _raise_masks(self, group: list[int], masks: list[Mask], count: int) -> None:
        # Below any |w|: what was removed stays removed, beside weights that happen to be zero.
        magnitudes = [np.abs(self.kernels[i].value()) for i in group]
        # An int would not do: NumPy 1 knows no common type of it and bfloat16.
        scores = [
            np.where(masks[i], w, w.dtype.type(-1)) for i, w in zip(group, magnitudes, strict=True)
        ]
        new = [keep_mask(scores[0], count)] if len(scores) == 1 else keep_masks(scores, count)
        for index, mask in zip(group, new, strict=True):
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
        zeros = [kernel.zeros() for kernel in self.kernels]
        for group, count in self._counts(self.target):
            got = sum(zeros[index] for index in group)
            if got < count:
                name = self.kernels[group[0]].name if len(group) == 1 else "all kernels together"
                wrong.append(f"{name} has {got} zeros of {count}")
        wrong.extend(f"{name} has {n} weights back" for name, n in self._alive().items())
        if wrong:
            raise TfcompError(
                f"The sparsity after training is not the {self.target:g} asked for: "
                f"{'; '.join(wrong)}. Look for what sets weights after PruneWeights."
            )

    def after_all_callbacks(self, function: Callable[[], None]) -> None:
        """Calls `function` when the last callback has seen the end of training.

        `fit` appends History to the callbacks it is given, so that it is told last, and
        leaves it at `model.history`.
        """
        history = self._history()
        if history is None:
            return

        def on_train_end(logs: dict[str, Any] | None = None) -> None:
            del history.on_train_end  # the class's own again
            history.on_train_end(logs)
            function()

        history.on_train_end = on_train_end

    def report(self) -> PruningReport:
        return PruningReport(
            kernels=measure(self.kernels),
            skipped=self.skipped,
            asked=self.target,
            step=self.step,
            end_step=self.settings.schedule.end_step,
            start_step=self.start_step,
            rezeroed=self.rezeroed,
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
