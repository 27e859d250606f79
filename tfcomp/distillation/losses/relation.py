"""Losses on relations: how the samples of a batch lie to each other."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import keras

from tfcomp.distillation.losses.arguments import choice, weight
from tfcomp.distillation.losses.feature_loss import EmbeddingLoss
from tfcomp.distillation.losses.regressor import make_regressor
from tfcomp.errors import TfcompError

Congruence = Literal["paper", "repdistiller"]
Variant = Literal["code", "paper"]

# Distance below which two points are one: what rounding leaves of none has no direction.
_COINCIDE = 1e-6
# Length below which a vector counts as 0.
_ZERO = 1e-12
# The kernel of opposite vectors would be 0, and its logarithm infinite.
_MIN_KERNEL = 1e-7
# Width of the embeddings in RepDistiller's correlation loss.
_REPDISTILLER_WIDTH = 128


@keras.saving.register_keras_serializable(package="tfcomp")
class SimilarityPreserving(EmbeddingLoss):
    """Samples that are alike to the teacher become alike to the student.

    ‖G_t − G_s‖²_F / N² for each pair of layers, summed over the pairs, where G = X·Xᵀ with each
    row divided by its L2 norm, and X holds the N samples' features, flattened, as rows.

    Layers may differ in width, resolution and rank. By default the embeddings are compared, which
    are what the last dense layers read. The value belongs to the batch: sample weights are
    refused, and under several replicas the relation is that within each replica's share.

    Args:
        teacher_layer: Name or index of a layer, or a list of them.
        student_layer: The student's, as many.
        name: Name of its metric.

    Raises:
        TfcompError: At construction of the `Distiller`, if layers are not found.

    Example:
        >>> import keras
        >>> teacher, student = keras.ops.eye(2), keras.ops.ones((2, 3))
        >>> print(f"{float(SimilarityPreserving().compute_loss([teacher], [student])):.4f}")
        0.2929

    Reference:
        Tung, Mori (2019), Similarity-Preserving Knowledge Distillation, arXiv:1907.09682. The
        weight in RepDistiller is 3000.
    """

    several: ClassVar[bool] = True
    batch_relational: ClassVar[bool] = True

    def compute_loss(self, teacher_outputs: Any, student_outputs: Any, **kwargs: Any) -> Any:
        """The scalar of the batch."""
        values = [
            keras.ops.mean(keras.ops.square(_similarities(t) - _similarities(s)))
            for t, s in zip(teacher_outputs, student_outputs, strict=True)
        ]
        return sum(values[1:], start=values[0])


@keras.saving.register_keras_serializable(package="tfcomp")
class CorrelationCongruence(EmbeddingLoss):
    """The student's samples correlate as the teacher's, by a Gaussian kernel.

    By `variant`, with f the embeddings of the N samples, the student's led to the teacher's shape
    by a regressor where the shapes differ:

    - `"paper"`: ‖K(f_t) − K(f_s)‖²_F / N² + w·Σᵢ‖f_t,i − f_s,i‖² / N, where f is unit,
      K_ij = exp(−2γ)·Σ_p (2γ)^p/p!·(f_i·f_j)^p, p from 0 to `order`: the Taylor series of
      exp(−γ‖f_i − f_j‖²), and w is `instance_weight`.
    - `"repdistiller"`: what the RepDistiller benchmark calls CC, Σᵢ |Δᵢ|·|Δᵢ₊₁| / (N−1) with
      Δᵢ = f_t,i − f_s,i, where f are dense embeddings of 128 numbers learnt for both models. It
      has neither kernel nor instance term, and lies at 0 where both embeddings vanish.

    By default the embeddings are what the last dense layers read. The value belongs to the batch:
    sample weights are refused, and under several replicas the relation is that within each
    replica's share.

    Args:
        gamma: γ > 0 of the kernel.
        order: Last power of the series, ≥ 1.
        instance_weight: w ≥ 0. The paper has such a term in metric learning; in classification
            its instance term is `KnowledgeDistillation`, given beside this loss.
        variant: See above. γ, `order` and w are the paper's alone.
        teacher_layer: Name or index of a layer.
        student_layer: The student's.
        name: Name of its metric.

    Raises:
        TfcompError: If an argument is out of range; at construction of the `Distiller`, if no
            regressor exists.

    Example:
        >>> import keras
        >>> loss = CorrelationCongruence(instance_weight=0.0)
        >>> teacher, student = keras.ops.eye(2), keras.ops.ones((2, 2))
        >>> print(f"{float(loss.compute_loss(teacher, student)):.4f}")
        0.1266

    Reference:
        Peng, Jin, Liu, Zhou, Wu, Liu, Li, Zhang (2019), Correlation Congruence for Knowledge
        Distillation, arXiv:1904.01802. RepDistiller's weight for its variant is 0.02.
    """

    batch_relational: ClassVar[bool] = True

    def __init__(
        self,
        gamma: float = 0.4,
        order: int = 2,
        instance_weight: float = 1.0,
        variant: Congruence = "paper",
        teacher_layer: Any = None,
        student_layer: Any = None,
        name: str | None = None,
    ) -> None:
        super().__init__(teacher_layer, student_layer, name)
        if not (_is_number(gamma) and gamma > 0):
            raise TfcompError(f"`gamma` must be a number above 0. Received: {gamma!r}.")
        if isinstance(order, bool) or not isinstance(order, int) or order < 1:
            raise TfcompError(f"`order` must be an integer of at least 1. Received: {order!r}.")
        self.gamma = float(gamma)
        self.order = order
        self.instance_weight = weight("instance_weight", instance_weight)
        self.variant = choice("variant", variant, Congruence)

    def build(self, teacher_shapes: Any, student_shapes: Any) -> None:
        """Makes the regressor, or RepDistiller's two embeddings."""
        label = self.name or "correlation_congruence"
        if self.variant == "repdistiller":
            self.layers = tuple(
                make_regressor(
                    (None, flat_size(shape)), (None, _REPDISTILLER_WIDTH), f"{label}_{role}"
                )
                for role, shape in [("teacher", teacher_shapes), ("student", student_shapes)]
            )
        elif tuple(teacher_shapes[1:]) != tuple(student_shapes[1:]):
            regressor = make_regressor(student_shapes, teacher_shapes, f"{label}_regressor")
            self.layers = (regressor,)

    def compute_loss(self, teacher_outputs: Any, student_outputs: Any, **kwargs: Any) -> Any:
        """The scalar of the batch."""
        ops = keras.ops
        if self.variant == "repdistiller":
            return self._neighbours(teacher_outputs, student_outputs)
        if self.layers:
            student_outputs = self.layers[0](student_outputs)
        teacher, student = unit(rows(teacher_outputs)), unit(rows(student_outputs))
        value = ops.mean(ops.square(self._kernel(teacher) - self._kernel(student)))
        instances = ops.mean(ops.sum(ops.square(teacher - student), axis=-1))
        return value + self.instance_weight * instances

    def _kernel(self, embeddings: Any) -> Any:
        """The series by Horner's rule."""
        cosines = keras.ops.matmul(embeddings, keras.ops.transpose(embeddings))
        factors = [(2 * self.gamma) ** p / math.factorial(p) for p in range(self.order + 1)]
        series = factors[-1] * cosines
        for factor in reversed(factors[1:-1]):
            series = (series + factor) * cosines
        return math.exp(-2 * self.gamma) * (series + factors[0])

    def _neighbours(self, teacher: Any, student: Any) -> Any:
        ops = keras.ops
        embed_teacher, embed_student = self.layers
        of_teacher = ops.cast(embed_teacher(rows(teacher)), "float32")
        gap = ops.abs(of_teacher - ops.cast(embed_student(rows(student)), "float32"))
        # One sample alone has no neighbour.
        neighbours = ops.maximum(ops.cast(ops.shape(gap)[0] - 1, gap.dtype), 1.0)
        return ops.sum(gap[:-1] * gap[1:]) / neighbours

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "gamma": self.gamma,
            "order": self.order,
            "instance_weight": self.instance_weight,
            "variant": self.variant,
        }


@keras.saving.register_keras_serializable(package="tfcomp")
class RelationalKD(EmbeddingLoss):
    """The student's points lie to each other as the teacher's: distances and angles.

    w_d·mean_ij h(d_t,ij, d_s,ij) + w_a·mean_ijk h(a_t,ijk, a_s,ijk)

    d_ij is the distance of samples i and j divided by the mean distance of two different samples;
    a_ijk is the cosine of the angle at j in the triangle ijk; h is Huber's loss with δ = 1. The
    relation is the same for moved, turned and scaled points. By `variant`, the means run over

    - `"code"`: all N² pairs and N³ triples, as in the authors' release;
    - `"paper"`: pairs and triples of different samples. The paper writes sums; these are divided
      by the number of terms, so that weights hold for batches of every size.

    Of points closer than 1e-6 the direction counts as 0, and so does its gradient. Angles need
    memory of N³ numbers and N² vectors. By default the embeddings are compared, which are what
    the last dense layers read. The value belongs to the batch: sample weights are refused, and
    under several replicas the relation is that within each replica's share.

    Args:
        distance_weight: w_d ≥ 0.
        angle_weight: w_a ≥ 0.
        variant: See above.
        teacher_layer: Name or index of a layer.
        student_layer: The student's, of any width.
        name: Name of its metric.

    Raises:
        TfcompError: If an argument is out of range.

    Example:
        >>> import keras
        >>> triangle = keras.ops.convert_to_tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
        >>> line = keras.ops.convert_to_tensor([[0.0], [3.0], [4.0]])
        >>> loss = RelationalKD()
        >>> float(loss.compute_loss(triangle, 2.0 * triangle))
        0.0
        >>> print(f"{float(loss.compute_loss(triangle, line)):.4f}")
        9.2118

    Reference:
        Park, Kim, Lu, Cho (2019), Relational Knowledge Distillation, arXiv:1904.05068.
    """

    batch_relational: ClassVar[bool] = True

    def __init__(
        self,
        distance_weight: float = 25.0,
        angle_weight: float = 50.0,
        variant: Variant = "code",
        teacher_layer: Any = None,
        student_layer: Any = None,
        name: str | None = None,
    ) -> None:
        super().__init__(teacher_layer, student_layer, name)
        self.distance_weight = weight("distance_weight", distance_weight)
        self.angle_weight = weight("angle_weight", angle_weight)
        self.variant = choice("variant", variant, Variant)

    def compute_loss(self, teacher_outputs: Any, student_outputs: Any, **kwargs: Any) -> Any:
        """The scalar of the batch."""
        ops = keras.ops
        of_teacher, of_student = _geometry(teacher_outputs), _geometry(student_outputs)
        different = 1.0 - ops.eye(ops.shape(of_student[0])[0], dtype=of_student[0].dtype)
        pairs = ops.ones_like(different) if self.variant == "code" else different
        distances = [_over_mean(lengths, different) for lengths, _ in (of_teacher, of_student)]
        value = self.distance_weight * _mean(_huber(distances[0] - distances[1]), pairs)
        if self.angle_weight:
            # angles[j, i, k], with j ≠ i, j ≠ k and i ≠ k where samples must differ.
            angles = [ops.matmul(e, ops.swapaxes(e, 1, 2)) for _, e in (of_teacher, of_student)]
            triples = pairs[:, :, None] * pairs[:, None, :] * pairs[None, :, :]
            value += self.angle_weight * _mean(_huber(angles[0] - angles[1]), triples)
        return value

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "distance_weight": self.distance_weight,
            "angle_weight": self.angle_weight,
            "variant": self.variant,
        }


@keras.saving.register_keras_serializable(package="tfcomp")
class ProbabilisticKnowledgeTransfer(EmbeddingLoss):
    """The student's samples choose their neighbours with the teacher's probabilities.

    p_ij = k_ij / Σ_j k_ij with the kernel k_ij = (1 + cos(x_i, x_j))/2, at least 1e-7, and KL_i =
    Σ_j p_t,ij·log(p_t,ij / p_s,ij). By `variant`:

    - `"code"`: Σᵢ KL_i / N², where a sample is among its own neighbours, as in the authors'
      release. RepDistiller's weight of 30000 is meant for this.
    - `"paper"`: Σᵢ KL_i / N, where it is not; the paper writes the sum.

    It does not change when features are scaled. By default the embeddings are compared, which are
    what the last dense layers read; widths may differ. The value belongs to the batch: sample
    weights are refused, and under several replicas the relation is that within each replica's
    share.

    Args:
        variant: See above.
        teacher_layer: Name or index of a layer.
        student_layer: The student's.
        name: Name of its metric.

    Raises:
        TfcompError: If there is no such variant.

    Example:
        >>> import keras
        >>> loss = ProbabilisticKnowledgeTransfer(variant="paper")
        >>> teacher = keras.ops.convert_to_tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
        >>> float(loss.compute_loss(teacher, 2.0 * teacher))
        0.0
        >>> student = keras.ops.convert_to_tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> print(f"{float(loss.compute_loss(teacher, student)):.4f}")
        0.0698

    Reference:
        Passalis, Tefas (2018), Learning Deep Representations with Probabilistic Knowledge
        Transfer, arXiv:1803.10837.
    """

    batch_relational: ClassVar[bool] = True

    def __init__(
        self,
        variant: Variant = "code",
        teacher_layer: Any = None,
        student_layer: Any = None,
        name: str | None = None,
    ) -> None:
        super().__init__(teacher_layer, student_layer, name)
        self.variant = choice("variant", variant, Variant)

    def compute_loss(self, teacher_outputs: Any, student_outputs: Any, **kwargs: Any) -> Any:
        """The scalar of the batch."""
        ops = keras.ops
        p, log_p = self._neighbours(teacher_outputs)
        _, log_q = self._neighbours(student_outputs)
        divergence = ops.sum(p * (log_p - log_q), axis=-1)
        # Rounding may leave −1e-8; the gradient stays that of the formula.
        divergence = divergence + ops.stop_gradient(ops.relu(-divergence))
        if self.variant == "paper":
            return ops.mean(divergence)
        return ops.mean(divergence) / ops.cast(ops.shape(divergence)[0], divergence.dtype)

    def _neighbours(self, features: Any) -> tuple[Any, Any]:
        """Probabilities p_ij and their logarithms."""
        ops = keras.ops
        vectors = unit(rows(features))
        cosines = ops.matmul(vectors, ops.transpose(vectors))
        kernel = ops.maximum(0.5 * (1.0 + cosines), _MIN_KERNEL)
        allowed = ops.ones_like(kernel)
        if self.variant == "paper":
            allowed = allowed - ops.eye(ops.shape(kernel)[0], dtype=kernel.dtype)
        total = ops.sum(kernel * allowed, axis=-1, keepdims=True)
        # One sample alone has no neighbour.
        total = ops.maximum(total, _MIN_KERNEL)
        return allowed * kernel / total, ops.log(kernel) - ops.log(total)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "variant": self.variant}


def rows(features: Any) -> Any:
    """Features of any shape as one row per sample, in float32 at least.

    Example:
        >>> rows(keras.ops.ones((2, 3, 4), "float16")).shape
        TensorShape([2, 12])
    """
    features = keras.ops.cast(features, keras.backend.result_type(features.dtype, "float32"))
    return keras.ops.reshape(features, (-1, flat_size(features.shape)))


def flat_size(shape: Any) -> int:
    """How many numbers there are per sample.

    Raises:
        TfcompError: If a size but the batch's is unknown.

    Example:
        >>> flat_size((None, 3, 4))
        12
    """
    sizes = tuple(shape)[1:]
    if None in sizes:
        raise TfcompError(
            f"Features must have known sizes: expected all but the batch, received {tuple(shape)}. "
            "Give the models a fixed input size, or choose a layer behind a global pooling."
        )
    return math.prod(sizes)


def unit(vectors: Any, smallest: float = _ZERO) -> Any:
    """Vectors along the last axis divided by their L2 norm; 0 where that is below `smallest`.

    Example:
        >>> unit(keras.ops.convert_to_tensor([[3.0, 4.0], [0.0, 0.0]])).numpy().round(2).tolist()
        [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    lengths = _lengths(vectors, smallest)
    inverse = keras.ops.where(lengths > 0, 1.0 / keras.ops.where(lengths > 0, lengths, 1.0), 0.0)
    return vectors * inverse[..., None]


def _lengths(vectors: Any, smallest: float) -> Any:
    """L2 norms along the last axis; 0 below `smallest`, where the gradient is 0 too."""
    ops = keras.ops
    squares = ops.sum(ops.square(vectors), axis=-1)
    some = squares > smallest**2
    return ops.where(some, ops.sqrt(ops.where(some, squares, 1.0)), 0.0)


def _similarities(features: Any) -> Any:
    """X·Xᵀ with unit rows."""
    features = rows(features)
    return unit(keras.ops.matmul(features, keras.ops.transpose(features)))


def _geometry(features: Any) -> tuple[Any, Any]:
    """Distances [j, i] and unit vectors [j, i, :] from sample j to sample i."""
    points = rows(features)
    # Differences rather than X·Xᵀ, whose rounding is that of the distance from the origin.
    steps = points[None, :, :] - points[:, None, :]
    return _lengths(steps, _COINCIDE), unit(steps, _COINCIDE)


def _over_mean(distances: Any, different: Any) -> Any:
    mean = _mean(distances, different)
    return distances / keras.ops.where(mean > 0, mean, 1.0)


def _mean(values: Any, mask: Any) -> Any:
    """Mean of the values that the mask leaves; 0 if there are none."""
    return keras.ops.sum(values * mask) / keras.ops.maximum(keras.ops.sum(mask), 1.0)


def _huber(gap: Any) -> Any:
    size = keras.ops.abs(gap)
    return keras.ops.where(size <= 1.0, 0.5 * keras.ops.square(gap), size - 0.5)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
