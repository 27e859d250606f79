"""What removes weights together: what all units have in common."""

from __future__ import annotations

import abc
import math
from typing import Any

import numpy as np

from tfcomp.errors import TfcompError
from tfcomp.pruning.configured import Configured
from tfcomp.pruning.kernel_parts import Array, shape_of
from tfcomp.pruning.masks import Mask, pruned_count
from tfcomp.pruning.sparsity import Kernel


class Unit(Configured, abc.ABC):
    """Divides a kernel into parts that are removed together.

    A subclass says how an array of the kernel's shape is cut into rows, one row for each part.
    The rest follows from that, by copies of the whole kernel; the units here do without them.

    Attributes:
        plural: What is counted, in messages.
        groups_inputs: Whether kernels must have an axis of inputs, which depthwise ones have not.
        only_sparsity: The one sparsity that it can end at, if there is but one.
        whole: Whether a part is a whole kernel, so that kernels must be compared with each other.
    """

    plural = "units"
    groups_inputs = False
    only_sparsity: float | None = None
    whole = False

    @abc.abstractmethod
    def split(self, kernel: Kernel, values: Array, fill: Any) -> Array:
        """Values of the kernel's shape as rows, one for each part, filled up with `fill`."""

    @abc.abstractmethod
    def join(self, kernel: Kernel, rows: Array) -> Array:
        """What `split` gives, in the kernel's shape again."""

    def check(self, kernel: Kernel) -> None:
        """Raises where the kernel cannot be divided in this way."""
        if self.groups_inputs and kernel.input_axis is None:
            raise TfcompError(
                f"{self!r} groups weights along the input axis, which the depthwise kernel "
                f"{kernel.name!r} does not have. Leave depthwise kernels out."
            )

    def why_idle(self, kernel: Kernel) -> str | None:
        """Why nothing can ever be removed from the kernel, if that is so."""
        return None

    def check_sparsity(self, sparsity: float) -> None:
        """Raises where the unit cannot have this sparsity in the end; 0 leaves all as it is."""
        only = self.only_sparsity
        if sparsity and only is not None and not math.isclose(sparsity, only, abs_tol=1e-9):
            raise TfcompError(
                f"{self!r} is one sparsity: expected a schedule that ends at {only:g}, received "
                f"one that ends at {sparsity:g}. Choose another end, or another unit."
            )

    def count(self, kernel: Kernel) -> int:
        """How many parts the kernel has."""
        return len(self.split(kernel, np.broadcast_to(np.True_, shape_of(kernel)), fill=False))

    def sizes(self, kernel: Kernel) -> int | Array:
        """What each part counts for, its weights: one number where all are alike."""
        ones = np.broadcast_to(np.uint8(1), shape_of(kernel))
        found = self.split(kernel, ones, 0).sum(axis=1, dtype=np.int64)
        return int(found[0]) if found.size and (found == found[0]).all() else found

    def target(self, total: int, sparsity: float) -> int:
        """What the parts removed at a sparsity count for together, of `total`."""
        return pruned_count(total, sparsity)

    def removed(self, kernel: Kernel, keep: Mask) -> Mask:
        """Which of the parts a mask has removed, shape [count]."""
        gone: Mask = np.logical_not(np.any(self.split(kernel, keep, fill=False), axis=1))
        return gone

    def n_removed(self, kernel: Kernel, keep: Mask) -> int:
        """How many of the parts a mask has removed."""
        return int(np.count_nonzero(self.removed(kernel, keep)))

    def scores(self, kernel: Kernel, scores: Array, keep: Mask) -> Array:
        """One score for each part: the mean over its weights, of which those removed count 0.

        Args:
            kernel: The kernel.
            scores: A score for each weight, in the kernel's shape.
            keep: Its mask as it is.

        Returns:
            Scores, shape [count]; −∞ for the parts that are removed already.
        """
        sums = self.split(kernel, np.where(keep, scores, 0), 0).sum(axis=1, dtype=np.float64)
        sums /= self.sizes(kernel)
        sums[self.removed(kernel, keep)] = -np.inf
        return sums

    def ranked(self, kernel: Kernel, scores: Array, keep: Mask) -> tuple[Array, Mask | None]:
        """What `scores` gives, in two: scores, and where they count; elsewhere they are −∞."""
        return self.scores(kernel, scores, keep), None

    def remove(self, kernel: Kernel, scores: Array, keep: Mask, stay: Mask) -> Mask:
        """A mask less the parts that do not stay.

        Args:
            kernel: The kernel.
            scores: A score for each weight, in the kernel's shape.
            keep: Its mask as it is.
            stay: Which parts stay, shape [count].

        Returns:
            The mask, in the kernel's shape.
        """
        rows = self.split(kernel, keep, fill=False)
        return self.join(kernel, rows & stay[:, None])
