"""The smallest cut that keeps to a budget, found with as few models made as can be."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable

import keras
import numpy as np
import numpy.typing as npt

from tfcomp.errors import TfcompError
from tfcomp.graph import Dependencies, remove_units
from tfcomp.graph.channels import weight_of
from tfcomp.graph.dependency import changed_weights, removal_mask
from tfcomp.profiling.macs import UncountedError, call_macs
from tfcomp.pruning.budget import Budget, Spending

Choose = Callable[[float], list[int]]
Cost = Callable[[int], float]

# A latency this little below its limit is as near as clocks tell.
_NEAR = 0.98


class Ledger:
    """Parameters and multiply-adds of what is left of a model, counted without making it.

    Args:
        found: The dependencies of the model.

    Example:
        >>> import keras
        >>> from tfcomp.graph import dependencies
        >>> layers = [keras.layers.Dense(8, name="a"), keras.layers.Dense(2, name="b")]
        >>> model = keras.Sequential([keras.Input((4,)), *layers])
        >>> ledger = Ledger(dependencies(model))
        >>> ledger.parameters([]), ledger.parameters([0, 1]), ledger.macs([0, 1])
        (58, 44, 36)
    """

    def __init__(self, found: Dependencies) -> None:
        self._found = found
        self._axes = changed_weights(found)
        layers = [op for op in found.graph.ops.values() if isinstance(op, keras.layers.Layer)]
        weights = {id(weight): weight for layer in layers for weight in layer.weights}
        self._parameters = sum(math.prod(weight.shape) for weight in weights.values())

    def parameters(self, units: Iterable[int]) -> int:
        """Number of weights once `units` are removed."""
        gone = removal_mask(self._found, units)
        lost = 0
        for layer, weights in self._axes.items():
            for weight in weights:
                whole = weight_of(self._found.graph.ops[layer], weight).shape
                lost += math.prod(whole) - math.prod(self._shape(gone, layer, weight))
        return self._parameters - lost

    def macs(self, units: Iterable[int]) -> int:
        """Multiply-adds of one sample once `units` are removed.

        Raises:
            UncountedError: If those of a layer are not known.
        """
        gone = removal_mask(self._found, units)
        total = 0
        for node in self._found.graph.nodes:
            inputs = [tensor.shape for tensor in node.inputs]
            output = node.outputs[0].shape if node.outputs else ()
            shape = functools.partial(self._shape, gone, node.name)
            total += call_macs(node.op, inputs, output, shape)
        return total

    def _shape(self, gone: npt.NDArray[np.bool_], layer: str, weight: str) -> tuple[int, ...]:
        shape = list(weight_of(self._found.graph.ops[layer], weight).shape)
        for key in self._axes.get(layer, {}).get(weight, ()):
            shape[key.axis] = int(np.count_nonzero(~gone[self._found.axes[key]]))
        return tuple(shape)


def spend(
    budget: Budget, model: keras.Model, found: Dependencies, chosen: Choose
) -> tuple[float, Spending]:
    """The smallest ratio whose model keeps to the budget.

    Multiply-adds and parameters are counted on the dependency graph, by bisection over counts of
    units, and on the model that this leads to once more. Bytes and latency are measured on
    files: the next count to measure is where they would meet the limit if they went on in
    proportion to parameters or multiply-adds.

    Args:
        budget: What the model may cost.
        model: The model.
        found: Its dependencies.
        chosen: The units that a ratio removes.

    Returns:
        The ratio, and what is spent.

    Raises:
        TfcompError: If no ratio keeps to the budget, or the cost cannot be told.
        ConversionError: If a model cannot be converted, where files are measured.
    """
    before = budget.cost(model)
    limit = budget.allowance(before)
    search = _Search(budget, model, found, chosen, before, limit)
    count = search.counted() if budget.kind in ("macs", "parameters") else None
    if count is None:
        count = search.measured()
    after = search.cost(count)
    return count / found.n_units, Spending(budget.kind, limit, before, after)


class _Search:
    """Counts of units from 0 to one less than all, what they remove and what that costs."""

    def __init__(
        self,
        budget: Budget,
        model: keras.Model,
        found: Dependencies,
        chosen: Choose,
        before: float,
        limit: float,
    ) -> None:
        self._budget, self._model, self._found, self._chosen = budget, model, found, chosen
        self._limit = limit
        self._ledger = Ledger(found)
        self._last = max(found.n_units - 1, 0)
        self._removed: dict[int, tuple[int, ...]] = {}
        self._costs: dict[tuple[int, ...], float] = {(): before}
        self._estimates: dict[tuple[int, ...], float] = {}

    def removed(self, count: int) -> tuple[int, ...]:
        if count not in self._removed:
            self._removed[count] = tuple(self._chosen(count / self._found.n_units))
        return self._removed[count]

    def cost(self, count: int) -> float:
        """What the model costs, made for this."""
        removed = self.removed(count)
        if removed not in self._costs:
            self._costs[removed] = self._budget.cost(remove_units(self._found, removed))
        return self._costs[removed]

    def estimate(self, count: int) -> float:
        """Parameters or multiply-adds, counted without making the model."""
        removed = self.removed(count)
        if removed not in self._estimates:
            self._estimates[removed] = self._estimated(removed)
        return self._estimates[removed]

    def _estimated(self, removed: tuple[int, ...]) -> float:
        if self._budget.kind in ("macs", "latency_ms"):
            try:
                return self._ledger.macs(removed)
            except UncountedError:
                # Only latency comes here. The order of models by parameters is as good a guess.
                return self._ledger.parameters(removed)
        return self._ledger.parameters(removed)

    def counted(self) -> int | None:
        """The smallest count that keeps to the limit; None if the ledger is not to be trusted."""
        count = _first(self.estimate, self._limit, -1, self._last)
        self._refuse(self.estimate(count))
        return count if self.cost(count) == self.estimate(count) else None

    def measured(self) -> int:
        """The same by making and measuring models; a latency may be a little below its limit."""
        low, high, turn = -1, self._last, 0
        if self.cost(0) <= self._limit:
            return 0
        self._refuse(self.cost(high))
        low = 0
        while high - low > 1 and not self._near(high):
            middle = self._guess(low, high) if turn % 3 < 2 else (low + high) // 2
            low, high = (low, middle) if self.cost(middle) <= self._limit else (middle, high)
            turn += 1
        return high

    def _near(self, count: int) -> bool:
        is_time = self._budget.kind == "latency_ms"
        return is_time and self.cost(count) >= _NEAR * self._limit

    def _guess(self, low: int, high: int) -> int:
        """Where the cost meets the limit if it goes in proportion to the estimate."""
        most, least = self.cost(low), self.cost(high)
        share = (self._limit - least) / (most - least)
        wanted = self.estimate(high) + share * (self.estimate(low) - self.estimate(high))
        return min(max(_first(self.estimate, wanted, low, high), low + 1), high - 1)

    def _refuse(self, least: float) -> None:
        if least > self._limit:
            raise TfcompError(
                f"{self._model.name!r} cannot be shrunk to {self._budget.describe()}: expected "
                f"{self._budget.kind} of at most {self._limit:,.10g}, received {least:,.10g} with "
                "all removed that can be. Allow more, or spare less."
            )


def _first(cost: Cost, limit: float, low: int, high: int) -> int:
    """The smallest count above `low` that costs no more than the limit; else `high`."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if cost(middle) <= limit else (middle, high)
    return high
