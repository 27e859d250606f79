"""How much of each layer can go before the model gets worse."""

from __future__ import annotations

import dataclasses
import itertools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import keras
import numpy as np

from tfcomp.errors import TfcompError
from tfcomp.files import replacing
from tfcomp.graph import Dependencies, dependencies, remove_units
from tfcomp.pruning.candidates import weight_scores
from tfcomp.pruning.criteria import Criterion, L1Norm, Magnitude
from tfcomp.pruning.masks import keep_mask, pruned_count
from tfcomp.pruning.schedules import check_sparsity
from tfcomp.pruning.scores import finite_score
from tfcomp.pruning.selection import select
from tfcomp.pruning.shrink import importances
from tfcomp.pruning.sparsity import find_kernels
from tfcomp.pruning.units import Weights

SPARSITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
Evaluate = Callable[[keras.Model], float]
Unit = Literal["weights", "channels"]


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """A model's score with one layer pruned at a time, none of the others touched.

    Attributes:
        unit: "weights" or "channels": what was removed.
        baseline: Score of the model as it is.
        sparsities: Fractions that were removed, rising.
        scores: For each layer the score at each of the sparsities.
        sizes: For each layer the number of weights, or of channels that can be removed.
    """

    unit: Unit
    baseline: float
    sparsities: tuple[float, ...]
    scores: Mapping[str, tuple[float, ...]]
    sizes: Mapping[str, int]

    def ratios(self, *, drop: float | None = None, total: float | None = None) -> dict[str, float]:
        """Fractions to remove from each layer, the more the less it is missed.

        With `drop` d, layer l gets the largest sparsity s of the table up to which no score
        falls below baseline − d. With `total`, d is the smallest for which Σ s_l·n_l ≥
        total·Σ n_l over the sizes n_l. Layers are judged one by one; pruned together they lose
        more than any alone.

        Args:
            drop: d, in units of the score, at least 0.
            total: Fraction of all weights or channels that the layers are to lose together.

        Returns:
            For each layer a fraction; `shrink(ratio=…)` takes those of channels as they are.

        Raises:
            TfcompError: Unless exactly one of the two is given, or if `total` is out of reach.

        Example:
            >>> table = Sensitivity("weights", 0.9, (0.5, 0.8), {"a": (0.9, 0.6), "b": (0.9, 0.89)},
            ...                     {"a": 100, "b": 300})
            >>> table.ratios(drop=0.02)
            {'a': 0.5, 'b': 0.8}
            >>> table.ratios(total=0.6)
            {'a': 0.5, 'b': 0.8}
        """
        if (drop is None) == (total is None):
            raise TfcompError(
                f"Expected one of drop and total. Received: drop={drop!r}, total={total!r}."
            )
        if drop is not None:
            if not drop >= 0:
                raise TfcompError(f"`drop` must be at least 0. Received: {drop!r}.")
            return self._within(drop)
        return self._reaching(check_sparsity("total", total))

    def _within(self, drop: float) -> dict[str, float]:
        # A hair of slack: 0.9 - 0.02 is more than 0.88 in binary.
        least = self.baseline - drop - 1e-12
        good = {
            name: len(list(itertools.takewhile(lambda score: score >= least, row)))
            for name, row in self.scores.items()
        }
        return {name: self.sparsities[n - 1] if n else 0.0 for name, n in good.items()}

    def _reaching(self, total: float) -> dict[str, float]:
        drops = {max(self.baseline - s, 0.0) for row in self.scores.values() for s in row}
        for drop in sorted({0.0, *drops}):
            ratios = self._within(drop)
            if self._share(ratios) >= total - 1e-12:
                return ratios
        raise TfcompError(
            f"A total of {total:g} is out of reach: expected at most {self.sparsities[-1]:g}, the "
            "largest sparsity of the table. Ask for less, or measure larger sparsities."
        )

    def _share(self, ratios: Mapping[str, float]) -> float:
        gone = sum(ratios[name] * size for name, size in self.sizes.items())
        return gone / max(sum(self.sizes.values()), 1)

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return {
            "unit": self.unit,
            "baseline": self.baseline,
            "sparsities": list(self.sparsities),
            "scores": {name: list(row) for name, row in self.scores.items()},
            "sizes": dict(self.sizes),
        }

    def plot(self, path: str | os.PathLike[str]) -> pathlib.Path:
        """Draws one line for each layer; the suffix of `path` says in which format."""
        # Not at the top: most who import this draw nothing.
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.subplots()
        axes.axhline(self.baseline, color="#888888", linewidth=1, linestyle=":")
        styles = itertools.cycle(("-", "--", "-."))
        for index, (name, row) in enumerate(self.scores.items()):
            style = "-" if index < 10 else next(styles)
            axes.plot(self.sparsities, row, style, marker="o", markersize=3, label=name)
        axes.set_xlabel(f"fraction of the layer's {self.unit} removed")
        axes.set_ylabel("score")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
        target = pathlib.Path(path)
        with replacing(target) as temporary:
            figure.savefig(temporary, format=target.suffix.removeprefix(".") or "png")
        return target

    def __str__(self) -> str:
        width = max((len(name) for name in self.scores), default=5)
        head = "".join(f"{sparsity:>9.0%}" for sparsity in self.sparsities)
        lines = [
            f"Score with one layer's {self.unit} removed (none: {self.baseline:.4f})",
            f"  {'':<{width}}{head}",
        ]
        lines += [
            f"  {name:<{width}}" + "".join(f"{score:>9.4f}" for score in row)
            for name, row in self.scores.items()
        ]
        return "\n".join(lines)


def sensitivity(
    model: keras.Model,
    evaluate: Evaluate,
    *,
    unit: Unit = "weights",
    sparsities: Sequence[float] = SPARSITIES,
    criterion: Criterion | None = None,
    skip: Iterable[str] = (),
    depthwise: bool = False,
) -> Sensitivity:
    """Prunes one layer at a time, without training, and sees how the score falls.

    Of weights, the ⌊s·n + ½⌋ of lowest score in a kernel are zero while the model is evaluated;
    afterwards, and after an error, every weight is what it was. Of channels, a smaller model is
    made for each measurement, in which the ⌊s·n⌋ least important units of one group of coupled
    layers are missing; a group goes by its layers' names, joined by " + ".

    Args:
        model: A built model; for channels a functional or Sequential one.
        evaluate: Takes a model and returns its score, where more is better: accuracy, or minus
            a loss. For channels it is given new models, not compiled.
        unit: "weights" (the default) or "channels".
        sparsities: Fractions in [0, 1) to be removed. Default 0.1, 0.2, … 0.9.
        criterion: A `Criterion`, for weights one that scores these. Default `Magnitude()`, for
            channels `L1Norm()`.
        skip: Names of layers to leave out.
        depthwise: Whether depthwise kernels are measured as well, of weights. Default False, as
            in `PruneWeights`.

    Returns:
        The table. Kernels go by their paths without the model's own name, so that
        `PruneWeights(overrides=…)` and other models of the same layers take them.

    Raises:
        TfcompError: If an argument is not as described, a score is not a finite number, or
            nothing of the model can be pruned.

    Example:
        >>> import numpy as np
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="d")], name="m")
        >>> model.set_weights([np.arange(8.0).reshape(4, 2), np.zeros(2)])
        >>> total = lambda model: float(np.sum(model.layers[0].kernel))
        >>> print(sensitivity(model, total, sparsities=[0.25, 0.5]))
        Score with one layer's weights removed (none: 28.0000)
                        25%      50%
          d/kernel  27.0000  22.0000

    Li, Kadav, Durdanovic, Samet and Graf 2016, "Pruning Filters for Efficient ConvNets",
    arXiv:1608.08710, section 3.2; for weights Han, Pool, Tran and Dally 2015, arXiv:1506.02626,
    section 3.1.
    """
    if not callable(evaluate):
        raise TfcompError(f"`evaluate` must be a function of a model. Received: {evaluate!r}.")
    if isinstance(sparsities, (str, int, float)):
        raise TfcompError(
            f"`sparsities` must be a list of fractions, as [0.25, 0.5]. Received: {sparsities!r}."
        )
    fractions = tuple(sorted({check_sparsity("sparsities", value) for value in sparsities}))
    if not fractions:
        raise TfcompError("`sparsities` must hold a fraction or more. Received: none.")
    if unit not in ("weights", "channels"):
        raise TfcompError(f'`unit` must be "weights" or "channels". Received: {unit!r}.')
    judge = criterion or (Magnitude() if unit == "weights" else L1Norm())
    if not isinstance(judge, Criterion):
        raise TfcompError(f"`criterion` must be a Criterion. Received: {criterion!r}.")
    if unit == "weights" and judge.of_channels:
        raise TfcompError(
            f"{judge!r} scores channels. Received: unit={unit!r}. Take "
            'unit="channels", or a criterion on weights, Magnitude() for one.'
        )
    baseline = finite_score("evaluate", evaluate, model)
    if unit == "weights":
        rows = _by_weights(model, evaluate, fractions, judge, skip, depthwise)
    else:
        rows = _by_channels(model, evaluate, fractions, judge, skip)
    scores: dict[str, tuple[float, ...]] = {}
    sizes: dict[str, int] = {}
    for name, size, row in rows:
        scores[name], sizes[name] = row, size
    return Sensitivity(unit, baseline, fractions, scores, sizes)


_Rows = Iterator[tuple[str, int, tuple[float, ...]]]


def _by_weights(
    model: keras.Model,
    evaluate: Evaluate,
    fractions: Sequence[float],
    criterion: Criterion,
    skip: Iterable[str],
    depthwise: bool,
) -> _Rows:
    kernels, skipped = find_kernels(model, skip=skip, depthwise=depthwise)
    if not kernels:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
        raise TfcompError(f"There is no kernel to prune in {model.name!r}: {reasons}.")
    scores = weight_scores(criterion, model, kernels, [Weights()] * len(kernels))
    for kernel, values in zip(kernels, scores, strict=True):
        before = kernel.value().copy()
        row = []
        try:
            for fraction in fractions:
                keep = keep_mask(values, pruned_count(kernel.size, fraction))
                kernel.variable.assign(np.where(keep, before, before.dtype.type(0)))
                row.append(finite_score("evaluate", evaluate, model))
        finally:
            kernel.variable.assign(before)
        yield kernel.name.removeprefix(f"{model.name}/"), kernel.size, tuple(row)


def _by_channels(
    model: keras.Model,
    evaluate: Evaluate,
    fractions: Sequence[float],
    criterion: Criterion,
    skip: Iterable[str],
) -> _Rows:
    found = dependencies(model, skip)
    if not found.n_units:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in found.skipped.items())
        raise TfcompError(f"No channel of {model.name!r} can be removed: {reasons}.")
    importance = importances(model, found, criterion)
    for group in found.groups:
        row = []
        for fraction in fractions:
            asked = dict.fromkeys(group.layers, fraction)
            row.append(_without(found, select(found, importance, asked), evaluate))
        yield " + ".join(group.layers), len(group.units), tuple(row)


def _without(found: Dependencies, units: list[int], evaluate: Evaluate) -> float:
    return finite_score("evaluate", evaluate, remove_units(found, units))
