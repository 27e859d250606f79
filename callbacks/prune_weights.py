"""Weight pruning while `model.fit` trains."""

from __future__ import annotations

import dataclasses
import warnings
import weakref
from collections.abc import Callable, Iterable
from typing import Any, Literal, Self

import keras
import numpy as np

from tfcomp.errors import TfcompError
from tfcomp.pruning.masks import Mask, Masked, keep_mask, keep_masks, pruned_count
from tfcomp.pruning.schedules import ConstantSparsity, Schedule
from tfcomp.pruning.sparsity import (
    Kernel,
    KernelSparsity,
    find_kernels,
    measure,
    total_sparsity,
)

Scope = Literal["local", "global"]


@dataclasses.dataclass(frozen=True)
class PruningReport:
    """What `PruneWeights` did, read back from the weights.

    Attributes:
        kernels: The zeros of each pruned kernel.
        skipped: For each weight that was left alone, the reason.
        asked: Sparsity that the schedule asks for at `step`.
        step: Steps of the schedule taken so far.
        end_step: Steps that the schedule needs.
        start_step: Step at which this `fit` began: 0, or more where it continued an earlier one.
        rezeroed: Removed weights that were not zero when training ended, because an average
            (`use_ema`) or an earlier epoch (`EarlyStopping`) had been put back, and that were
            set to zero again. The network was not trained around those zeros.
    """

    kernels: tuple[KernelSparsity, ...]
    skipped: dict[str, str]
    asked: float
    step: int
    end_step: int
    start_step: int
    rezeroed: int

    @property
    def sparsity(self) -> float:
        """Zeros over weights of all the pruned kernels together, in [0, 1]."""
        return total_sparsity(self.kernels)

    @property
    def finished(self) -> bool:
        """Whether the schedule has reached its final sparsity."""
        return self.step >= self.end_step

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return {
            "sparsity": self.sparsity,
            "asked": self.asked,
            "step": self.step,
            "end_step": self.end_step,
            "start_step": self.start_step,
            "rezeroed": self.rezeroed,
            "kernels": [
                {**dataclasses.asdict(row), "shape": list(row.shape), "sparsity": row.sparsity}
                for row in self.kernels
            ],
            "skipped": dict(self.skipped),
        }

    def __str__(self) -> str:
        zeros, size = sum(r.zeros for r in self.kernels), sum(r.size for r in self.kernels)
        head = (
            f"{zeros:,} of {size:,} weights in {len(self.kernels)} kernels are zero: "
            f"{self.sparsity:.4f} (asked {self.asked:.4f}) after {self.step} steps"
        )
        rows = [
            f"  {row.sparsity:.4f}  {row.zeros:>10,} of {row.size:>10,}  {row.name}"
            for row in self.kernels
        ]
        left = [f"  left alone  {name}: {reason}" for name, reason in self.skipped.items()]
        return "\n".join([head, *rows, *left])


@keras.saving.register_keras_serializable(package="tfcomp")
class PruneWeights(keras.callbacks.Callback):
    """Sets the smallest weights to zero while `fit` trains, and keeps them there.

    At each step t at which the schedule rises, the ⌊s_t·n + ½⌋ weights of smallest |w| among
    the n of a kernel (scope "local") or of all kernels together ("global") are set to zero,
    and stay zero: masks nest. The masks are applied by the variables' constraints inside the
    compiled step, around constraints of the layers' own. When training ends these constraints
    are taken away again, and the model is plain Keras with exact zeros. The zeros are read
    back into `report`.

    Training that continues goes on where it was: in another `fit` of the same model with an
    equal schedule, and in a `fit` that starts at a later epoch (`BackupAndRestore`,
    `initial_epoch`) if the kernels have the zeros that the schedule wants there. Zeros that
    were made by pruning the same model before are never given back.

    List it before `EarlyStopping` and `ModelCheckpoint`, and after `SwapEMAWeights`; the
    sparsity in the end does not depend on the order. Depthwise kernels are spared by default;
    biases, BatchNormalization and embeddings always.

    Magnitude pruning: Han, Pool, Tran and Dally 2015, arXiv:1506.02626; its schedules: see
    `tfcomp.pruning`.

    Args:
        schedule: A `tfcomp.pruning` schedule. One step is one batch of `fit`.
        scope: `"local"`: each kernel gets the schedule's sparsity. `"global"`: all kernels
            together do, the smallest weights going first wherever they are. Default "local".
        skip: Layers to spare, as objects or names, nested models and blocks among them.
        depthwise: Whether depthwise kernels are pruned as well. Default False.
        keep_zeros: Whether zeros that kernels hold when training begins stay zero. Default
            False. `from_zeros` sets it.

    Attributes:
        report: A `PruningReport` once training has begun, brought up to date when it ends.

    Raises:
        TfcompError: If an argument is not as described; in `fit`, if the model has no kernel
            to prune, if its training step ignores constraints, or if the sparsity read back
            in the end is not the one asked for.

    Example:
        >>> import numpy as np
        >>> from tfcomp.pruning import PolynomialDecay
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(10)])
        >>> model.compile("adam", "mse")
        >>> prune = PruneWeights(PolynomialDecay(0.0, 0.75, begin_step=0, end_step=4))
        >>> _ = model.fit(np.ones((40, 8)), np.ones((40, 10)), batch_size=8, verbose=0,
        ...               callbacks=[prune])
        >>> prune.report.sparsity, int((model.get_weights()[0] == 0).sum())
        (0.75, 60)
    """

    def __init__(
        self,
        schedule: Schedule,
        *,
        scope: Scope = "local",
        skip: Iterable[Any] = (),
        depthwise: bool = False,
        keep_zeros: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(schedule, Schedule):
            raise TfcompError(
                "`schedule` must be a tfcomp.pruning schedule, such as ConstantSparsity(0.8). "
                f"Received: {schedule!r}."
            )
        if scope not in ("local", "global"):
            raise TfcompError(f'`scope` must be "local" or "global". Received: {scope!r}.')
        self.schedule = schedule
        self.scope: Scope = scope
        self.skip: tuple[Any, ...] = (skip,) if isinstance(skip, str) else tuple(skip)
        self.depthwise = depthwise
        self.keep_zeros = keep_zeros
        self.report: PruningReport | None = None
        self._session: _Session | None = None

    @classmethod
    def from_zeros(
        cls, schedule: Schedule | None = None, *, scope: Scope = "local", skip: Iterable[Any] = ()
    ) -> Self:
        """Keeps the exact zeros that kernels hold, for fine-tuning a model that was pruned.

        A saved model is plain Keras, and knows of its masks by its zeros alone.

        Args:
            schedule: Prunes further from there; by default nothing more is removed.
            scope: As in the constructor.
            skip: As in the constructor.

        Returns:
            The callback. Depthwise kernels are kept too, since only zeros count.

        Example:
            >>> import numpy as np
            >>> layer = keras.layers.Dense(2, use_bias=False)
            >>> model = keras.Sequential([keras.Input((2,)), layer])
            >>> layer.set_weights([np.array([[0.0, 1.0], [2.0, 0.0]])])
            >>> model.compile("sgd", "mse")
            >>> _ = model.fit(np.ones((4, 2)), np.zeros((4, 2)), verbose=0,
            ...               callbacks=[PruneWeights.from_zeros()])
            >>> (layer.get_weights()[0] == 0).tolist()
            [[True, False], [False, True]]
        """
        schedule = ConstantSparsity(0.0) if schedule is None else schedule
        return cls(schedule, scope=scope, skip=skip, depthwise=True, keep_zeros=True)

    def get_config(self) -> dict[str, Any]:
        """The arguments, layers given as objects by their names."""
        return {
            "schedule": keras.saving.serialize_keras_object(self.schedule),
            "scope": self.scope,
            "skip": [item if isinstance(item, str) else item.name for item in self.skip],
            "depthwise": self.depthwise,
            "keep_zeros": self.keep_zeros,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """The callback whose `get_config()` is `config`."""
        schedule = keras.saving.deserialize_keras_object(config["schedule"])
        return cls(**{**config, "schedule": schedule})

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._open(*self._kernels(), _SESSIONS.get(self.model))

    def _kernels(self) -> tuple[tuple[Kernel, ...], dict[str, str]]:
        try:
            kernels, skipped = find_kernels(self.model, skip=self.skip, depthwise=self.depthwise)
        except TfcompError:
            if self.model.built:
                raise
            return (), {}  # layers may be made while the model is built, in the first step
        if not kernels and self.model.built:
            raise TfcompError(
                f"There is no kernel to prune in the model {self.model.name!r}: "
                + "; ".join(f"{name} is {reason}" for name, reason in skipped.items())
                + "."
            )
        return kernels, skipped

    def _open(
        self, kernels: tuple[Kernel, ...], skipped: dict[str, str], earlier: _Session | None
    ) -> _Session:
        self._session = _Session(self, kernels, skipped, earlier)
        _SESSIONS[self.model] = self._session
        # The function may have been traced in an earlier fit, without these constraints.
        self.model.make_train_function(force=True)
        return self._session

    def _with_new_kernels(self, session: _Session) -> _Session:
        """A subclassed model makes its weights in its first step: `session` goes on with them."""
        session.complete = True
        kernels, skipped = self._kernels()
        known = {id(kernel.variable) for kernel in session.kernels}
        if all(id(kernel.variable) in known for kernel in kernels):
            return session
        session.release()
        after = self._open(kernels, skipped, session)
        after.start(0)
        after.complete, after.epoch_step = True, session.epoch_step
        return after

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        session = self._running()
        # Here rather than when training begins: by now every callback has restored what it
        # restores, and the number of the first epoch is known.
        if not session.started:
            session.start(epoch)
            self.report = session.report()
        session.epoch_step = session.step

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        session = self._running()
        session.check_constraints_hold()
        if not session.complete:
            session = self._with_new_kernels(session)
        done = batch + 1
        steps = self.params.get("steps")
        # With steps_per_execution the last group of an epoch counts as a full one.
        session.step = session.epoch_step + (min(done, steps) if steps else done)
        session.prune(self.schedule(session.step))

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        # Averaged weights may have been swapped in, to be evaluated or saved.
        if self._session is not None and self._session.installed:
            self._session.zero()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._running().zero()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        session = self._running()
        session.end()
        self.report = session.report()
        session.after_all_callbacks(self._after_all_callbacks)
        self._warn(session, self.report)

    def _after_all_callbacks(self) -> None:
        """Once more when EarlyStopping, if listed later, has put its best weights back."""
        session = self._running()
        session.end()
        self.report = session.report()

    def _running(self) -> _Session:
        if self._session is None:
            raise TfcompError("PruneWeights works in `model.fit(callbacks=[...])` only.")
        return self._session

    def _warn(self, session: _Session, report: PruningReport) -> None:
        """One line where less or more was pruned than the schedule will have in the end."""
        message = ""
        if not session.started:
            message = "`fit` had no epoch left to train, so that nothing was pruned."
        elif not report.finished:
            message = (
                f"Training ended at step {report.step} of the {report.end_step} that the pruning "
                f"schedule needs: sparsity {report.sparsity:.4f} reached, "
                f"{self.schedule.final_sparsity:g} asked in the end. Train for more steps, or "
                "set an earlier end_step."
            )
        elif session.holds_more_than_asked() and not self.keep_zeros:
            message = (
                f"The model had been pruned further before: its sparsity is {report.sparsity:.4f}, "
                f"not the {report.asked:g} asked now. Removed weights stay removed."
            )
        if message:
            warnings.warn(message, stacklevel=2)


class _Session:
    """The masks of one model during one `fit`."""

    def __init__(
        self,
        callback: PruneWeights,
        kernels: tuple[Kernel, ...],
        skipped: dict[str, str],
        earlier: _Session | None,
    ) -> None:
        # Not the callback itself, which holds the model: _SESSIONS must not keep models alive.
        self.schedule = callback.schedule
        self.scope = callback.scope
        self.keep_zeros = callback.keep_zeros
        self.kernels = kernels
        self.skipped = skipped
        self._model = weakref.ref(callback.model)
        self._newest = earlier
        # A fit that had no epoch to train knows nothing; the one before it may.
        self._earlier: _Session | None = (
            earlier._earlier if earlier and not earlier.started else earlier
        )
        self._steps_per_epoch: int | None = callback.params.get("steps")
        self._history = _weak(getattr(callback.model, "history", None))
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
        if self.keep_zeros:
            masks = [kernel.value() != 0 for kernel in self.kernels]
            self._check_zeros(masks)
        elif earlier is None:
            self._warn_of_zeros_that_grow_back()
        for constraint, mask in zip(self.constraints, masks, strict=True):
            if mask is not None:
                constraint.mask.assign(mask)
        self.started = True
        self.prune(self.schedule(self.step), at_once=True)

    def _first_step(self, epoch: int, earlier: _Session | None) -> int:
        step = self._step_at(epoch) if epoch > 0 else 0
        wanted = self.schedule(step)
        if wanted > 0 and step > 0 and self._zeros_reach(wanted):
            return step
        same = earlier is not None and (earlier.schedule, earlier.scope) == (
            self.schedule,
            self.scope,
        )
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
        if masks and self.schedule.final_sparsity == 0 and all(mask.all() for mask in masks):
            raise TfcompError(
                "PruneWeights.from_zeros() found no zero weight to keep in the model "
                f"{self.model.name!r}. Prune it first, with PruneWeights(schedule)."
            )

    def _warn_of_zeros_that_grow_back(self) -> None:
        size = sum(kernel.size for kernel in self.kernels)
        zeros = sum(_mask_like_zeros(kernel, c) for kernel, c in self._with_constraints())
        asked = self.schedule(self.step)
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
        return [indices] if self.scope == "global" else [[index] for index in indices]

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
        scores = [np.where(masks[i], np.abs(self.kernels[i].value()), -1) for i in group]
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
            end_step=self.schedule.end_step,
            start_step=self.start_step,
            rezeroed=self.rezeroed,
        )


# The last session of each model, from which the next one goes on.
_SESSIONS: weakref.WeakKeyDictionary[Any, _Session] = weakref.WeakKeyDictionary()


def _mask_like_zeros(kernel: Kernel, constraint: Masked) -> int:
    """Zeros that pruning may have made: not those of NonNeg, nor of a kernel born as zeros."""
    zeros = kernel.zeros()
    by_itself = isinstance(constraint.constraint, keras.constraints.NonNeg)
    return 0 if by_itself or zeros == kernel.size else zeros


def _weak(value: Any) -> Callable[[], Any]:
    return weakref.ref(value) if value is not None else lambda: None


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} in {name}" for name, count in counts.items())
