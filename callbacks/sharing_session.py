"""The shared values of one model while one `fit` trains it."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from tfcomp.callbacks.training_hooks import unlink, without
from tfcomp.errors import TfcompError
from tfcomp.pruning import Kernel
from tfcomp.sharing import KernelValues, Shared, count_values, measure_values
from tfcomp.sharing.shared import Reduction


@dataclasses.dataclass(frozen=True)
class SharingReport:
    """What `ShareWeights` did, read back from the weights.

    Attributes:
        kernels: The values that each kernel holds.
        skipped: For each weight that was left alone, the reason.
        reduction: What the updates of a centroid's weights were made to: their sum or mean.
        retied: Weights that were not their cluster's value between steps or when training ended,
            because an average (`use_ema`) or other weights (`EarlyStopping`) had been put in
            their place, and that were set to the mean of their cluster.
    """

    kernels: tuple[KernelValues, ...]
    skipped: dict[str, str]
    reduction: str
    retied: int

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        rows = [
            {**dataclasses.asdict(row), "shape": list(row.shape), "index_bits": row.index_bits}
            for row in self.kernels
        ]
        return {**dataclasses.asdict(self), "kernels": rows}

    def __str__(self) -> str:
        size = sum(row.size for row in self.kernels)
        most = max((row.values for row in self.kernels), default=0)
        lines = [
            f"{size:,} weights in {len(self.kernels)} kernels share at most {most} values each; "
            f"updates by their {self.reduction}"
        ]
        lines += [
            f"  {row.values:>4,} values, {row.zeros:>10,} zeros of {row.size:>10,}  {row.name}"
            for row in self.kernels
        ]
        lines += [f"  left alone  {name}: {reason}" for name, reason in self.skipped.items()]
        return "\n".join(lines)


def sharing_kernels(
    kernels: tuple[Kernel, ...], skipped: dict[str, str], max_values: int
) -> tuple[tuple[Kernel, ...], dict[str, str]]:
    """Those kernels whose weights share values, and why the others do not.

    Raises:
        TfcompError: If weights are not finite.
    """
    skipped = dict(skipped)
    for kernel in kernels:
        value = kernel.value()
        if not np.isfinite(value.astype(np.float64)).all():
            raise TfcompError(
                f"ShareWeights expects finite weights. Received: others in {kernel.name}. Look "
                "for where training diverged."
            )
        values = count_values(value)
        if values == kernel.size:
            skipped[kernel.name] = "no two of its weights are equal"
        elif values > max_values:
            skipped[kernel.name] = f"{values:,} different values, more than max_values={max_values}"
    return tuple(kernel for kernel in kernels if kernel.name not in skipped), skipped


class SharingSession:
    """The shared values of one model during one `fit`, from its first step on."""

    def __init__(
        self,
        model: keras.Model,
        kernels: tuple[Kernel, ...],
        skipped: dict[str, str],
        reduction: Reduction,
    ) -> None:
        self.kernels, self.skipped, self.reduction = kernels, skipped, reduction
        self.before = measure_values(kernels)
        self.retied = 0
        self._model = weakref.ref(model)
        history = getattr(model, "history", None)
        self._history = None if history is None else weakref.ref(history)
        self._refuse_two_at_once()
        averaged = averages(model.optimizer)
        with model.distribute_strategy.scope():
            self.constraints = [
                Shared(k.value(), reduction, k.variable.constraint, averaged, self.is_live)
                for k in kernels
            ]
        self._check_own_constraints()
        for kernel, constraint in zip(self.kernels, self.constraints, strict=True):
            kernel.variable.constraint = constraint
        self.installed = True
        self._guard_train_function(model)

    def is_live(self) -> bool:
        """Whether the `fit` that this belongs to is still the model's last one."""
        model = self._model()
        if self._history is None or model is None:
            return True
        return getattr(model, "history", None) is self._history()

    def _refuse_two_at_once(self) -> None:
        # Others are left by a fit that was interrupted.
        others = [k for k in self.kernels if _live_shared(k.variable)]
        for kernel in self.kernels:
            without(kernel.variable, Shared)
        if others:
            raise TfcompError(
                "Two ShareWeights callbacks in one fit would move the same kernels. Use one, and "
                "`skip` for the layers to spare."
            )

    def _check_own_constraints(self) -> None:
        """Raises if a constraint of a layer's own gives equal weights different values."""
        for kernel, shared in zip(self.kernels, self.constraints, strict=True):
            if shared.constraint is None:
                continue
            for scale in (1.0, 1e3, 1e-3):
                made = shared.constraint(keras.ops.multiply(kernel.variable, scale))
                if _unequal(made, shared):
                    raise TfcompError(
                        f"ShareWeights expects constraints that give equal weights equal values. "
                        f"Received: {_innermost(shared)!r} on {kernel.name}. Leave that layer out "
                        "with `skip`, or take the constraint away."
                    )

    def _guard_train_function(self, model: Any) -> None:
        """A step that a later `fit` takes, this one having been interrupted, is plain again."""
        step = model.make_train_function(force=True) or model.train_function

        def guarded(*arguments: Any) -> Any:
            if self.is_live():
                return step(*arguments)
            self.release()
            trained: Any = self._model()
            return trained.train_function(*arguments)

        model.train_function = guarded

    def release(self) -> None:
        """Takes the constraints away again."""
        if not self.installed:
            return
        for kernel, constraint in zip(self.kernels, self.constraints, strict=True):
            unlink(kernel.variable, constraint)
        self.installed = False
        model = self._model()
        if model is not None:
            model.make_train_function(force=True)

    def differing(self) -> dict[str, int]:
        """By kernel, how many weights are not their cluster's value."""
        pairs = zip(self.kernels, self.constraints, strict=True)
        counts = {k.name: shared.differing(k.variable) for k, shared in pairs}
        return {name: count for name, count in counts.items() if count}

    def tie(self) -> None:
        """Sets weights that something has set apart to the mean of their cluster."""
        for kernel, shared in zip(self.kernels, self.constraints, strict=True):
            if count := shared.differing(kernel.variable):
                self.retied += count
                means = shared.means(kernel.variable)
                shared.codebook.assign(means)
                kernel.variable.assign(shared.spread(means, kernel.variable))

    def check_constraints_hold(self) -> None:
        """Raises if the step has not kept equal weights equal."""
        if differing := self.differing():
            self.release()
            raise TfcompError(
                "The model's training step ignores variable constraints, or something sets weights "
                "after it, so that clusters do not stay together: "
                + ", ".join(f"{count} weights of {name}" for name, count in differing.items())
                + ". Apply gradients through a Keras optimizer."
            )

    def end(self) -> None:
        """Values tied and read back; the layers' own constraints restored."""
        self.tie()
        self.release()
        wrong = [
            f"{now.name} has {now.values} values, {was.values} before, and {now.zeros} zeros, "
            f"{was.zeros} before"
            for was, now in zip(self.before, measure_values(self.kernels), strict=True)
            if now.values > was.values or now.zeros < was.zeros
        ]
        if wrong:
            raise TfcompError(
                f"The weights after training do not share the values they did: {'; '.join(wrong)}. "
                "Look for what sets weights after ShareWeights."
            )

    def report(self) -> SharingReport:
        kernels = measure_values(self.kernels)
        return SharingReport(kernels, self.skipped, self.reduction, self.retied)


def averages(optimizer: Any) -> Callable[[], Any] | None:
    """What says within a step whether it puts averages in the weights' place (`use_ema`).

    Raises:
        TfcompError: If one of several optimizers does that.
    """
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    several = [*getattr(optimizer, "optimizers", [])]
    if any(_overwrites(each) for each in several):
        raise TfcompError(
            "ShareWeights expects one optimizer where ema_overwrite_frequency is set. Received: "
            f"{len(several)}. Leave ema_overwrite_frequency out."
        )
    if not _overwrites(optimizer):
        return None
    every = optimizer.ema_overwrite_frequency
    return lambda: keras.ops.equal((optimizer.iterations + 1) % every, 0)


def _overwrites(optimizer: Any) -> bool:
    return bool(
        getattr(optimizer, "use_ema", False) and getattr(optimizer, "ema_overwrite_frequency", None)
    )


def _live_shared(variable: Any) -> bool:
    found = variable.constraint
    while found is not None:
        if isinstance(found, Shared) and found.is_live():
            return True
        found = getattr(found, "constraint", None)
    return False


def _unequal(made: Any, shared: Shared) -> bool:
    again = shared.spread(shared.means(made), made)
    # A zero that the constraint makes something else of would be set back to zero.
    return bool(keras.ops.any(keras.ops.not_equal(made, again)))


def _innermost(shared: Shared) -> Any:
    found: Any = shared
    while getattr(found, "constraint", None) is not None:
        found = found.constraint
    return found
