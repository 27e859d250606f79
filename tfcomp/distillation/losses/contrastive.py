"""Losses that tell a sample's own pair of features from the pairs of other samples."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, ClassVar

import keras
import numpy as np
import tensorflow as tf

from tfcomp.distillation.losses.arguments import choice
from tfcomp.distillation.losses.feature_loss import EmbeddingLoss
from tfcomp.distillation.losses.randomness import of_replica
from tfcomp.distillation.losses.relation import Variant, flat_size, rows, unit
from tfcomp.errors import TfcompError

# Negatives of the paper.
_NEGATIVES = 16384
# Integers below this, modulo the number of samples, are uniform to one part in a thousand.
_RANDOM_RANGE = 2**31 - 1
_MAX_SAMPLES = 2**21
# All products with a bank are one matrix product. Above this many times more than are wanted, the
# wanted ones alone are cheaper, although their rows must be gathered first.
_SPARSE = 64
_OUTSIDE = re.compile(r"An index is outside of the memory bank: .*? given to with_indices\.")


@keras.saving.register_keras_serializable(package="tfcomp")
class ContrastiveRepresentationDistillation(EmbeddingLoss):
    """The student's embedding of a sample is recognised among those of others by the teacher's.

    Σ over both sides of −log h(x⁺) − Σ_k log(1 − h(x_k)), h(x) = P / (P + K/N), P = exp(x/τ)/Z

    Linear heads lead both models' features to unit vectors of `dimensions` numbers. On the
    student's side x⁺ is the product of its vector with the teacher's of the same sample, x_k
    those with the teacher's of K negatives; on the teacher's side the roles are changed. The
    other model's vectors come from memory banks of all N samples, in which a sample's vector v
    becomes unit(m·v + (1−m)·v_new) after each step that saw it. By `variant`, Z is

    - `"code"`: N times the mean of exp(x/τ) over the first batch, on either side, as in the
      authors' release;
    - `"paper"`: 1.

    Negatives are drawn with replacement: without `labels` uniformly from all samples, which is
    the noise of the formula, with `labels` uniformly from samples of other classes.

    Heads, banks, Z and the state of the random numbers are saved with the `Distiller`, so that a
    training that was interrupted goes on to the same weights. There is one value per sample, so
    that sample weights count. Under several replicas each draws negatives of its own for its
    share of the batch, and all banks get the vectors of all replicas; the noise being another,
    two replicas do not make the update that one makes. Of a sample that stands twice in a batch
    one vector is kept.

    Args:
        samples: N, the number of samples in the training set, at most 2²¹. Their indices must
            come with the data, from `with_indices(dataset)`.
        negatives: K. None for the paper's 16,384, or for N where that is less.
        labels: The class of each sample, integers of shape (samples,), in the order of the
            indices. None: negatives are of any class.
        dimensions: Width of the embeddings.
        temperature: τ > 0, no unit. The paper has 0.1, its release 0.07.
        momentum: m, in [0, 1).
        variant: See above.
        seed: Of the negatives; None: made from Keras's global seed.
        teacher_layer: Name or index of a layer; by default what the last dense layer reads.
        student_layer: The student's.
        name: Name of its metric.

    Raises:
        TfcompError: If an argument is out of range; in training, if there is no index, or one
            of N or more.

    Example:
        >>> import keras, numpy as np, tensorflow as tf
        >>> from tfcomp.distillation import Distiller, with_indices
        >>> def net(width):
        ...     layers = [keras.layers.Dense(width, "relu"), keras.layers.Dense(3)]
        ...     return keras.Sequential([keras.Input((4,)), *layers])
        >>> x, y = np.random.rand(64, 4), np.random.randint(3, size=64)
        >>> loss = ContrastiveRepresentationDistillation(samples=64, negatives=16, labels=y)
        >>> distiller = Distiller(net(32), net(8), loss, student_loss_weight=0.0)
        >>> distiller.compile("adam")
        >>> data = with_indices(tf.data.Dataset.from_tensor_slices((x, y))).shuffle(64).batch(8)
        >>> sorted(distiller.fit(data, verbose=0).history)
        ['distillation_loss', 'loss', 'student_loss']

    Reference:
        Tian, Krishnan, Isola (2019), Contrastive Representation Distillation, arXiv:1910.10699.
        The weight in its release is 0.8.
    """

    needs_step: ClassVar[bool] = True

    def __init__(
        self,
        samples: int,
        negatives: int | None = None,
        labels: Sequence[int] | np.ndarray[Any, Any] | None = None,
        dimensions: int = 128,
        temperature: float = 0.07,
        momentum: float = 0.5,
        variant: Variant = "code",
        seed: int | None = None,
        teacher_layer: Any = None,
        student_layer: Any = None,
        name: str | None = None,
    ) -> None:
        super().__init__(teacher_layer, student_layer, name)
        self.samples = _integer("samples", samples, 2, _MAX_SAMPLES)
        self.negatives = (
            None if negatives is None else _integer("negatives", negatives, 1, self.samples)
        )
        self.labels = None if labels is None else _classes(labels, self.samples)
        self.dimensions = _integer("dimensions", dimensions, 1, 2**16)
        if not (math.isfinite(temperature) and temperature > 0):
            raise TfcompError(f"`temperature` must be a number above 0. Received: {temperature!r}.")
        if not 0 <= momentum < 1:
            raise TfcompError(f"`momentum` must be in [0, 1). Received: {momentum!r}.")
        self.temperature = float(temperature)
        self.momentum = float(momentum)
        self.variant = choice("variant", variant, Variant)
        self.seed = None if seed is None else _integer("seed", seed, 0, _RANDOM_RANGE - 1)

    def build(self, teacher_shapes: Any, student_shapes: Any) -> None:
        """Makes heads and banks."""
        label = self.name or "contrastive_representation_distillation"
        memory = _Memory(
            samples=self.samples,
            negatives=self.negatives or min(_NEGATIVES, self.samples),
            classes=self.labels,
            dimensions=self.dimensions,
            temperature=self.temperature,
            momentum=self.momentum,
            estimates=self.variant == "code",
            seed=self.seed,
            name=f"{label}_memory",
        )
        memory.make([flat_size(teacher_shapes), flat_size(student_shapes)])
        self.layers = (memory,)

    def per_sample(self, teacher_outputs: Any, student_outputs: Any, step: Any = None) -> Any:
        """Values of shape (batch,); puts the batch into the banks."""
        if step is None or step.index is None:
            raise TfcompError(
                f"{type(self).__name__} must know which sample is which: expected data from "
                "with_indices(dataset), received none. Call it before the dataset is shuffled."
            )
        return self.layers[0]([rows(teacher_outputs), rows(student_outputs)], step.index)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "samples": self.samples,
            "negatives": self.negatives,
            "labels": None if self.labels is None else self.labels.tolist(),
            "dimensions": self.dimensions,
            "temperature": self.temperature,
            "momentum": self.momentum,
            "variant": self.variant,
            "seed": self.seed,
        }


class _Memory(keras.layers.Layer):
    """Heads, banks and draws; everywhere the teacher comes first and the student second."""

    def __init__(
        self,
        samples: int,
        negatives: int,
        classes: np.ndarray[Any, Any] | None,
        dimensions: int,
        temperature: float,
        momentum: float,
        estimates: bool,
        seed: int | None,
        name: str,
    ) -> None:
        # Sums of exponentials need more than half precision, whatever the policy.
        super().__init__(name=name, dtype="float32")
        self.samples = samples
        self.negatives = negatives
        self.temperature = temperature
        self.momentum = momentum
        self.estimates = estimates
        self.dimensions = dimensions
        self.others = None if classes is None else _Others(classes)
        self.heads = [
            keras.layers.Dense(dimensions, dtype="float32", name=f"{role}_head")
            for role in ("teacher", "student")
        ]
        self.seed = seed

    def make(self, widths: Sequence[int]) -> None:
        """The weights, for features of these widths."""
        # The release's: components as large as those of unit vectors.
        bound = math.sqrt(3.0 / self.dimensions)
        for head, width in zip(self.heads, widths, strict=True):
            head.build((None, width))
        self.banks = [
            self.add_weight(
                shape=(self.samples, self.dimensions),
                initializer=keras.initializers.RandomUniform(-bound, bound),
                trainable=False,
                autocast=False,
                name=f"{role}_bank",
            )
            for role in ("teacher", "student")
        ]
        # log Z of either side; what is not known yet is NaN.
        unknown = math.nan if self.estimates else 0.0
        self.log_normalisers = self.add_weight(
            shape=(2,),
            initializer=keras.initializers.Constant(unknown),
            trainable=False,
            name="log_normalisers",
        )
        seed = keras.random.randint((), 0, _RANDOM_RANGE) if self.seed is None else self.seed
        # A weight, because Keras does not save the state of a SeedGenerator.
        self.random = self.add_weight(
            shape=(2,), initializer="zeros", trainable=False, dtype="int32", name="random"
        )
        self.random.assign([int(seed), 0])
        self.built = True

    def call(self, features: Any, index: Any) -> Any:
        """Values of shape (batch,) for features [teacher's, student's] of the samples `index`."""
        ops = keras.ops
        index = self._checked(index)
        vectors = [unit(head(one)) for head, one in zip(self.heads, features, strict=True)]
        chosen = ops.concatenate([index[:, None], self._draw(index)], axis=1)
        # The teacher's vectors are compared with the student's bank, and the other way round.
        scores = [
            self._products(vector, bank, chosen) / self.temperature
            for vector, bank in zip(vectors, reversed(self.banks), strict=True)
        ]
        normalisers = self._normalisers(scores)
        odds = math.log(self.negatives / self.samples)
        values = [
            _noise_contrast(score - normalisers[side] - odds) for side, score in enumerate(scores)
        ]
        self._remember(index, vectors)
        return values[0] + values[1]

    def _checked(self, index: Any) -> Any:
        index = keras.ops.cast(keras.ops.reshape(index, (-1,)), "int32")
        message = (
            f"An index is outside of the memory bank: expected 0 to {self.samples - 1}, received "
            "others. Make `samples` the number of samples given to with_indices."
        )
        checks = [
            tf.debugging.assert_non_negative(index, message),
            tf.debugging.assert_less(index, self.samples, message),
        ]
        # In eager execution there is nothing to wait for.
        with tf.control_dependencies([check for check in checks if check is not None]):
            return tf.identity(index)

    def _draw(self, index: Any) -> Any:
        """Indices of the negatives, (batch, K)."""
        draws = tf.random.stateless_uniform(
            (keras.ops.shape(index)[0], self.negatives),
            seed=of_replica(keras.ops.convert_to_tensor(self.random)),
            maxval=_RANDOM_RANGE,
            dtype="int32",
        )
        self.random.assign_add([0, 1])
        if self.others is None:
            return draws % self.samples
        return self.others.pick(index, draws)

    def _products(self, vectors: Any, bank: Any, chosen: Any) -> Any:
        """vectors[b] · bank[chosen[b, k]]."""
        ops = keras.ops
        if self.samples <= _SPARSE * (self.negatives + 1):
            products = ops.matmul(vectors, ops.transpose(bank))
            return tf.gather(products, chosen, batch_dims=1)
        return ops.einsum("bd,bkd->bk", vectors, ops.take(bank, chosen, axis=0))

    def _normalisers(self, scores: Sequence[Any]) -> Any:
        """log Z of either side, which the first batch sets."""
        ops = keras.ops
        known = ops.convert_to_tensor(self.log_normalisers)
        if not self.estimates:
            return known
        sums = [tf.reduce_logsumexp(ops.stop_gradient(score)) for score in scores]
        count = ops.log(ops.cast(ops.size(scores[0]), "float32"))
        totals = tf.reduce_logsumexp(_from_replicas(ops.stack([*sums, count])[None]), axis=0)
        first = totals[:2] - totals[2] + math.log(self.samples)
        # A batch without samples tells nothing.
        first = ops.where(ops.logical_and(ops.isnan(known), totals[2] >= 0.0), first, known)
        self.log_normalisers.assign(first)
        return first

    def _remember(self, index: Any, vectors: Sequence[Any]) -> None:
        """Moves the banks' vectors of these samples; on each replica those of all replicas."""
        ops = keras.ops
        index = _from_replicas(index)
        for bank, vector in zip(self.banks, vectors, strict=True):
            old = ops.take(bank, index, axis=0)
            new = _from_replicas(ops.stop_gradient(vector))
            new = unit(self.momentum * old + (1.0 - self.momentum) * new)
            # In place: a bank may be a thousand times larger than a batch.
            bank.value.scatter_update(tf.IndexedSlices(new, index))


class _Others:
    """Uniform draws among the samples of other classes."""

    def __init__(self, classes: np.ndarray[Any, Any]) -> None:
        _, of_sample, counts = np.unique(classes, return_inverse=True, return_counts=True)
        # Sorted by class, a class is one range, to be left out.
        self.order = np.argsort(of_sample, kind="stable").astype("int32")
        starts = np.cumsum(counts) - counts
        self.start = starts[of_sample].astype("int32")
        self.count = counts[of_sample].astype("int32")

    def pick(self, index: Any, draws: Any) -> Any:
        """For each row of random integers samples that are not of the class of its `index`."""
        ops = keras.ops
        start, count = (
            ops.take(ops.convert_to_tensor(one), index, axis=0)[:, None]
            for one in (self.start, self.count)
        )
        place = draws % (len(self.order) - count)
        place = ops.where(place < start, place, place + count)
        return ops.take(ops.convert_to_tensor(self.order), place, axis=0)


def told_of_index(error: Exception) -> str | None:
    """The line that `_Memory` has put among TensorFlow's about an index, if it is that error."""
    found = _OUTSIDE.search(str(error))
    return found and found.group()


def _noise_contrast(log_odds: Any) -> Any:
    """−log h of the first column and −log(1−h) of the others, from log(h/(1−h))."""
    ops = keras.ops
    return ops.softplus(-log_odds[:, 0]) + ops.sum(ops.softplus(log_odds[:, 1:]), axis=1)


def _from_replicas(values: Any) -> Any:
    """The rows of all replicas, on each."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return values
    return context.all_gather(values, axis=0)


def _integer(argument: str, value: Any, least: int, most: int) -> int:
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or not least <= value <= most:
        raise TfcompError(
            f"`{argument}` must be an integer from {least} to {most}. Received: {value!r}."
        )
    return int(value)


def _classes(labels: Any, samples: int) -> np.ndarray[Any, Any]:
    classes = np.asarray(labels)
    if classes.shape != (samples,) or classes.dtype.kind not in "iu":
        raise TfcompError(
            f"`labels` must be the class of each sample: expected integers of shape ({samples},), "
            f"received {classes.dtype} of shape {classes.shape}."
        )
    if len(np.unique(classes)) < 2:
        raise TfcompError("`labels` must be of two classes or more. Received: one class.")
    return classes
