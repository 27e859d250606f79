"""Which kernels of a model `PruneWeights` prunes, and why it leaves the others."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np

from tfcomp.callbacks.pruning_session import Session
from tfcomp.callbacks.pruning_settings import Settings
from tfcomp.errors import TfcompError
from tfcomp.pruning.sparsity import Kernel, end_kernels, find_kernels, networks_of

# The kernels that are pruned, and for each other weight the reason.
Selected = tuple[tuple[Kernel, ...], dict[str, str]]


@dataclasses.dataclass(frozen=True)
class KernelSelection:
    """What a `PruneWeights` was told about which kernels to prune, with arguments as there.

    Attributes:
        skip: Layers to spare.
        depthwise: Whether depthwise kernels are pruned as well.
        first: Whether a network's first kernel is pruned; None leaves it to the default.
        last: Whether its last kernel is pruned; likewise.
        settings: The rest of what the callback was made with.
    """

    skip: tuple[Any, ...]
    depthwise: bool
    first: bool | None
    last: bool | None
    settings: Settings

    def of(self, model: keras.Model, earlier: Session | None) -> Selected:
        """The kernels of a model to prune, and why the others are spared.

        Args:
            model: The model that is trained.
            earlier: Its last session, if there was one.

        Returns:
            Kernels, none while the model is not built yet, and reasons by names.

        Raises:
            TfcompError: If a built model has no kernel to prune, or a pattern of `overrides` is
                of none.
        """
        try:
            kernels, skipped = self._found(model)
        except TfcompError:
            if model.built:
                raise
            return (), {}  # layers may be made while the model is built, in the first step
        if model.built:
            self.settings.check_patterns(kernels, skipped)
        skipped |= self._spared_ends(model, kernels, earlier) | _helpers(model, kernels)
        skipped |= self._without_zeros(model, kernels)
        for kernel in kernels:
            if kernel.name not in skipped and (reason := self._reason(kernel)):
                skipped[kernel.name] = reason
        kernels = tuple(kernel for kernel in kernels if kernel.name not in skipped)
        if not kernels and model.built:
            raise TfcompError(
                f"There is no kernel to prune in the model {model.name!r}: "
                + "; ".join(f"{name} is {reason}" for name, reason in skipped.items())
                + "."
            )
        return kernels, skipped

    def _found(self, model: keras.Model) -> Selected:
        """What can be pruned as far as arguments say, depthwise kernels that are named included."""
        ends = {"first": self.first is not False, "last": self.last is not False}
        kernels, skipped = find_kernels(model, skip=self.skip, depthwise=self.depthwise, **ends)
        if self.depthwise or not self.settings.overrides:
            return kernels, skipped
        names = {kernel.name for kernel in kernels}
        every, _ = find_kernels(model, skip=self.skip, depthwise=True, **ends)
        taken = names | self.settings.named_beside(names, {kernel.name for kernel in every})
        kernels = tuple(kernel for kernel in every if kernel.name in taken)
        return kernels, {name: why for name, why in skipped.items() if name not in taken}

    def _reason(self, kernel: Kernel) -> str | None:
        """Why a kernel is left that nothing else spares."""
        if pattern := self.settings.spared(kernel.name):
            return f"spared by `overrides`: {pattern!r} is None"
        return self.settings.why_idle(kernel)

    def _spared_ends(
        self, model: keras.Model, kernels: tuple[Kernel, ...], earlier: Session | None
    ) -> dict[str, str]:
        """The ends of a network with convolutions, unless somebody has said what to do with them.

        Returns:
            Reasons by the kernels' names.
        """
        if self.settings.keep_zeros:
            return {}  # see `_without_zeros`
        ends = [
            (end, variable)
            for network in networks_of(model)
            for end, variable in zip(("first", "last"), end_kernels(network), strict=True)
            if getattr(self, end) is None
        ]
        masks = {} if earlier is None else earlier.masks_by_variable()
        spared = {
            kernel.name: f"the {end} kernel of a network with convolutions; `{end}=True` takes it"
            for end, variable in ends
            for kernel in kernels
            if kernel.variable is variable
            and not self.settings.names(kernel.name)
            and masks.get(id(variable), np.True_).all()  # not pruned before
        }
        return spared if _convolutional(kernels) and len(spared) < len(kernels) else {}

    def _without_zeros(self, model: keras.Model, kernels: tuple[Kernel, ...]) -> dict[str, str]:
        """Of what would be spared by default, kernels without zeros: `from_zeros` leaves them."""
        if not self.settings.keep_zeros or self.settings.removes_nothing:
            return {}
        ends = [variable for network in networks_of(model) for variable in end_kernels(network)]
        convolutional = _convolutional(kernels)
        return {
            kernel.name: "spared by default, and without zeros to keep; `overrides` takes it"
            for kernel in kernels
            if not self.settings.names(kernel.name)
            and (
                kernel.input_axis is None
                or (convolutional and any(kernel.variable is end for end in ends))
            )
            and not kernel.zeros()
        }


def _helpers(model: keras.Model, kernels: tuple[Kernel, ...]) -> dict[str, str]:
    """Kernels that a distillation has beside its student's, which nobody will ship."""
    network = {id(variable) for one in networks_of(model) for variable in one.weights}
    return {
        kernel.name: "a helper of the distillation, not of the student"
        for kernel in kernels
        if id(kernel.variable) not in network
    }


def _convolutional(kernels: tuple[Kernel, ...]) -> bool:
    return any(kernel.window_axes for kernel in kernels)
