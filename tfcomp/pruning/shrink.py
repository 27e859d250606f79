"""Physical removal of channels: a smaller model that needs nothing of this library."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import keras
import numpy as np

from tfcomp.errors import TfcompError
from tfcomp.graph import (
    Dependencies,
    dependencies,
    remove_units,
    removed_channels,
)
from tfcomp.pruning.activation_criteria import ActivationMean, ActivationStandardDeviation, APoZ
from tfcomp.pruning.batch_norm_scale import BatchNormScale
from tfcomp.pruning.budget import Budget, Spending
from tfcomp.pruning.budget_search import spend
from tfcomp.pruning.candidates import Candidates, Scores, channel_scores
from tfcomp.pruning.criteria import Criterion, L1Norm, L2Norm, Random
from tfcomp.pruning.energy_aware import EnergyAware
from tfcomp.pruning.geometric_median import FPGM
from tfcomp.pruning.hrank import HRank
from tfcomp.pruning.selection import fraction, select, why_untouched
from tfcomp.pruning.taylor import Oracle, Taylor

CRITERIA: dict[str, type[Criterion]] = {
    "l1": L1Norm,
    "l2": L2Norm,
    "fpgm": FPGM,
    "batch_norm_scale": BatchNormScale,
    "random": Random,
}
# These look at data, the last two at the model's compiled loss as well.
DATA_CRITERIA: dict[str, Callable[[Any], Criterion]] = {
    "apoz": APoZ,
    "activation_mean": ActivationMean,
    "activation_standard_deviation": ActivationStandardDeviation,
    "hrank": HRank,
    "energy_aware": EnergyAware,
}
LOSS_CRITERIA: dict[str, Callable[[Any, Any], Criterion]] = {"taylor": Taylor, "oracle": Oracle}
SCOPES = ("local", "global")


@dataclasses.dataclass(frozen=True)
class LayerChannels:
    """The channels of one layer before and after.

    Attributes:
        name: The layer's name.
        kind: Its class.
        before: Channels that it had.
        after: Channels that it has.
        removed: Which of those that it had are gone, ascending.
    """

    name: str
    kind: str
    before: int
    after: int
    removed: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class ShrinkReport:
    """What was asked of `shrink` and what came of it.

    Attributes:
        asked: The fraction of channels that was to be removed; with a budget, the smallest that
            keeps to it; with a ratio for each layer, that fraction over all.
        prunable: Channels that could be removed; those coupled with each other count once.
        removed: Channels that were removed, counted the same way.
        scope: "local" or "global".
        criterion: The criterion, as it prints.
        round_to: What channel counts were rounded up to multiples of; None if they were not.
        layers: Each layer that creates channels, in order.
        skipped: For each layer that was left alone, or in part, the reason; also where it could be
            cut and what was asked for takes nothing from it.
        parameters_before: Number of weights, BatchNormalization statistics included.
        parameters_after: The same of the smaller model.
        budget: What was allowed and what is spent; None where a ratio was asked for.
    """

    asked: float
    prunable: int
    removed: int
    scope: str
    criterion: str
    round_to: int | None
    layers: tuple[LayerChannels, ...]
    skipped: dict[str, str]
    parameters_before: int
    parameters_after: int
    budget: Spending | None = None

    @property
    def got(self) -> float:
        """The fraction of prunable channels that was removed."""
        return self.removed / self.prunable if self.prunable else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain lists, dicts, strings and numbers."""
        layers = [dataclasses.asdict(layer) for layer in self.layers]
        return {**dataclasses.asdict(self), "layers": layers, "got": self.got}

    def __str__(self) -> str:
        lines = [
            f"Removed {self.removed} of {self.prunable} channels: {self.got:.1%}, asked "
            f"{self.asked:.1%} ({self.criterion}, {self.scope}"
            + (f", rounded to {self.round_to})" if self.round_to else ")"),
            f"Parameters: {self.parameters_before:,} -> {self.parameters_after:,}",
            *([f"Budget: {self.budget}"] if self.budget else []),
        ]
        width = max(
            (len(name) for name in [*(x.name for x in self.layers), *self.skipped]), default=0
        )
        lines += [
            f"  {x.name:<{width}}  {x.before:>5} -> {x.after:<5}  {x.kind}" for x in self.layers
        ]
        if self.skipped:
            lines.append("Left alone:")
            lines += [f"  {name:<{width}}  {reason}" for name, reason in self.skipped.items()]
        return "\n".join(lines)


def shrink(
    model: keras.Model,
    ratio: float | Mapping[str, float] | None = None,
    criterion: str | Criterion = "l1",
    scope: str = "local",
    round_to: int | None = None,
    spare: Iterable[str] = (),
    *,
    budget: Budget | None = None,
    data: Any = None,
) -> tuple[keras.Model, ShrinkReport]:
    """Removes channels of the lowest importance, with all that depends on them.

    importance(u) = Σ score(c) over the channels c of all layers that unit u couples, such as
    the convolutions added up in a residual stage. With scope="local", ⌊ratio·n⌋ of the n units
    of each group of coupled layers are removed; with scope="global", ⌊ratio·N⌋ of all N units,
    whose importances are divided by their mean over the group unless the criterion says that
    it is `comparable`. Ties go by index. Every layer keeps at least one channel.

    The smaller model computes what `model` computes when the weights of all consumers of the
    removed channels are zero. Nested models are opened up; names, inputs, outputs and `trainable`
    flags stay. `model` is not changed. Compile the result and train it for some epochs.

    Args:
        model: A built functional or Sequential model.
        ratio: Fraction of channels to be removed, in [0, 1), 0.5 by default; coupled channels
            count once. Or, with scope="local", a dict of fractions by the names of layers; several
            names may be joined by " + ". Of a group of coupled layers, which keep or lose channels
            together, the smallest of the fractions that name one of them counts; groups of which
            none is named keep all.
        criterion: A `Criterion`, or "l1" (the default), "l2", "fpgm", "batch_norm_scale" or
            "random"; with `data` "apoz", "activation_mean", "activation_standard_deviation",
            "hrank" or "energy_aware", and for a compiled model "taylor" or "oracle".
        scope: "local" (the default) removes the same fraction everywhere; "global" compares
            channels of all layers.
        round_to: Each layer keeps a multiple of so many channels (or all that it has), by
            removing fewer. None (the default) does not round.
        spare: Names of layers whose output channels are to stay.
        budget: In place of `ratio`: as few channels are removed as keep to it, found by halving
            the range of ratios.
        data: What criteria by name are to look at: inputs as arrays, (inputs, labels), or a
            batched `tf.data.Dataset` of either. A criterion that is an object has its own.

    Returns:
        The smaller model, uncompiled, and a report of what was removed, and what not and why.

    Raises:
        TfcompError: If an argument is out of range, nothing of the model can be removed, or no
            ratio keeps to the budget.
        UnsupportedModelError: If the model is subclassed, unbuilt or no model.

    Example:
        >>> import keras
        >>> layers = [keras.layers.Dense(8, name="hidden"), keras.layers.Dense(2, name="logits")]
        >>> small, report = shrink(keras.Sequential([keras.Input((4,)), *layers]), ratio=0.25)
        >>> print(report)
        Removed 2 of 8 channels: 25.0%, asked 25.0% (L1Norm(), local)
        Parameters: 58 -> 44
          hidden      8 -> 6      Dense
          logits      2 -> 2      Dense
        Left alone:
          logits  is an output of the model

    Li et al. 2016, "Pruning Filters for Efficient ConvNets", arXiv:1608.08710.
    """
    _check_round_to(round_to)
    if scope not in SCOPES:
        raise TfcompError(_unknown("scope", scope, SCOPES))
    judge = _criterion(criterion, model, data)
    found = dependencies(model, spare)
    ratio = _checked_ratio(ratio, budget, scope, found)
    if ratio and not found.n_units:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in found.skipped.items())
        raise TfcompError(
            f"No channel of {model.name!r} can be removed ({reasons or 'it has no layers'}). "
            "Leave this step out, or use another model."
        )
    importance = importances(model, found, judge)

    def chosen(ratio: float | Mapping[str, float]) -> list[int]:
        return select(found, importance, ratio, scope, round_to, judge.comparable)

    spending = None
    if budget is not None:
        ratio, spending = spend(budget, model, found, chosen)
    removed = chosen(ratio)
    small = remove_units(found, removed)
    untouched = why_untouched(found, importance, ratio, scope, round_to, judge.comparable, removed)
    report = ShrinkReport(
        asked=fraction(ratio, found),
        prunable=found.n_units,
        removed=len(removed),
        scope=scope,
        criterion=repr(judge),
        round_to=None if round_to is None else int(round_to),
        layers=tuple(_layer_channels(found, removed)),
        skipped={**found.skipped, **untouched},
        parameters_before=model.count_params(),
        parameters_after=small.count_params(),
        budget=spending,
    )
    return small, report


def importances(model: keras.Model, found: Dependencies, criterion: Criterion) -> Scores:
    """The importance of each unit, shape [n_units]: the sum of its channels' scores.

    Raises:
        TfcompError: If the criterion does not give finite scores for each layer.
    """
    importance = np.zeros(found.n_units + 1)
    for name, scores in channel_scores(criterion, Candidates.of_channels(model, found)).items():
        np.add.at(importance, found.producers[name].units, scores.astype(np.float64))
    return importance[:-1]


def _layer_channels(found: Dependencies, removed: list[int]) -> Iterator[LayerChannels]:
    gone = removed_channels(found, removed)
    for name, producer in found.producers.items():
        before = len(producer.units)
        lost = tuple(int(channel) for channel in gone.get(name, ()))
        kind = type(producer.layer).__name__
        yield LayerChannels(name, kind, before, before - len(lost), lost)


def _criterion(criterion: str | Criterion, model: keras.Model, data: Any) -> Criterion:
    if isinstance(criterion, Criterion):
        _refuse_data(data, repr(criterion))
        return criterion
    if isinstance(criterion, str) and criterion in CRITERIA:
        _refuse_data(data, repr(criterion))
        return CRITERIA[criterion]()
    if isinstance(criterion, str) and criterion in (*DATA_CRITERIA, *LOSS_CRITERIA):
        return _data_criterion(criterion, model, data)
    if isinstance(criterion, type) and issubclass(criterion, Criterion):
        raise TfcompError(
            f"`criterion` must be an instance. Received: the class {criterion.__name__}. "
            f"Write {criterion.__name__}()."
        )
    known = (*CRITERIA, *DATA_CRITERIA, *LOSS_CRITERIA)
    raise TfcompError(_unknown("criterion", criterion, known, "a Criterion or "))


def _data_criterion(criterion: str, model: keras.Model, data: Any) -> Criterion:
    if data is None:
        raise TfcompError(
            f"criterion={criterion!r} expects `data` to look at. Received: none. Pass data=images, "
            "or a dataset."
        )
    if criterion in DATA_CRITERIA:
        return DATA_CRITERIA[criterion](data)
    loss = getattr(model, "loss", None)
    if not model.compiled or loss is None:
        raise TfcompError(
            f"criterion={criterion!r} expects a model compiled with a loss. Received: none in "
            f"{model.name!r}. Compile it, or pass {LOSS_CRITERIA[criterion].__name__}(loss, data)."
        )
    return LOSS_CRITERIA[criterion](loss, data)


def _refuse_data(data: Any, criterion: str) -> None:
    if data is not None:
        raise TfcompError(
            f"`data` is for criteria by name that look at data, 'apoz' for one. Received: "
            f"criterion {criterion}, which takes none here. Leave `data` out."
        )


def _unknown(argument: str, value: object, known: tuple[str, ...], also: str = "") -> str:
    close = difflib.get_close_matches(str(value).lower(), known, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    names = ", ".join(map(repr, known))
    return f"`{argument}` must be {also}one of {names}. Received: {argument}={value!r}.{hint}"


def _checked_ratio(
    ratio: float | Mapping[str, float] | None,
    budget: Budget | None,
    scope: str,
    found: Dependencies,
) -> float | Mapping[str, float]:
    if budget is not None:
        if ratio is not None or not isinstance(budget, Budget):
            raise TfcompError(
                "`budget` must be a tfcomp.pruning.Budget, and takes the place of `ratio`. "
                f"Received: budget={budget!r}, ratio={ratio!r}."
            )
        return 0.5
    if ratio is None:
        return 0.5
    if not isinstance(ratio, Mapping):
        return _check_ratio(ratio)
    if scope != "local":
        raise TfcompError(f'A ratio for each layer needs scope="local". Received: scope={scope!r}.')
    ratios: dict[str, float] = {}
    for key, value in ratio.items():
        for name in _layers(key):
            ratios[name] = min(_check_ratio(value), ratios.get(name, 1.0))
    if not ratios:
        raise TfcompError(
            "`ratio` must be a fraction, or a dict of them by the names of layers. Received: {}."
        )
    for name in ratios:
        if name not in found.producers:
            raise TfcompError(_unknown("ratio", name, tuple(found.producers)))
    of_groups = {name for group in found.groups for name in group.layers}
    fixed = [name for name, share in ratios.items() if share and name not in of_groups]
    if fixed:
        reasons = "; ".join(f"{name!r} {_why_fixed(found, name)}" for name in fixed)
        raise TfcompError(
            f"`ratio` expects layers of which channels can be removed. Received: {reasons}."
        )
    wholes = {" + ".join(group.layers) for group in found.groups}
    return {**ratios, **{key: float(value) for key, value in ratio.items() if key in wholes}}


def _why_fixed(found: Dependencies, name: str) -> str:
    return found.skipped.get(name, "has no channel that can be removed")


def _layers(key: str) -> list[str]:
    """The names in a key of `Sensitivity.ratios`, which joins those of coupled layers."""
    return str(key).split(" + ")


def _check_ratio(ratio: Any) -> float:
    is_number = isinstance(ratio, (int, float, np.floating)) and not isinstance(ratio, bool)
    if is_number and 0 <= ratio < 1:
        return float(ratio)
    hint = f" Did you mean {ratio / 100:g}?" if is_number and 1 < ratio < 100 else ""
    raise TfcompError(
        "`ratio` must be the fraction of channels to be removed, a number in [0, 1). "
        f"Received: ratio={ratio!r}.{hint}"
    )


def _check_round_to(round_to: int | None) -> None:
    if round_to is None:
        return
    if isinstance(round_to, bool) or not isinstance(round_to, (int, np.integer)) or round_to < 1:
        raise TfcompError(
            "`round_to` must be None or an integer of at least 1, 8 for one. "
            f"Received: round_to={round_to!r}."
        )
