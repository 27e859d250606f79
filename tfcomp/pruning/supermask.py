"""Supermasks: masks that make a network of untrained weights work, by criteria or by training."""

from __future__ import annotations

import dataclasses
import fnmatch
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import keras
import numpy as np
import numpy.typing as npt

from tfcomp.errors import TfcompError
from tfcomp.graph import check_model, rebuild, trace
from tfcomp.pruning.hold import Hold
from tfcomp.pruning.masks import Mask, keep_mask, pruned_count
from tfcomp.pruning.schedules import check_sparsity
from tfcomp.pruning.sparsity import Kernel, find_kernels

Array = npt.NDArray[Any]
# Scores the weights of one kernel from what they were and what they became; the lowest go.
MaskCriterion = Callable[[Array, Array], Array]

CRITERIA: dict[str, MaskCriterion] = {
    "large_final": lambda initial, final: np.abs(final),
    "small_final": lambda initial, final: -np.abs(final),
    "large_init": lambda initial, final: np.abs(initial),
    "small_init": lambda initial, final: -np.abs(initial),
    "large_init_large_final": lambda initial, final: np.minimum(
        _ranks(np.abs(initial)), _ranks(np.abs(final))
    ),
    "small_init_small_final": lambda initial, final: np.minimum(
        _ranks(-np.abs(initial)), _ranks(-np.abs(final))
    ),
    "magnitude_increase": lambda initial, final: np.abs(final) - np.abs(initial),
    "movement": lambda initial, final: np.abs(final - initial),
    "large_final_same_sign": lambda initial, final: np.where(
        np.sign(initial) == np.sign(final), np.abs(final), 0
    ),
    "large_final_diff_sign": lambda initial, final: np.where(
        np.sign(initial) != np.sign(final), np.abs(final), 0
    ),
    "magnitude_increase_same_sign": lambda initial, final: np.where(
        np.sign(initial) == np.sign(final), np.abs(final) - np.abs(initial), 0
    ),
    "magnitude_increase_diff_sign": lambda initial, final: np.where(
        np.sign(initial) != np.sign(final), np.abs(final) - np.abs(initial), 0
    ),
}
KEPT = (
    "initial",
    "reinit",
    "signed_reinit",
    "reshuffle",
    "signed_reshuffle",
    "constant",
    "signed_constant",
    "movement",
)
REMOVED = ("zero", "initial", "movement", "reversed_movement", "shuffled_movement")


@dataclasses.dataclass(frozen=True, eq=False)
class Supermask:
    """What `supermask` made.

    Attributes:
        model: The copy whose kernels are masked, uncompiled.
        masks: By the kernel's name, True where weights stay.
        skipped: For each weight that was left as it is at the start, the reason.
        description: What was asked, in one line.
    """

    model: keras.Model
    masks: dict[str, Mask]
    skipped: dict[str, str]
    description: str

    @property
    def sparsity(self) -> float:
        """Removed weights over all weights of the masked kernels, in [0, 1]."""
        size = sum(mask.size for mask in self.masks.values())
        return sum(int(np.count_nonzero(~mask)) for mask in self.masks.values()) / max(size, 1)

    def hold(self) -> keras.callbacks.Callback:
        """A callback that trains the kept weights alone; those removed stay at their values.

        For `fit` of `model`, or of a copy with the same names of weights. It stands last among
        the callbacks. Unlike `PruneWeights.from_zeros()` it holds removed weights that are not
        zero, and lets kept ones that begin at zero go.
        """
        return Hold(self.masks)

    def __str__(self) -> str:
        gone = {name: int(np.count_nonzero(~mask)) for name, mask in self.masks.items()}
        total = sum(mask.size for mask in self.masks.values())
        lines = [
            f"{sum(gone.values()):,} of {total:,} weights removed: {self.sparsity:.4f} by "
            f"{self.description}"
        ]
        lines += [
            f"  {gone[name] / mask.size:.4f}  {gone[name]:>10,} of {mask.size:>10,}  {name}"
            for name, mask in self.masks.items()
        ]
        return "\n".join(
            [*lines, *(f"  left alone  {name}: {reason}" for name, reason in self.skipped.items())]
        )


def supermask(
    initial: keras.Model,
    trained: keras.Model,
    sparsity: float,
    criterion: str | MaskCriterion = "large_final",
    *,
    kept: str = "initial",
    removed: str = "zero",
    constant: float | None = None,
    overrides: Mapping[str, float | None] | None = None,
    skip: Iterable[Any] = (),
    depthwise: bool = False,
    seed: int = 0,
) -> Supermask:
    """Masks a network by how its weights changed in training, and treats what stays and goes.

    From each kernel the ⌊s·n + ½⌋ weights of lowest score are removed (ties by index). With w₀ the
    weight at the start and w that after training, the scores are

    - large_final |w|, small_final −|w|, large_init |w₀|, small_init −|w₀|;
    - large_init_large_final min(rank |w₀|, rank |w|), small_init_small_final the same of −|w₀| and
      −|w|: the paper's min(α|w|, |w₀|), where α is such that both have the same percentile;
    - magnitude_increase |w| − |w₀|, movement |w − w₀|;
    - large_final_same_sign and magnitude_increase_same_sign: 0 where sign w ≠ sign w₀;
      …_diff_sign: 0 where they are equal;
    - random.

    What stays, and in brackets with the sign of w₀:

    - initial: w₀, as in a lottery ticket;
    - reinit (signed_reinit): the initial values of the layer in random order, removed ones too;
    - reshuffle (signed_reshuffle): the initial values of the weights that stay, in random order;
    - constant (signed_constant): ±`constant`, the layer's initial signs in random order;
    - movement: w₀, but 0 for those that training moved toward zero, |w| < |w₀|.

    What goes: zero; initial, w₀; movement, 0 where |w| < |w₀| and else w₀; its controls
    reversed_movement, 0 where |w| > |w₀|, and shuffled_movement, as many zeros as movement in
    random places. All other weights, such as biases, are those of the start.

    Zhou, Lan, Liu and Yosinski 2019, "Deconstructing Lottery Tickets: Zeros, Signs, and the
    Supermask", arXiv:1905.01067. Where they say less, formulas are those of the authors' code.
    There equal scores are in random order.

    Args:
        initial: A built functional or Sequential model before training; not changed.
        trained: The same model after training; not changed.
        sparsity: s, the fraction removed of each kernel, in [0, 1).
        criterion: A name from above, or `score(initial, final)` for the arrays of a kernel, with
            finite scores of their shape.
        kept: What is done to weights that stay. Default "initial".
        removed: What is done to those that go. Default "zero".
        constant: For `kept="constant"` and `"signed_constant"`. Default: the standard deviation
            of each kernel at the start.
        overrides: By patterns (`*`, `?`, `[…]`) of layers' names or of weights' paths: another
            sparsity, or None to spare them. The first that fits counts. The paper removes at half
            the rate from the output layer.
        skip: Layers to spare, as objects or names.
        depthwise: Whether depthwise kernels are masked as well. Default False.
        seed: Of what is random. Default 0.

    Returns:
        The masked copy, with its masks.

    Raises:
        TfcompError: If an argument is not as described, or the models differ.
        UnsupportedModelError: If a model is subclassed or not built.

    Example:
        >>> before, after = (
        ...     keras.Sequential([keras.Input((1,)), keras.layers.Dense(4, use_bias=False)])
        ...     for _ in range(2))
        >>> before.set_weights([np.array([[1.0, -2.0, 3.0, 4.0]])])
        >>> after.set_weights([np.array([[2.0, 5.0, 1.0, 3.0]])])
        >>> found = supermask(before, after, 0.5, "large_final_same_sign", constant=1.0,
        ...                   kept="signed_constant")
        >>> found.model.get_weights()[0].tolist(), found.sparsity
        ([[1.0, 0.0, 0.0, 1.0]], 0.5)
    """
    scores = _criterion(criterion)
    _one_of("kept", kept, KEPT)
    _one_of("removed", removed, REMOVED)
    _check_constant(constant, kept)
    model, other = rebuild(trace(initial)), rebuild(trace(trained))
    _check_alike(model, other)
    kernels, skipped = find_kernels(model, skip=_names(skip), depthwise=depthwise)
    shares = _shares(kernels, check_sparsity("sparsity", sparsity), overrides)
    after = {id(one): two for one, two in zip(model.weights, other.weights, strict=True)}
    masks: dict[str, Mask] = {}
    for number, kernel in enumerate(kernels):
        share = shares[kernel.name]
        if share is None:
            skipped[kernel.name] = "spared by `overrides`"
            continue
        rng = np.random.default_rng([seed, number])
        start = kernel.value()
        final = keras.ops.convert_to_numpy(after[id(kernel.variable)])
        # Beyond NumPy's own types there is little that NumPy can do.
        pair = start.astype(np.float64), np.asarray(final).astype(np.float64)
        ranked = rng.permutation(start.size) if scores is None else scores(*pair)
        mask = keep_mask(_scored(ranked, kernel, criterion), pruned_count(start.size, share))
        stays = _kept(kept, *pair, mask, constant, rng)
        goes = _removed(removed, *pair, mask, rng)
        kernel.variable.assign(np.where(mask, stays, goes).astype(start.dtype))
        masks[kernel.name] = mask
    if not masks:
        raise TfcompError(f"There is no kernel to mask in the model {initial.name!r}.")
    name = criterion if isinstance(criterion, str) else getattr(criterion, "__name__", "score")
    return Supermask(model, masks, skipped, f"{name}, kept: {kept}, removed: {removed}")


def _criterion(criterion: str | MaskCriterion) -> MaskCriterion | None:
    """The function of that name; None for random."""
    if callable(criterion):
        return criterion
    _one_of("criterion", criterion, (*CRITERIA, "random"))
    return CRITERIA.get(criterion)


def _one_of(argument: str, given: Any, known: tuple[str, ...]) -> None:
    if not isinstance(given, str) or given not in known:
        raise TfcompError(f"`{argument}` must be one of {', '.join(known)}. Received: {given!r}.")


def _check_constant(constant: Any, kept: str) -> None:
    if constant is None:
        return
    number = isinstance(constant, (int, float)) and not isinstance(constant, bool)
    if not number or not 0 < constant < math.inf or not kept.endswith("constant"):
        raise TfcompError(
            '`constant` must be a number above 0, with kept="constant" or "signed_constant". '
            f"Received: constant={constant!r}, kept={kept!r}."
        )


def _names(skip: Any) -> list[str]:
    """Layers by name, since those of a copy are others."""
    items = [skip] if isinstance(skip, str) else skip
    return [item if isinstance(item, str) else item.name for item in items]


def _check_alike(model: keras.Model, other: keras.Model) -> None:
    shapes = [[tuple(weight.shape) for weight in one.weights] for one in (model, other)]
    if shapes[0] != shapes[1]:
        raise TfcompError(
            f"`trained` must have the weights of `initial`, {len(shapes[0])} of the same shapes. "
            f"Received: {len(shapes[1])}, not of the same shapes."
        )


def _shares(
    kernels: Iterable[Kernel], sparsity: float, overrides: Mapping[str, float | None] | None
) -> dict[str, float | None]:
    """What is removed of each kernel."""
    if overrides is not None and not isinstance(overrides, Mapping):
        raise TfcompError(
            '`overrides` must be a dict from patterns of names, as {"logits": 0.5}. Received: '
            f"{overrides!r}."
        )
    patterns = {
        pattern: None if value is None else check_sparsity(f"overrides[{pattern!r}]", value)
        for pattern, value in (overrides or {}).items()
    }
    shares: dict[str, float | None] = {}
    unused = set(patterns)
    for kernel in kernels:
        names = (kernel.name, *kernel.name.split("/")[:-1])
        fitting = [
            pattern
            for pattern in patterns
            if any(fnmatch.fnmatchcase(name, pattern) for name in names)
        ]
        shares[kernel.name] = patterns[fitting[0]] if fitting else sparsity
        unused -= set(fitting)
    if unused:
        raise TfcompError(
            "`overrides` expects patterns of names of layers or weights that are masked. Received: "
            f"{min(unused)!r}, which fits none of {', '.join(shares)}."
        )
    return shares


def _ranks(values: Array) -> Array:
    """0 for the smallest, 1 for the next …; among equal ones by index."""
    ranks = np.empty(values.size, np.int64)
    ranks[np.argsort(values, axis=None, kind="stable")] = np.arange(values.size)
    return ranks.reshape(values.shape)


def _scored(scores: Any, kernel: Kernel, criterion: Any) -> Array:
    array = np.asarray(scores)
    shape = tuple(kernel.variable.shape)
    if criterion == "random":
        array = array.reshape(shape)
    if array.shape != shape or not np.isfinite(array).all():
        raise TfcompError(
            f"{criterion!r} must give {kernel.name!r} finite scores of its shape, {shape}. "
            f"Received: shape {array.shape}, {np.count_nonzero(~np.isfinite(array))} not finite."
        )
    return array


def _constant(initial: Array, constant: float | None) -> float:
    return float(np.std(initial)) if constant is None else constant


def _toward_zero(initial: Array, final: Array) -> Array:
    return np.abs(final) < np.abs(initial)


def _kept(
    action: str,
    initial: Array,
    final: Array,
    mask: Mask,
    constant: float | None,
    rng: np.random.Generator,
) -> Array:
    """Values for the weights that stay; elsewhere they mean nothing."""
    kind, signs = action.removeprefix("signed_"), np.sign(initial)
    if kind == "movement":
        return np.where(_toward_zero(initial, final), 0, initial)
    if action == "signed_constant":
        return signs * _constant(initial, constant)
    if kind == "constant":
        return _permuted(signs, rng) * _constant(initial, constant)
    values = initial
    if kind == "reinit":
        values = _permuted(initial, rng)
    elif kind == "reshuffle":
        values = initial.copy()
        values[mask] = rng.permutation(initial[mask])
    return np.abs(values) * signs if action.startswith("signed_") else values


def _removed(
    action: str, initial: Array, final: Array, mask: Mask, rng: np.random.Generator
) -> Array:
    """Values for the weights that go; elsewhere they mean nothing."""
    if action == "zero":
        return np.zeros_like(initial)
    if action == "initial":
        return initial
    if action == "reversed_movement":
        return np.where(np.abs(final) > np.abs(initial), 0, initial)
    zeros = _toward_zero(initial, final)
    if action == "shuffled_movement":
        zeros[~mask] = rng.permutation(zeros[~mask])
    return np.where(zeros, 0, initial)


def _permuted(values: Array, rng: np.random.Generator) -> Array:
    permuted: Array = rng.permutation(values.reshape(-1)).reshape(values.shape)
    return permuted


@keras.saving.register_keras_serializable(package="tfcomp")
class SupermaskTrainer(keras.Model):
    """Trains a mask over weights that stay as they are, with `compile` and `fit`.

    ŵ = w·b·n/Σb,  b ~ Bernoulli(σ(m)) anew in every batch,  ∂b/∂m := σ(m)(1 − σ(m))

    One m for each of the n weights of a kernel is trained; kernels, biases and all other weights
    are frozen. The factor n/Σb is dynamic weight rescaling, through which gradients pass as well.
    As in the paper, `evaluate` and `predict` draw masks too; `result` gives an ordinary model.
    Statistics of BatchNormalization follow the data as in any training. Regularisers of frozen
    weights do not count. A trainer that was saved and loaded draws from its seed anew.

    Gradients of m are those of w·b times σ' ≤ ¼, hence small: learning rates are large, for SGD
    of the order of 100.

    Zhou, Lan, Liu and Yosinski 2019, arXiv:1905.01067, section 5.

    Args:
        model: A built functional or Sequential model at its initial weights; not changed.
        kept: "initial" (the default), the weights as they are, or "signed_constant": `constant`
            with the sign of each.
        constant: With "signed_constant". Default: the standard deviation of each kernel.
        rescale: Whether to multiply by n/Σb. Default True.
        probability: σ(m) at the start, in (0, 1). Default 0.5.
        skip: Layers whose kernels are not masked, as objects or names.
        depthwise: Whether depthwise kernels are masked as well. Default False.
        seed: Of the masks that are drawn. Default 0.
        name: Name of the trainer.
        **kwargs: Passed to `keras.Model`.

    Raises:
        TfcompError: If an argument is not as described, or there is no kernel to mask.
        UnsupportedModelError: If the model is subclassed or not built.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8)])
        >>> trainer = SupermaskTrainer(model, kept="signed_constant")
        >>> trainer.compile(keras.optimizers.SGD(10.0), "mse")
        >>> _ = trainer.fit(np.eye(4), np.ones((4, 8)), epochs=3, verbose=0)
        >>> kernel = trainer.result().get_weights()[0]
        >>> len(np.unique(kernel)) <= 3  # −α, 0, α
        True
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        kept: Literal["initial", "signed_constant"] = "initial",
        constant: float | None = None,
        rescale: bool = True,
        probability: float = 0.5,
        skip: Iterable[Any] = (),
        depthwise: bool = False,
        seed: int = 0,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        _one_of("kept", kept, ("initial", "signed_constant"))
        _check_constant(constant, kept)
        if isinstance(probability, bool) or not 0 < probability < 1:
            raise TfcompError(f"`probability` must be in (0, 1). Received: {probability!r}.")
        check_model(model)
        network = rebuild(trace(model))
        spared = _names(skip)
        kernels, skipped = find_kernels(network, skip=spared, depthwise=depthwise)
        if not kernels:
            raise TfcompError(f"There is no kernel to mask in the model {model.name!r}.")
        super().__init__(name=name or f"{model.name}_supermask", autocast=False, **kwargs)
        self.network, self.skipped = network, skipped
        self.kept, self.constant, self.rescale = kept, constant, bool(rescale)
        self.probability, self.spared, self.depthwise = float(probability), spared, depthwise
        self.seed = seed
        # The variables alone: a frozen layer would have BatchNormalization infer.
        for variable in network.trainable_variables:
            variable.trainable = False
        self.kernels = kernels
        if kept == "signed_constant":
            for kernel in kernels:
                value = kernel.value().astype(np.float64)
                kernel.variable.assign(np.sign(value) * _constant(value, constant))
        start = keras.initializers.Constant(math.log(probability / (1 - probability)))
        self.scores = [
            self.add_weight(kernel.variable.shape, start, "float32", name=f"mask_{number}")
            for number, kernel in enumerate(kernels)
        ]
        self.draws = keras.random.SeedGenerator(seed)
        self.built = True

    @property
    def sparsity(self) -> float:
        """Expected share of zeros in the masks, 1 − Σσ(m)/n over all kernels."""
        ones = sum(float(np.sum(p)) for p in self._probabilities())
        return 1 - ones / sum(kernel.size for kernel in self.kernels)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """What the network says with masks drawn now."""
        pairs = list(zip(self.kernels, self.scores, strict=True))
        mapping = [(kernel.variable, self._masked(kernel.variable, m)) for kernel, m in pairs]
        with keras.StatelessScope(state_mapping=mapping, collect_losses=True) as scope:
            outputs = self.network(inputs, training=training)
        # What layers add would be lost with the scope, as would their updates.
        for loss in scope.losses:
            self.add_loss(loss)
        masked = {id(kernel.variable) for kernel in self.kernels}
        for variable in self.network.non_trainable_variables:
            value = scope.get_current_value(variable)
            if value is not None and id(variable) not in masked:
                variable.assign(value)
        return outputs

    def _masked(self, variable: Any, score: Any) -> Any:
        ops = keras.ops
        p = ops.sigmoid(score)
        drawn = ops.cast(keras.random.uniform(p.shape, dtype=p.dtype, seed=self.draws) < p, p.dtype)
        # Straight through: p's gradient, and exactly 0 or 1.
        mask = ops.stop_gradient(drawn) + (p - ops.stop_gradient(p))
        if self.rescale:
            mask = mask * (math.prod(p.shape) / ops.maximum(ops.sum(mask), 1.0))
        return ops.cast(variable, p.dtype) * mask

    def result(
        self, masks: Literal["likeliest", "sampled", "expected"] = "likeliest", seed: int = 0
    ) -> keras.Model:
        """An ordinary model of the masked weights.

        Args:
            masks: "likeliest" (the default), 1 where σ(m) > ½; "sampled", drawn, of which the
                paper averages the accuracy of ten; or "expected", σ(m) itself, which leaves no
                zeros.
            seed: Of "sampled". Default 0.

        Returns:
            The model, uncompiled. To train its weights on, see `PruneWeights.from_zeros()`.

        Raises:
            TfcompError: If `masks` is none of these.
        """
        _one_of("masks", masks, ("likeliest", "sampled", "expected"))
        model = rebuild(trace(self.network))
        kernels = {k.name: k for k in find_kernels(model, depthwise=True)[0]}
        for number, (kernel, p) in enumerate(zip(self.kernels, self._probabilities(), strict=True)):
            mask = p
            if masks == "likeliest":
                mask = p > 0.5
            elif masks == "sampled":
                mask = np.random.default_rng([seed, number]).random(p.shape) < p
            value = kernel.value()
            scale = p.size / max(float(np.sum(mask)), 1.0) if self.rescale else 1.0
            found = np.where(mask > 0, value.astype(np.float64) * mask * scale, 0)
            kernels[kernel.name].variable.assign(found.astype(value.dtype))
        return model

    def _probabilities(self) -> list[Array]:
        scores = [np.asarray(keras.ops.convert_to_numpy(m), np.float64) for m in self.scores]
        # By tanh, which does not overflow.
        return [0.5 * (1 + np.tanh(m / 2)) for m in scores]

    def get_config(self) -> dict[str, Any]:
        """The network and the constructor's other arguments."""
        config = super().get_config()
        config.pop("autocast", None)
        return {
            **config,
            "model": keras.saving.serialize_keras_object(self.network),
            "kept": self.kept,
            "constant": self.constant,
            "rescale": self.rescale,
            "probability": self.probability,
            "skip": list(self.spared),
            "depthwise": self.depthwise,
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> SupermaskTrainer:
        """What `get_config` described, with a network of its own."""
        load = keras.saving.deserialize_keras_object
        return cls(**{**config, "model": load(config["model"], custom_objects=custom_objects)})
