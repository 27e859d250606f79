"""What a criterion judges, and its scores in the form that masks and surgery need."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import keras
import numpy as np
import numpy.typing as npt

from tfcomp.errors import TfcompError
from tfcomp.graph import FIXED, Dependencies, Graph, Group, Producer, dependencies
from tfcomp.graph.channels import weight_of
from tfcomp.pruning.sparsity import Kernel, find_kernels, networks_of, values_of
from tfcomp.pruning.units import Filters, Layers, Unit

if TYPE_CHECKING:
    from tfcomp.pruning.criteria import Criterion

Scores = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Candidate:
    """One kernel of which something may be removed.

    Attributes:
        name: Its key in `Candidates`.
        variable: The model's own variable.
        part: What says which of its weights are of one channel.
    """

    name: str
    variable: Any
    part: Kernel | Producer

    @property
    def shape(self) -> tuple[int, ...]:
        """The kernel's shape."""
        return tuple(self.variable.shape)

    @property
    def channels(self) -> int:
        """How many output channels, or filters, the kernel has."""
        if isinstance(self.part, Producer):
            return len(self.part.units)
        return Filters().count(self.part)

    def value(self) -> Scores:
        """The weights as they are now, in the kernel's shape; not to be written to."""
        return values_of(self.variable)

    def filters(self) -> Scores:
        """The weights as a matrix, [channels, weights of one filter], bias not included."""
        return self._rows(self.value())

    def _rows(self, values: Scores) -> Scores:
        if isinstance(self.part, Producer):
            return self.part.rows(values)
        return Filters().split(self.part, values, 0)

    def by_channel(self, scores: Scores) -> Scores:
        """Scores of channels, [channels]: those of single weights are averaged over a filter."""
        if scores.shape == self.shape:
            return self._rows(scores).mean(axis=1, dtype=np.float64)
        return scores

    def by_weight(self, scores: Scores) -> Scores:
        """Scores in the kernel's shape: those of a channel are of each of its weights."""
        if scores.shape == self.shape:
            return scores
        if isinstance(self.part, Producer):
            return self.part.spread(scores, self.shape)
        rows = np.broadcast_to(scores[:, None], (len(scores), self.part.size // len(scores)))
        return Filters().join(self.part, rows)


class Candidates(Mapping[str, Candidate]):
    """The kernels that a criterion is asked about, by name, and the model they are of.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)], name="m")
        >>> [(c.shape, c.filters().shape) for c in Candidates.of_kernels(model).values()]
        [((4, 3), (3, 4))]
    """

    def __init__(
        self, model: keras.Model, candidates: Iterable[Candidate], found: Dependencies | None = None
    ) -> None:
        self.model = model
        self._by_name = {candidate.name: candidate for candidate in candidates}
        self._found = found

    @classmethod
    def of_kernels(cls, model: keras.Model, kernels: Iterable[Kernel] | None = None) -> Self:
        """Kernels by their paths, for masks; by default those of `find_kernels`."""
        kernels = find_kernels(model)[0] if kernels is None else kernels
        return cls(model, (Candidate(k.name, k.variable, k) for k in kernels))

    @classmethod
    def of_channels(cls, model: keras.Model, found: Dependencies | None = None) -> Self:
        """Layers whose channels can be removed physically, by their names in the graph."""
        found = dependencies(model) if found is None else found
        cut = (p for p in found.producers.values() if (p.units != FIXED).any())
        return cls(model, (Candidate(p.name, _kernel_of(p), p) for p in cut), found)

    def __getitem__(self, name: str) -> Candidate:
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    @functools.cached_property
    def dependencies(self) -> Dependencies:
        """The model's calls and coupled channels.

        Raises:
            UnsupportedModelError: If the model is subclassed.
            TfcompError: If it is several networks.
        """
        if self._found is not None:
            return self._found
        networks = networks_of(self.model)
        if len(networks) != 1:
            raise TfcompError(
                f"Criteria on data or on what lies behind a layer expect one network. Received: "
                f"{len(networks)} in {self.model.name!r}. Take a criterion on weights."
            )
        return dependencies(networks[0])

    @property
    def graph(self) -> Graph:
        """The model's calls."""
        return self.dependencies.graph

    @functools.cached_property
    def producers(self) -> Mapping[str, Producer]:
        """The layers that create the channels which are judged, by their names in the graph."""
        asked = {id(candidate.variable) for candidate in self.values()}
        every = self.dependencies.producers
        return {name: p for name, p in every.items() if id(_kernel_of(p)) in asked}

    @property
    def groups(self) -> tuple[Group, ...]:
        """The coupled layers, as far as they are judged."""
        return tuple(g for g in self.dependencies.groups if set(g.layers) <= set(self.producers))

    def judged(self, layer: str) -> npt.NDArray[np.int64]:
        """Which channels of a layer are judged: of those to be cut, the ones that can be."""
        units = self.producers[layer].units
        return np.flatnonzero(units != FIXED) if self._found else np.arange(len(units))


def _kernel_of(producer: Producer) -> Any:
    return weight_of(producer.layer, producer.kernel.weight)


def channel_scores(criterion: Criterion, candidates: Candidates) -> dict[str, Scores]:
    """What a criterion gives to each channel of each candidate, by name.

    Raises:
        TfcompError: If it does not give finite scores of the right shape for each of them.
    """
    found = _asked(criterion, candidates)
    return {
        name: candidate.by_channel(_checked(criterion, candidate, found.get(name)))
        for name, candidate in candidates.items()
    }


def weight_scores(
    criterion: Criterion,
    model: keras.Model,
    kernels: Sequence[Kernel],
    units: Sequence[Unit],
    masks: Sequence[Scores] | None = None,
) -> list[Scores]:
    """What a criterion gives to each weight of some kernels.

    Args:
        criterion: It may score weights, or channels where whole filters or layers go.
        model: The kernels' model.
        kernels: Those to be judged.
        units: What of each is removed together.
        masks: Given where kernels are compared with each other, True for weights that stay. Scores
            that are not comparable are then divided by the mean of those that stay.

    Returns:
        For each kernel an array of its shape.

    Raises:
        TfcompError: If there are no finite scores of the right shape for each of them.
    """
    if not kernels:
        return []
    candidates = Candidates.of_kernels(model, kernels)
    found = _asked(criterion, candidates)
    if set(found) - set(candidates):
        found = {**_named_by_kernels(criterion, candidates, found), **found}
    result = []
    for candidate, unit in zip(candidates.values(), units, strict=True):
        scores = _checked(criterion, candidate, found.get(candidate.name))
        if scores.shape != candidate.shape:
            check_unit(criterion, unit)
        result.append(candidate.by_weight(scores))
    if masks is None or criterion.comparable:
        return result
    return [_relative(scores, mask) for scores, mask in zip(result, masks, strict=True)]


def check_unit(criterion: Criterion, unit: Unit) -> None:
    """Raises where a unit is finer than the channels that a criterion scores."""
    if not isinstance(unit, (Filters, Layers)):
        raise TfcompError(
            f"{criterion!r} scores channels: expected a unit that removes whole filters. Received: "
            f"{unit!r}. Take unit=Filters(), or a criterion on weights, Magnitude() for one."
        )


def _asked(criterion: Criterion, candidates: Candidates) -> Mapping[str, Any]:
    found = criterion.scores(candidates)
    if not isinstance(found, Mapping):
        raise TfcompError(
            f"{criterion!r} must give scores as a dict from names of kernels or layers to arrays. "
            f"Received: a {type(found).__name__}."
        )
    return found


def _named_by_kernels(
    criterion: Criterion, candidates: Candidates, found: Mapping[str, Any]
) -> dict[str, Scores]:
    """Scores that a criterion gave by layers, in the shapes of these layers' kernels."""
    by_variable = {id(_kernel_of(p)): p for p in candidates.producers.values()}
    result = {}
    for name, candidate in candidates.items():
        producer = by_variable.get(id(candidate.variable))
        if producer is not None and producer.name in found:
            of_layer = dataclasses.replace(candidate, part=producer)
            result[name] = of_layer.by_weight(_checked(criterion, of_layer, found[producer.name]))
    return result


def _checked(criterion: Criterion, candidate: Candidate, scores: Any) -> Scores:
    """Scores as an array, of weights or of channels."""
    expected = f"{candidate.shape} for its weights or ({candidate.channels},) for its channels"
    if scores is None:
        raise TfcompError(
            f"{criterion!r} must give {candidate.name!r} scores of shape {expected}. Received: "
            "none. Where its weights make no channels that can be seen, leave it out by name."
        )
    try:
        array = np.asarray(scores)
    except ValueError:  # rows of several lengths
        array = np.asarray(scores, object)
    if array.dtype.kind not in "fiub" and "float" not in array.dtype.name:
        received = f"values of type {array.dtype.name}"
    elif array.shape not in (candidate.shape, (candidate.channels,)):
        received = f"shape {array.shape}"
    elif not criterion._unchecked and not np.isfinite(array).all():
        received = f"{np.count_nonzero(~np.isfinite(array))} that are not finite"
    else:
        return array
    raise TfcompError(
        f"{criterion!r} must give {candidate.name!r} finite scores of shape {expected}. Received: "
        f"{received}."
    )


def _relative(scores: Scores, mask: Scores) -> Scores:
    mean = np.abs(scores[mask]).mean() if mask.any() else 0
    return scores / mean if mean > 0 else scores
