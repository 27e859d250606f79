"""Variational information: what the student's features tell of the teacher's."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import keras

from tfcomp.distillation.losses.feature_loss import FeatureLoss
from tfcomp.distillation.losses.maps import check_maps, float32, rest, same_sizes
from tfcomp.errors import TfcompError

# Keeps a variance that training drives to zero from dividing by it.
_EPSILON = 1e-5


@keras.saving.register_keras_serializable(package="tfcomp")
class VariationalInformationDistillation(FeatureLoss):
    """The student's features learn to say as much about the teacher's as they can.

    Σ_layers mean over positions and channels of ½((m(A_s) − A_t)²/v + log v)

    The negative log-likelihood (but for a constant) of the teacher's features under a Gaussian
    with mean m(A_s) and, for each channel, a variance v = softplus(ρ) + 1e-5. As in the released
    code, m is three 1×1 convolutions without bias, as wide as the teacher's layer and with ReLU
    in between, and v starts at 5. Both are trained along with the student. Vectors will do as
    well as maps; where the sizes of two maps differ, the larger one is shrunk bilinearly.

    The value is *negative* where the prediction is good and v below 1, and is not zero for
    equal features. In the paper's total, CE + λ · this loss, set `student_loss_weight=0.5`, the
    weight λ and twice the learning rate.

    Args:
        teacher_layer: Names or indices of the teacher's layers. None for both: the last map of
            each common resolution.
        student_layer: As many of the student's layers.
        initial_variance: v > 1e-5 at the beginning, in the units of the features squared.
        name: Name of its metric.

    Raises:
        TfcompError: If the variance is not positive; at construction of the `Distiller`, if one
            layer of a pair gives vectors and the other maps.

    Example:
        >>> import keras
        >>> loss = VariationalInformationDistillation("block3", "block2", initial_variance=1.0)
        >>> teacher, student = keras.ops.ones((8, 4, 4, 32)), keras.ops.zeros((8, 4, 4, 16))
        >>> loss.validate_outputs([teacher], [student])
        >>> print(f"{float(loss.per_sample([teacher], [student])[0]):.3f}")  # ½(1²/1 + log 1)
        0.500

    Reference:
        Ahn, Hu, Damianou, Lawrence, Dai (2019), Variational Information Distillation for
        Knowledge Transfer, arXiv:1904.05835.
    """

    several: ClassVar[bool] = True

    def __init__(
        self,
        teacher_layer: Any = None,
        student_layer: Any = None,
        initial_variance: float = 5.0,
        name: str | None = None,
    ) -> None:
        super().__init__(teacher_layer, student_layer, name)
        if isinstance(initial_variance, bool) or not isinstance(initial_variance, (int, float)):
            raise TfcompError(f"`initial_variance` must be a number. Received: {initial_variance}.")
        if not _EPSILON < initial_variance < math.inf:
            raise TfcompError(f"`initial_variance` must be > 1e-5. Received: {initial_variance}.")
        self.initial_variance = float(initial_variance)

    def build(self, teacher_shapes: Any, student_shapes: Any) -> None:
        """Makes the mean and the variances for each layer."""
        shapes = list(zip(teacher_shapes, student_shapes, strict=True))
        maps = [pair for pair in shapes if [len(shape) for shape in pair] != [2, 2]]
        check_maps(type(self).__name__, [t for t, _ in maps], [s for _, s in maps])
        self.layers = tuple(
            _Gaussian(teacher[-1], self.initial_variance, name=f"gaussian_{index}")
            for index, (teacher, _) in enumerate(shapes)
        )
        for layer, (_, student) in zip(self.layers, shapes, strict=True):
            layer.build(tuple(student))

    def per_sample(self, teacher_outputs: Any, student_outputs: Any) -> Any:
        """Values of shape (batch,)."""
        triples = zip(teacher_outputs, student_outputs, self.layers, strict=True)
        return sum(_likelihood(teacher, student, layer) for teacher, student, layer in triples)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "initial_variance": self.initial_variance}


def _likelihood(teacher: Any, student: Any, layer: keras.Layer) -> Any:
    ops = keras.ops
    teacher, student = same_sizes(float32(teacher), float32(student))
    mean, variance = layer(student)
    value = 0.5 * (ops.square(mean - teacher) / variance + ops.log(variance))
    return ops.mean(value, axis=rest(value))


@keras.saving.register_keras_serializable(package="tfcomp")
class _Gaussian(keras.layers.Layer):
    """Mean and variance of features of so many channels, predicted from others."""

    def __init__(self, channels: int, initial_variance: float, name: str) -> None:
        # Squares divided by small variances need more than half precision.
        super().__init__(name=name, dtype="float32")
        # Over the last axis of a map, a dense layer is a 1×1 convolution.
        self.mean = [
            keras.layers.Dense(channels, activation, use_bias=False, dtype="float32")
            for activation in ("relu", "relu", None)
        ]
        self.channels = channels
        excess = initial_variance - _EPSILON
        # The inverse of softplus, in the form that does not overflow.
        self.initial_rho = excess + math.log(-math.expm1(-excess))

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Makes the weights."""
        for layer in self.mean:
            layer.build(input_shape)
            input_shape = (*input_shape[:-1], self.channels)
        start = keras.initializers.Constant(self.initial_rho)
        self.rho = self.add_weight(shape=(self.channels,), initializer=start, name="rho")

    def call(self, inputs: Any) -> tuple[Any, Any]:
        """(mean, variance), of which the latter has shape (channels,)."""
        for layer in self.mean:
            inputs = layer(inputs)
        return inputs, keras.ops.softplus(self.rho) + _EPSILON
