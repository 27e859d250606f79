"""Energy-aware pruning: the layers that need most energy first, judged by their outputs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from tfcomp.errors import TfcompError
from tfcomp.graph import rebuild, trace
from tfcomp.pruning.candidates import Candidates, Scores
from tfcomp.pruning.criteria import HoldsData, checked_seed
from tfcomp.pruning.energy import (
    Energy,
    EnergyCosts,
    checked_costs,
    estimate_energy,
    layer_inputs,
)
from tfcomp.pruning.input_rows import (
    Matrix,
    filters_by_group,
    has_rows,
    in_kernel_shape,
    sampled_rows,
)
from tfcomp.pruning.masks import Mask, keep_mask, pruned_count
from tfcomp.pruning.samples import all_inputs
from tfcomp.pruning.schedules import check_sparsity
from tfcomp.pruning.sparsity import (
    KernelSparsity,
    find_kernels,
    measure,
    networks_of,
    total_sparsity,
)
from tfcomp.pruning.units import checked_whole

# Share of all energy that a layer needs at least, as far as scores go.
_LEAST = 1e-12
# λ, over the mean square of an input; with the smallest it is the paper's least squares, with
# the last nothing is fitted.
_RIDGES = (1e-6, 1e-4, 1e-2, 1.0, math.inf)
# A larger one is taken only if it lowers the error by more than this.
_WORTH = 1.1
# Rows are held out in so many parts, each of some stretches; so many filters are looked at.
_FOLDS, _STRETCHES, _FILTERS = 5, 20, 16


@dataclasses.dataclass(frozen=True)
class LayerError:
    """Mean square error of a layer's outputs over the mean square of the outputs, by step.

    Attributes:
        name: The layer's.
        removed: With the weights of least magnitude gone, more than asked for.
        restored: With those back that lower the error most.
        tuned: With what stays fitted to the outputs.
        ridge: λ of that fit; infinite where too few samples allowed none.
    """

    name: str
    removed: float
    restored: float
    tuned: float
    ridge: float


@dataclasses.dataclass(frozen=True)
class EnergyReport:
    """What `prune_by_energy` did.

    Attributes:
        kernels: The zeros of each pruned kernel.
        skipped: For each weight that was left alone, the reason.
        errors: Of each layer, in the order in which they were pruned.
        before: The energy of the model as it was given.
        after: The energy with zeros skipped.
    """

    kernels: tuple[KernelSparsity, ...]
    skipped: dict[str, str]
    errors: tuple[LayerError, ...]
    before: Energy
    after: Energy

    @property
    def sparsity(self) -> float:
        """Zeros over weights of all the pruned kernels together, in [0, 1]."""
        return total_sparsity(self.kernels)

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        energies = {"before": self.before.to_dict(), "after": self.after.to_dict()}
        return {**dataclasses.asdict(self), **energies, "sparsity": self.sparsity}

    def __str__(self) -> str:
        ratio = self.before.total / self.after.total if self.after.total else math.inf
        lines = [
            f"energy {self.before.total:,.0f} -> {self.after.total:,.0f} (×{ratio:.2f} less), "
            f"sparsity {self.sparsity:.4f}"
        ]
        errors = {error.name: error for error in self.errors}
        for before, after in zip(self.before.layers, self.after.layers, strict=True):
            line = f"  {before.total:>16,.0f} -> {after.total:>16,.0f}  {before.name}"
            if (error := errors.get(before.name)) is not None:
                line += f"  error {error.removed:.3g}, {error.restored:.3g}, {error.tuned:.3g}"
            lines.append(line)
        lines += [f"  left alone  {name}: {reason}" for name, reason in self.skipped.items()]
        return "\n".join(lines)


class EnergyAware(HoldsData):
    """score(w) = (Σ_n |x_n·w| / Σ_n Σ_i |y_ni|) / (e_w / E): what outputs lose over energy saved.

    x_n is the input that w is multiplied with in row n of the layer's multiply-adds, y_ni output i
    of that row without bias, e_w the layer's estimated energy over its weights that are not zero,
    and E the energy of all layers. With scope "global" the layers that need most energy lose most,
    and in each the weights that its outputs need least.

    `prune_by_energy` is the paper's procedure, which looks at errors of several weights together
    and refits; this is its two ideas as a score, for schedules, units and `shrink`.

    Yang, Chen and Sze 2016, "Designing Energy-Efficient Convolutional Neural Networks using
    Energy-Aware Pruning", arXiv:1611.05128.

    Args:
        data: Inputs as the model takes them, a tuple (inputs, labels) of which labels are not
            used, or a batched `tf.data.Dataset` of either.
        rows: Output positions looked at for each layer, drawn from all. Default 4000.
        costs: For `estimate_energy`.
        seed: Of the positions drawn. Default 0.

    Raises:
        TfcompError: From `scores`, if a kernel is not of a convolution or Dense, channels last.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name="d")], name="m")
        >>> _ = model.layers[0].kernel.assign([[1.0], [-2.0]])
        >>> criterion = EnergyAware(np.array([[3.0, 1.0], [1.0, 0.0]]))
        >>> criterion.scores(Candidates.of_kernels(model))["m/d/kernel"].round(3).tolist()
        [[4.0], [2.0]]
    """

    comparable = True

    def __init__(
        self, data: Any, rows: int = 4000, costs: EnergyCosts | None = None, seed: int = 0
    ) -> None:
        self.data, self.rows, self.seed = data, checked_whole("rows", rows), checked_seed(seed)
        self.costs = checked_costs(costs)

    def scores(self, candidates: Candidates) -> dict[str, Scores]:
        """The score of each weight."""
        graph = candidates.graph
        arrays = all_inputs(self.data, graph, type(self).__name__)
        owners = {id(op.kernel): name for name, op in graph.ops.items() if has_rows(op)}
        network = networks_of(candidates.model)[0]
        energy = estimate_energy(network, arrays, costs=self.costs)
        if not energy.total:
            raise TfcompError(
                "EnergyAware expects a model that needs energy. Received: one that needs none, by "
                f"{self.costs}."
            )
        totals = {layer.name: layer.total / energy.total for layer in energy.layers}
        found = {}
        for name, kernel in candidates.items():
            layer = owners.get(id(kernel.variable))
            if layer is None:
                raise TfcompError(
                    "EnergyAware expects kernels of convolutions and Dense, channels last. "
                    f"Received: {name!r}. Name its layer in `spare` or `skip`, or take another "
                    "criterion."
                )
            value = kernel.value()
            rows = layer_inputs(graph, layer, arrays)
            alive = max(int(np.count_nonzero(value)), 1)
            found[name] = self._lost(graph.ops[layer], value, rows) * (
                alive / max(totals[layer], _LEAST)
            )
        return found

    def _lost(self, op: Any, value: Scores, inputs: list[Scores]) -> Matrix:
        """By how much the outputs change without each weight, over the outputs."""
        x = sampled_rows(op, inputs, self.rows, self.seed)
        filters = filters_by_group(op, value)
        outputs = sum(float(np.abs(x[:, g] @ w).mean(axis=0).sum()) for g, w in enumerate(filters))
        changes = np.abs(x).mean(axis=0)[:, :, None] * np.abs(filters)
        return in_kernel_shape(changes / (outputs or 1.0), value.shape)

    def _settings(self) -> dict[str, Any]:
        return {"rows": self.rows, "seed": self.seed}


def prune_by_energy(
    model: keras.Model,
    sparsity: float,
    data: Any,
    *,
    restored: float = 0.2,
    rounds: int = 4,
    rows: int = 4000,
    skip: Iterable[Any] = (),
    costs: EnergyCosts | None = None,
    seed: int = 0,
) -> tuple[keras.Model, EnergyReport]:
    """Sets weights of a copy of a trained model to zero, layer by layer by estimated energy.

    The layer of most energy comes first. In each, with X the inputs of its multiply-adds, one row
    for an output position, a_i the weights of filter i as trained, and y_i = X₀a_i its outputs
    without bias in the model as given:

    1. The weights of least |w| are removed, more than asked for: (1 − restored)·(1 − sparsity)
       of them stay.
    2. Removed weights come back, up to the sparsity asked for: those that lower
       ‖y_i − X(m_i ⊙ a_i)‖₁ most, each by itself, an equal number in each of the rounds.
    3. What stays is fitted in closed form, filter by filter: ‖y_i − X a_i‖₂² is minimised over
       the weights that are not zero, with λ‖a_i − trained‖₂² added so that what the data say
       nothing about stays as trained. λ is the smallest of 1e-6, 1e-4, 1e-2, 1 and ∞, times the
       mean square of an input, whose error on rows held out, in five folds, is within 10 % of
       the least: 1e-6 where samples are many, and ∞, no fit at all, where they are too few.

    The time grows with the square of a layer's inputs, k·k·channels of a convolution, and faster
    for wide ones: seconds at 1,000, a quarter of a minute at 2,000, a minute at 4,600.

    Then the whole is to be trained on, with `PruneWeights.from_zeros()`, which keeps the zeros.

    Yang, Chen and Sze 2016, "Designing Energy-Efficient Convolutional Neural Networks using
    Energy-Aware Pruning", arXiv:1611.05128. Deviations: the sparsity is the same in each layer,
    where the paper removes what accuracy allows; X is of the model as pruned so far, so that
    errors of layers before are made good; λ, without which few samples are fitted and the model
    is lost. Counts are exact in a layer, not in each filter.

    Args:
        model: A built functional or Sequential model, trained.
        sparsity: Fraction of each kernel to be zero, in [0, 1). Zeros that it has already count
            and stay.
        data: Inputs as the model takes them, a tuple (inputs, labels) of which labels are not
            used, or a batched `tf.data.Dataset` of either. Some hundred samples for convolutions;
            for a dense layer on features, several times as many as it has inputs.
        restored: Share of what stays that is chosen by the outputs, not by |w|, in [0, 1].
            Default 0.2.
        rounds: In how many rounds weights come back. Default 4.
        rows: Output positions looked at for each layer, drawn from all. Default 4000.
        skip: Layers to spare, as objects or names.
        costs: For `estimate_energy`.
        seed: Of the positions drawn. Default 0.

    Returns:
        The copy, uncompiled, and a report.

    Raises:
        TfcompError: If an argument is not as described, or outputs are not finite.
        UnsupportedModelError: If the model is subclassed or not built.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(10)])
        >>> x = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
        >>> pruned, report = prune_by_energy(model, 0.75, x)
        >>> report.sparsity, report.after.total < report.before.total
        (0.75, True)
    """
    sparsity = check_sparsity("sparsity", sparsity)
    if not 0 <= restored <= 1:
        raise TfcompError(f"`restored` must be between 0 and 1. Received: {restored!r}.")
    rounds, rows = checked_whole("rounds", rounds), checked_whole("rows", rows)
    checked_seed(seed)
    whole = trace(model)
    arrays = all_inputs(data, whole, "prune_by_energy")
    pruned = rebuild(whole)
    graph = trace(pruned)
    kernels, skipped = find_kernels(pruned, skip=skip)
    owners = {id(op.kernel): name for name, op in graph.ops.items() if has_rows(op)}
    for kernel in kernels:
        if id(kernel.variable) not in owners:
            skipped[kernel.name] = "of a layer other than a convolution or dense, channels last"
    taken = tuple(kernel for kernel in kernels if id(kernel.variable) in owners)
    if not taken:
        reasons = "; ".join(f"{name} is {reason}" for name, reason in skipped.items())
        raise TfcompError(f"There is no kernel to prune in {model.name!r}: {reasons}.")
    before = estimate_energy(model, arrays, costs=costs)
    totals = {layer.name: layer.total for layer in before.layers}
    names = [owners[id(kernel.variable)] for kernel in taken]
    errors = []
    for name in sorted(names, key=lambda name: -totals[name]):
        op = graph.ops[name]
        target, x = (
            sampled_rows(op, layer_inputs(of, name, arrays), rows, seed) for of in (whole, graph)
        )
        errors.append(_prune_layer(name, op, target, x, (sparsity, restored, rounds)))
    after = estimate_energy(pruned, arrays, costs=costs)
    return pruned, EnergyReport(measure(taken), skipped, tuple(errors), before, after)


def _prune_layer(
    name: str, op: Any, original: Matrix, x: Matrix, asked: tuple[float, float, int]
) -> LayerError:
    """Prunes one layer in place.

    Args:
        name: The layer's.
        op: The layer.
        original: Inputs of its multiply-adds in the model as given, [rows, groups, weights].
        x: The same in the model as pruned so far.
        asked: Sparsity, restored share and rounds.
    """
    sparsity, restored, rounds = asked
    shape = tuple(op.kernel.shape)
    trained = filters_by_group(op, np.asarray(op.kernel))
    groups = len(trained)
    y = np.stack([original[:, g] @ trained[g] for g in range(groups)])
    if not (np.isfinite(y).all() and np.isfinite(x).all()):
        raise TfcompError(
            f"Energy-aware pruning expects finite inputs and outputs. Received: others at {name!r}."
        )
    stays = trained.size - pruned_count(trained.size, sparsity)
    first = math.ceil(stays * (1 - restored))
    ranked = np.where(trained != 0, np.abs(trained), -1.0)
    mask = keep_mask(ranked, trained.size - first) & (trained != 0)
    removed = _error(y, x, np.where(mask, trained, 0))
    mask = restore(mask, trained, y, x, stays, rounds)
    start = np.where(mask, trained, 0)
    ridge = _chosen_ridge(y, x, mask, start)
    (tuned,) = _all_fitted(y, x, mask, start, (ridge,))
    result = in_kernel_shape(tuned, shape)
    op.kernel.assign(result.astype(op.kernel.dtype))
    return LayerError(name, removed, _error(y, x, start), _error(y, x, tuned), ridge)


def restore(mask: Mask, trained: Matrix, y: Matrix, x: Matrix, stays: int, rounds: int) -> Mask:
    """Lets those weights come back that lower the error of the outputs most.

    Args:
        mask: True where weights are, [groups, weights, filters].
        trained: All weights, of the same shape; zeros never come back.
        y: Outputs without bias, [groups, rows, filters].
        x: Inputs, [rows, groups, weights].
        stays: How many weights there shall be.
        rounds: In how many rounds; errors are taken anew in each.

    Returns:
        The mask with more in it: `stays`, or all that are not zero.
    """
    mask = mask.copy()
    for left in range(rounds, 0, -1):
        missing = stays - int(np.count_nonzero(mask))
        absent = ~mask & (trained != 0)
        count = min(math.ceil(missing / left), int(np.count_nonzero(absent)))
        if count <= 0:
            break
        gains = np.full(trained.shape, -np.inf)
        for g, i in np.ndindex(trained.shape[0], trained.shape[2]):
            gone = absent[g, :, i]
            residual = y[g, :, i] - x[:, g] @ np.where(mask[g, :, i], trained[g, :, i], 0)
            effect = x[:, g, gone] * trained[g, gone, i]
            after = np.abs(residual[:, None] - effect).sum(axis=0)
            gains[g, gone, i] = np.abs(residual).sum() - after
        mask |= keep_mask(gains, gains.size - count) & absent
    return mask


def _chosen_ridge(y: Matrix, x: Matrix, mask: Mask, start: Matrix) -> float:
    """The smallest λ that does about as well as any on rows that it was not fitted to."""
    some = np.unique(np.linspace(0, y.shape[2] - 1, _FILTERS).astype(int))
    y, mask, start = y[:, :, some], mask[:, :, some], start[:, :, some]
    # Whole stretches of rows, since those of one sample are alike.
    folds = np.arange(len(x)) * _STRETCHES // len(x) % _FOLDS
    errors = np.zeros(len(_RIDGES))
    for fold in np.unique(folds):
        held = folds == fold
        if held.all():
            return math.inf
        found = _all_fitted(y[:, ~held], x[~held], mask, start, _RIDGES)
        errors += [_squares(y[:, held], x[held], weights) for weights in found]
    return _RIDGES[int(np.argmax(errors <= _WORTH * errors.min()))]


def _all_fitted(
    y: Matrix, x: Matrix, mask: Mask, start: Matrix, ridges: Iterable[float]
) -> list[Matrix]:
    """The weights for each λ, those of all groups."""
    groups = range(x.shape[1])
    each = [_fitted(y[g], x[:, g], mask[g], start[g], tuple(ridges)) for g in groups]
    return [np.stack(parts) for parts in zip(*each, strict=True)]


def _fitted(
    y: Matrix, x: Matrix, mask: Mask, start: Matrix, ridges: tuple[float, ...]
) -> list[Matrix]:
    """min ‖y_i − X a_i‖² + λ‖a_i − start_i‖² over what the mask leaves, filter by filter."""
    gram, slopes = x.T @ x, x.T @ (y - x @ start)
    scale = float(np.trace(gram)) / max(len(gram), 1)
    results = [start.copy() for _ in ridges]
    for i in range(start.shape[1]):
        kept = np.flatnonzero(mask[:, i])
        system = gram[np.ix_(kept, kept)]
        for ridge, result in zip(ridges, results, strict=True):
            if kept.size and scale > 0 and math.isfinite(ridge):
                regular = system + ridge * scale * np.eye(kept.size)
                result[kept, i] += np.linalg.solve(regular, slopes[kept, i])
    return results


def _error(y: Matrix, x: Matrix, weights: Matrix) -> float:
    size = float((y**2).sum())
    return _squares(y, x, weights) / size if size else 0.0


def _squares(y: Matrix, x: Matrix, weights: Matrix) -> float:
    found = np.stack([x[:, g] @ weights[g] for g in range(len(weights))])
    return float(((y - found) ** 2).sum())
