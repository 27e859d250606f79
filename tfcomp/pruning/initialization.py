"""Pruning before training: which weights of a fresh network are worth training."""

from __future__ import annotations

import abc
import dataclasses
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from tfcomp.errors import TfcompError
from tfcomp.graph import rebuild, trace
from tfcomp.pruning.candidates import Candidates, Scores, check_unit, weight_scores
from tfcomp.pruning.cost import check_outputs, loss_function, told
from tfcomp.pruning.criteria import Criterion, HoldsData
from tfcomp.pruning.dependence import dependence, ones_for, restored
from tfcomp.pruning.samples import labelled_batches
from tfcomp.pruning.schedules import check_sparsity
from tfcomp.pruning.sparsity import Kernel, KernelSparsity, find_kernels, measure, total_sparsity
from tfcomp.pruning.units import Unit, Weights, remove_lowest, total_of


class _LossCriterion(HoldsData):
    """A criterion that differentiates the cost of data, in training mode.

    Args:
        data: (inputs, labels) as arrays, or a batched `tf.data.Dataset` of such pairs.
        loss: A Keras loss, its name, or `loss(labels, predictions)`. None takes the one that the
            model was compiled with.
        batch_size: Size of a batch where `data` is not a dataset. Default 128.
    """

    comparable = True

    def __init__(self, data: Any, loss: Any = None, batch_size: int = 128) -> None:
        self.data, self.batch_size = data, batch_size
        if loss is not None:
            loss_function(loss)  # refuses what is none
        self.loss = loss

    def _cost(self, model: keras.Model) -> Callable[[Any, Any], Any]:
        loss = getattr(model, "loss", None) if self.loss is None else self.loss
        if loss is None:
            raise TfcompError(
                f"{type(self).__name__} expects a loss. Received: none. Pass `loss`, or "
                "compile the model with it."
            )
        check_outputs(loss, model, type(self).__name__)
        function = loss_function(loss)

        def cost(x: Any, y: Any) -> Any:
            predictions = self._predictions(model(x, training=True))
            return tf.reduce_mean(tf.cast(function(y, predictions), tf.float32))

        return cost

    def _predictions(self, outputs: Any) -> Any:
        return outputs

    def scores(self, candidates: Candidates) -> dict[str, Scores]:
        """One for each weight, as said above."""
        model = candidates.model
        found = self._scores(candidates)
        if not candidates or any(array.any() for array in found.values()):
            return found
        # These may be idle kernels of a network that is not.
        every = Candidates.of_kernels(model, find_kernels(model, depthwise=True)[0])
        if not any(array.any() for array in self._scores(every).values()):
            raise TfcompError(
                f"{type(self).__name__} expects a cost that depends on the weights. Received: one "
                f"that gives every weight of {model.name!r} the score 0. Pass a loss of the "
                "predictions; where nothing passes the network any more, ask for less."
            )
        return found

    @abc.abstractmethod
    def _scores(self, candidates: Candidates) -> dict[str, Scores]:
        """The same, whatever they are."""

    def _gradients(self, candidates: Candidates, along: list[Any] | None = None) -> list[Any]:
        """∂C/∂w of the mean cost of all data; or ∂(vᵀ∂C/∂w)/∂w = Hv with v `along`."""
        cost = self._cost(candidates.model)
        variables = [kernel.variable.value for kernel in candidates.values()]

        def gradients(x: Any, y: Any) -> Any:
            if along is None:
                with tf.GradientTape() as tape:
                    value = cost(x, y)
                return _dense(tape.gradient(value, variables, unconnected_gradients="zero"))
            with tf.GradientTape() as outer:
                with tf.GradientTape() as tape:
                    value = cost(x, y)
                slopes = _dense(tape.gradient(value, variables, unconnected_gradients="zero"))
                product = tf.add_n(
                    [tf.reduce_sum(g * v) for g, v in zip(slopes, along, strict=True)]
                )
            return _dense(outer.gradient(product, variables, unconnected_gradients="zero"))

        step = tf.function(gradients, reduce_retracing=True)
        total = [np.zeros(kernel.shape) for kernel in candidates.values()]
        samples = 0
        with restored(candidates.model):
            user = type(self).__name__
            for x, y in labelled_batches(self.data, self.batch_size, user):
                size = len(keras.tree.flatten(x)[0])
                with told(user):
                    found = step(x, y)
                for sums, gradient in zip(total, found, strict=True):
                    sums += np.asarray(gradient, np.float64) * size
                samples += size
        return [gradient / samples for gradient in total]


def _dense(gradients: list[Any]) -> list[Any]:
    """Gradients as tensors, those of an Embedding too."""
    return [tf.convert_to_tensor(gradient) for gradient in gradients]


class SNIP(_LossCriterion):
    """score(w) = |w·∂C/∂w|: how much the cost changes with the connection, to first order.

    Lee, Ajanthan and Torr 2018, "SNIP: Single-shot Network Pruning based on Connection
    Sensitivity", arXiv:1810.02340. The paper takes one batch of 100 (MNIST) or 128 (CIFAR-10)
    samples, and networks of variance-scaled weights such as Keras makes.

    Args:
        data: (inputs, labels) as arrays, or a batched `tf.data.Dataset` of such pairs; all of it
            is used.
        loss: A Keras loss, its name, or `loss(labels, predictions)`. None (the default) takes
            the one that the model was compiled with.
        batch_size: Size of a batch where `data` is not a dataset. Default 128.

    Raises:
        TfcompError: In `scores`, if there is no loss, the data is not as described, or no weight
            of the model has a score but 0.

    Example:
        >>> from tfcomp.pruning import Candidates
        >>> layer = keras.layers.Dense(1, use_bias=False)
        >>> model = keras.Sequential([keras.Input((2,)), layer])
        >>> layer.set_weights([np.array([[1.0], [3.0]])])
        >>> criterion = SNIP((np.array([[1.0, 0.5]]), np.array([[0.0]])), "mse")
        >>> scores = criterion.scores(Candidates.of_kernels(model))  # |w·2(wᵀx)x|
        >>> [array.tolist() for array in scores.values()]
        [[[5.0], [7.5]]]
    """

    def _scores(self, candidates: Candidates) -> dict[str, Scores]:
        gradients = self._gradients(candidates)
        return {
            name: np.abs(kernel.value() * gradient)
            for (name, kernel), gradient in zip(candidates.items(), gradients, strict=True)
        }


class GraSP(_LossCriterion):
    """score(w) = w·(Hg): how much gradient flow gᵀg would be lost without the weight.

    g is ∂C/∂w and H the Hessian, over all kernels together, of predictions divided by a
    temperature. The paper ranks by −w·Hg and removes the highest, which is the same.

    Wang, Zhang and Grosse 2020, "Picking Winning Tickets Before Training by Preserving Gradient
    Flow", arXiv:2002.07376. The paper takes ten samples of each class.

    Args:
        data: (inputs, labels) as arrays, or a batched `tf.data.Dataset` of such pairs; all of it
            is used.
        loss: As in `SNIP`.
        temperature: What the predictions, which must be logits, are divided by. Default 200, as
            in the paper.
        batch_size: Size of a batch where `data` is not a dataset. Default 128.

    Raises:
        TfcompError: If `temperature` is not above 0; in `scores` as in `SNIP`.

    Example:
        >>> from tfcomp.pruning import Candidates
        >>> layer = keras.layers.Dense(1, use_bias=False)
        >>> model = keras.Sequential([keras.Input((1,)), layer])
        >>> layer.set_weights([np.array([[3.0]])])
        >>> criterion = GraSP((np.array([[1.0]]), np.array([[0.0]])), "mse", temperature=1.0)
        >>> scores = criterion.scores(Candidates.of_kernels(model))  # g = 2w, H = 2
        >>> [array.tolist() for array in scores.values()]
        [[[36.0]]]
    """

    def __init__(
        self, data: Any, loss: Any = None, temperature: float = 200.0, batch_size: int = 128
    ) -> None:
        super().__init__(data, loss, batch_size)
        if not temperature > 0:
            raise TfcompError(f"`temperature` must be above 0. Received: {temperature!r}.")
        self.temperature = float(temperature)

    def _predictions(self, outputs: Any) -> Any:
        return tf.nest.map_structure(lambda logits: logits / self.temperature, outputs)

    def _scores(self, candidates: Candidates) -> dict[str, Scores]:
        slopes = self._gradients(candidates)
        along = [
            tf.cast(slope, kernel.variable.dtype)
            for slope, kernel in zip(slopes, candidates.values(), strict=True)
        ]
        products = self._gradients(candidates, along)
        return {
            name: kernel.value() * product
            for (name, kernel), product in zip(candidates.items(), products, strict=True)
        }


@keras.saving.register_keras_serializable(package="tfcomp")
class SynFlow(Criterion):
    """score(w) = |w|·∂R/∂|w|, where R is the sum of the outputs for ones with all weights |w|.

    Without data. For networks whose activations are homogeneous, ReLU and its kin, the sum of
    scores is the same in every layer and for the weights into and out of every neuron, so that
    in many rounds no layer is emptied before all others: `prune_at_initialization` takes 100.
    The model runs in inference, BatchNormalization with its own statistics.

    In `PruneWeights` each rise of the schedule is a round: give it many, by `PolynomialDecay` or
    `IterativeSparsity`.

    Tanaka, Kunin, Yamins and Ganguli 2020, "Pruning neural networks without any data by
    iteratively conserving synaptic flow", arXiv:2006.05467.

    Raises:
        TfcompError: In `scores`, if the model's inputs have no fixed shape, or R says nothing: it
            is constant behind a softmax, and overflows in very deep networks.

    Example:
        >>> from tfcomp.pruning import Candidates
        >>> a, b = (keras.layers.Dense(units, use_bias=False) for units in (2, 1))
        >>> model = keras.Sequential([keras.Input((1,)), a, b])
        >>> a.set_weights([np.array([[1.0, -2.0]])])
        >>> b.set_weights([np.array([[3.0], [5.0]])])
        >>> [s.tolist() for s in SynFlow().scores(Candidates.of_kernels(model)).values()]
        [[[3.0, 10.0]], [[3.0], [10.0]]]
    """

    comparable = True
    rounds = 100

    def scores(self, candidates: Candidates) -> dict[str, Scores]:
        """The synaptic saliency of each weight."""
        model = candidates.model
        ones = ones_for(model)
        variables = [kernel.variable.value for kernel in candidates.values()]
        with restored(model, trainable=True):
            for variable in model.weights:
                if keras.backend.is_float_dtype(variable.dtype):
                    variable.assign(keras.ops.abs(variable))
            with tf.GradientTape() as tape:
                outputs = model(ones, training=False)
                flow = tf.add_n(
                    [tf.reduce_sum(tf.cast(part, tf.float32)) for part in tf.nest.flatten(outputs)]
                )
            gradients = _dense(tape.gradient(flow, variables, unconnected_gradients="zero"))
        scores = {
            name: np.abs(kernel.value()).astype(np.float64) * np.asarray(gradient, np.float64)
            for (name, kernel), gradient in zip(candidates.items(), gradients, strict=True)
        }
        most = max((float(array.max()) for array in scores.values() if array.size), default=0.0)
        if not np.isfinite(most) or most <= 0:
            raise TfcompError(
                f"SynFlow expects outputs that grow with the weights. Received: scores of at most "
                f"{most:g} in {model.name!r}. "
                + (
                    "A softmax at the end gives 0: take logits. So does a network that nothing "
                    "passes any more: ask for less."
                    if most == 0
                    else "A very deep network overflows."
                )
            )
        return scores


@dataclasses.dataclass(frozen=True)
class InitializationReport:
    """What `prune_at_initialization` did.

    Attributes:
        kernels: The zeros of each pruned kernel.
        skipped: For each weight that was left alone, the reason.
        asked: The sparsity asked for.
        criterion: What gave the weights their scores.
        rounds: In how many rounds.
        collapsed: Kernels of which no weight is left: nothing passes them, and the network
            cannot learn (layer collapse).
        disconnected: Whether no output depends on any input: the same without an empty kernel.
            It is looked for where inputs are of a fixed shape and of floating-point numbers; else
            False.
        removed_layers: Kernels that the unit `Layers()` has removed, on purpose.
    """

    kernels: tuple[KernelSparsity, ...]
    skipped: dict[str, str]
    asked: float
    criterion: str
    rounds: int
    collapsed: tuple[str, ...]
    disconnected: bool = False
    removed_layers: tuple[str, ...] = ()

    @property
    def sparsity(self) -> float:
        """Zeros over weights of all the pruned kernels together, in [0, 1]."""
        return total_sparsity(self.kernels)

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return {**dataclasses.asdict(self), "sparsity": self.sparsity}

    def __str__(self) -> str:
        zeros, size = sum(r.zeros for r in self.kernels), sum(r.size for r in self.kernels)
        lines = [
            f"{zeros:,} of {size:,} weights are zero: {self.sparsity:.4f} (asked "
            f"{self.asked:.4f}) by {self.criterion} in {self.rounds} rounds"
        ]
        lines += ["  collapsed: no output depends on any input"] if self.disconnected else []
        lines += [
            f"  {row.sparsity:.4f}  {row.zeros:>10,} of {row.size:>10,}  {row.name}"
            + ("  collapsed: nothing is left" if row.name in self.collapsed else "")
            + ("  removed as a whole" if row.name in self.removed_layers else "")
            for row in self.kernels
        ]
        lines += [f"  left alone  {name}: {reason}" for name, reason in self.skipped.items()]
        return "\n".join(lines)


def prune_at_initialization(
    model: keras.Model,
    sparsity: float,
    criterion: Criterion,
    *,
    scope: Literal["local", "global"] = "global",
    rounds: int | None = None,
    unit: Unit | None = None,
    skip: Iterable[Any] = (),
    depthwise: bool = False,
) -> tuple[keras.Model, InitializationReport]:
    """Sets the weights of lowest score to zero in a copy of a model that is not yet trained.

    In round r of R the ⌊(1 − (1 − s)^(r/R))·n + ½⌋ lowest scores are zero, given anew with the
    zeros of the rounds before; with another `unit` whole units, as in `PruneWeights`. Train the
    copy with `PruneWeights.from_zeros()`, which keeps them.

    Args:
        model: A built functional or Sequential model.
        sparsity: s, the fraction of weights to be zero, in [0, 1).
        criterion: `SNIP`, `GraSP`, `SynFlow`, `RandomWeights`, `Magnitude`, any other that fits the
            unit, or one of your own.
        scope: "global" (the default, as the papers have it) compares all weights; "local" those
            of one kernel.
        rounds: R. Default: the criterion's attribute `rounds`, 100 for `SynFlow`, else 1.
        unit: What is removed together, as in `PruneWeights`. Default `Weights()`.
        skip: Layers to spare, as objects or names.
        depthwise: Whether depthwise kernels are pruned as well. Default False.

    Returns:
        The copy, uncompiled, and a report; collapsed layers are in it, and warned of, as is a
        network of which no output depends on any input.

    Raises:
        TfcompError: If an argument is not as described, or a score is not finite.
        UnsupportedModelError: If the model is subclassed or not built.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(10)])
        >>> from tfcomp.pruning import RandomWeights
        >>> pruned, report = prune_at_initialization(model, 0.75, RandomWeights())
        >>> report.sparsity, int((pruned.get_weights()[0] == 0).sum())
        (0.75, 60)
    """
    sparsity = check_sparsity("sparsity", sparsity)
    if scope not in ("local", "global"):
        raise TfcompError(f'`scope` must be "local" or "global". Received: {scope!r}.')
    if not isinstance(criterion, Criterion):
        raise TfcompError(
            f"`criterion` must be a Criterion, SNIP(data) for one. Received: {criterion!r}."
        )
    total = _checked_rounds(rounds, criterion)
    part = _checked_unit(unit, sparsity, scope)
    if criterion.of_channels:
        check_unit(criterion, part)
    pruned = rebuild(trace(model))
    kernels, skipped = _kernels(pruned, part, skip, depthwise)
    together = [list(kernels)] if scope == "global" else [[kernel] for kernel in kernels]
    for done in range(1, total + 1):
        share = sparsity if done == total else 1 - (1 - sparsity) ** (done / total)
        scores = _scores(criterion, pruned, kernels, model, part, scope)
        found = dict(zip(kernels, scores, strict=True))
        for group in together:
            _remove(part, group, [found[kernel] for kernel in group], share)
    emptied = tuple(kernel.name for kernel in kernels if kernel.zeros() == kernel.size)
    report = InitializationReport(
        kernels=measure(kernels),
        skipped=skipped,
        asked=sparsity,
        criterion=repr(criterion),
        rounds=total,
        collapsed=() if part.whole else emptied,
        removed_layers=emptied if part.whole else (),
        disconnected=dependence(pruned) == 0 and dependence(model) > 0,
    )
    if collapse := _collapse(report, scope):
        warnings.warn(f"Layer collapse: {collapse}", stacklevel=2)
    return pruned, report


def _checked_rounds(rounds: int | None, criterion: Criterion) -> int:
    total = rounds if rounds is not None else getattr(criterion, "rounds", 1)
    if isinstance(total, bool) or not isinstance(total, int) or total < 1:
        raise TfcompError(f"`rounds` must be a whole number of at least 1. Received: {rounds!r}.")
    return total


def _kernels(
    pruned: keras.Model, unit: Unit, skip: Iterable[Any], depthwise: bool
) -> tuple[tuple[Kernel, ...], dict[str, str]]:
    """The kernels to prune, and why the others are left."""
    kernels, skipped = find_kernels(pruned, skip=skip, depthwise=depthwise)
    for kernel in kernels:
        unit.check(kernel)
        if reason := unit.why_idle(kernel):
            skipped[kernel.name] = reason
    kernels = tuple(kernel for kernel in kernels if kernel.name not in skipped)
    if not kernels:
        reasons = "; ".join(f"{name} is {reason}" for name, reason in skipped.items())
        raise TfcompError(f"There is no kernel to prune in the model {pruned.name!r}: {reasons}.")
    return kernels, skipped


def _collapse(report: InitializationReport, scope: str) -> str:
    """What has collapsed and what to do, if anything has."""
    if report.collapsed:
        return f"no weight is left in {', '.join(report.collapsed)}. Ask for less, or take " + (
            'scope="local" or SynFlow.' if scope == "global" else "SynFlow."
        )
    if report.disconnected:
        return "no way leads from an input to an output any more. Ask for less, or take SynFlow."
    return ""


def _checked_unit(unit: Unit | None, sparsity: float, scope: str) -> Unit:
    part = Weights() if unit is None else unit
    if not isinstance(part, Unit):
        raise TfcompError(f"`unit` must be a tfcomp.pruning.Unit. Received: {unit!r}.")
    part.check_sparsity(sparsity)
    if part.whole and scope != "global":
        raise TfcompError(f'{part!r} expects scope="global". Received: scope={scope!r}.')
    return part


def _remove(unit: Unit, group: list[Kernel], scores: list[Scores], share: float) -> None:
    values = [kernel.value() for kernel in group]
    wanted = unit.target(total_of(unit, group), share)
    masks = remove_lowest(unit, group, [v != 0 for v in values], scores, wanted)
    for kernel, value, mask in zip(group, values, masks, strict=True):
        kernel.variable.assign(np.where(mask, value, value.dtype.type(0)))


def _scores(
    criterion: Criterion,
    pruned: keras.Model,
    kernels: Sequence[Kernel],
    model: keras.Model,
    unit: Unit,
    scope: str,
) -> list[Scores]:
    if isinstance(criterion, _LossCriterion) and criterion.loss is None:
        # The copy is not compiled.
        pruned.loss = getattr(model, "loss", None)
    masks = [kernel.value() != 0 for kernel in kernels] if scope == "global" else None
    return weight_scores(criterion, pruned, kernels, [unit] * len(kernels), masks)
