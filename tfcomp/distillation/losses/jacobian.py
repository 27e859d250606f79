"""Jacobian matching: the student reacts to changes of its input as the teacher does."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import keras
import tensorflow as tf

from tfcomp.distillation.losses.arguments import weight
from tfcomp.distillation.losses.feature_loss import FeatureLoss
from tfcomp.distillation.losses.logits import LogitRegression
from tfcomp.distillation.losses.maps import check_maps, float32, rest, same_sizes, unit
from tfcomp.distillation.losses.randomness import RandomLayer
from tfcomp.distillation.losses.response_loss import Pair, ResponseLoss
from tfcomp.errors import TfcompError

_INDICES = ("int32", "int64", "uint32", "uint64")


@keras.saving.register_keras_serializable(package="tfcomp")
class JacobianMatching(ResponseLoss):
    """The student's largest response changes with the input as the teacher's does.

    ‖J_s/‖J_s‖₂ − J_t/‖J_t‖₂‖₂² with J = ∂z_c/∂x, c = argmax z_t, the norms over the whole input

    The class c is the teacher's for both models. Of the whole Jacobian that is the one row which
    decides what is predicted, at the cost of one backward pass instead of one for each class.
    The responses themselves are matched by a loss beside this one, `KnowledgeDistillation` or
    `LogitRegression`, as in the example.

    A softmax gives away its logits up to a constant per sample, which depends on x too. Where
    either model ends in softmax, z_c is therefore log p_c in both. Where the models' images
    differ in size, the larger gradient is shrunk bilinearly. With BatchNorm in the student the
    gradient is that of the training step: it includes what a sample does to the batch's
    statistics. Models with one output, two classes or more, and inputs that can be
    differentiated by; a teacher from `cache_teacher` has no gradients and is refused.

    The value lies in [0, 4]; it is zero for equal directions, whatever their length, and 1 where
    one of the gradients is zero, which then has no gradient itself.

    Cost: a further backward pass through each model, and the gradient of the student's. A step
    of two small convolutional networks takes about twice as long on a CPU as one with
    `KnowledgeDistillation` alone.

    Args:
        teacher_from_logits: Whether the teacher's outputs are logits. None: read from its last
            layer when a `Distiller` is made.
        student_from_logits: The same for the student.
        name: Name of its metric; by default `jacobian_matching`.

    Raises:
        TfcompError: If a flag is no bool; at construction of the `Distiller`, if a model's
            ending cannot be read, or it has several outputs or positions.

    Example:
        >>> import keras, numpy as np
        >>> from tfcomp.distillation import Distiller, KnowledgeDistillation
        >>> def net(units):
        ...     layers = [keras.layers.Dense(units, "tanh"), keras.layers.Dense(3)]
        ...     return keras.Sequential([keras.Input((4,)), *layers])
        >>> losses = [KnowledgeDistillation(), JacobianMatching()]
        >>> distiller = Distiller(net(32), net(4), losses, [1.0, 0.1])
        >>> distiller.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        >>> x, y = np.random.rand(64, 4), np.random.randint(3, size=64)
        >>> logs = distiller.fit(x, y, verbose=0).history
        >>> bool(0 <= logs["jacobian_matching"][0] <= 4)
        True

    Reference:
        Srinivas, Fleuret (2018), Knowledge Transfer with Jacobian Matching, arXiv:1803.00443.
    """

    needs_step: ClassVar[bool] = True
    needs_input_gradients: ClassVar[bool] = True

    def validate_outputs(self, teacher_outputs: Any, student_outputs: Any) -> None:
        """Raises `TfcompError` unless both are one output of the same classes."""
        super().validate_outputs(teacher_outputs, student_outputs)
        if keras.tree.is_nested(student_outputs) or len(student_outputs.shape) != 2:
            shapes = keras.tree.map_structure(lambda one: str(tuple(one.shape)), student_outputs)
            raise TfcompError(
                "Jacobians are matched for one output of shape (batch, classes). Received: "
                f"{shapes}. Name the output with distillation_losses={{output: loss}}."
            )

    def per_sample(self, teacher_outputs: Any, student_outputs: Any, *step: Any) -> Any:
        """Values of shape (batch,)."""
        ops = keras.ops
        batch = step[0]
        pair = comparable(self.pairs(teacher_outputs, student_outputs)[0])
        largest = ops.one_hot(ops.argmax(pair.teacher, axis=-1), pair.teacher.shape[-1])
        of_teacher, of_student = (
            ops.sum(one * ops.cast(largest, one.dtype), axis=-1)
            for one in (pair.teacher, pair.student)
        )
        return direction_gap(batch.teacher_gradient(of_teacher), batch.student_gradient(of_student))


@keras.saving.register_keras_serializable(package="tfcomp")
class AttentionJacobianMatching(FeatureLoss):
    """The student attends to what the teacher attends to, and for the same reason in the input.

    Σ_layers ‖q_s − q_t‖₂² + w·‖j_s − j_t‖₂², q = A/‖A‖₂, j = J/‖J‖₂, J = ∂A[p]/∂x

    A = Σ_c a_c² is the map of attention of a layer's features a, over their positions, and p is
    the position where the teacher's A is largest, for both models. Where maps or images of the
    two models differ in size, the larger is shrunk bilinearly. Nothing is trained but the
    student. The value is at most 4·(1 + w) for each pair of layers, depends on no scale of
    features, and is zero for equal attention with equal gradients. What is zero itself, a map or
    a gradient, stays zero and has no gradient.

    Cost: for each pair of layers a further backward pass from there through each model, and the
    gradient of the student's.

    Args:
        teacher_layer: Names or indices of the teacher's layers, whose outputs are maps,
            channels last. None for both: the last map of each common resolution.
        student_layer: As many of the student's layers.
        jacobian_weight: w ≥ 0; to be tuned.
        name: Name of its metric; by default `attention_jacobian_matching`.

    Raises:
        TfcompError: If an argument is out of range; at construction of the `Distiller`, if the
            layers do not give maps.

    Example:
        >>> import keras, numpy as np
        >>> from tfcomp.distillation import Distiller
        >>> def net(width):
        ...     layers = [keras.layers.Conv2D(width, 3, activation="relu", name="conv")]
        ...     layers += [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3)]
        ...     return keras.Sequential([keras.Input((6, 6, 1)), *layers])
        >>> distiller = Distiller(net(8), net(4), AttentionJacobianMatching("conv", "conv"))
        >>> distiller.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        >>> x, y = np.random.rand(16, 6, 6, 1), np.random.randint(3, size=16)
        >>> sorted(distiller.fit(x, y, verbose=0).history)
        ['distillation_loss', 'loss', 'student_loss']

    Reference:
        Srinivas, Fleuret (2018), Knowledge Transfer with Jacobian Matching, arXiv:1803.00443.
    """

    several: ClassVar[bool] = True
    needs_step: ClassVar[bool] = True
    needs_input_gradients: ClassVar[bool] = True

    def __init__(
        self,
        teacher_layer: Any = None,
        student_layer: Any = None,
        jacobian_weight: float = 1.0,
        name: str | None = None,
    ) -> None:
        super().__init__(teacher_layer, student_layer, name)
        self.jacobian_weight = weight("jacobian_weight", jacobian_weight)

    def build(self, teacher_shapes: Any, student_shapes: Any) -> None:
        """Checks that there are maps to compare."""
        check_maps(type(self).__name__, teacher_shapes, student_shapes)

    def per_sample(self, teacher_outputs: Any, student_outputs: Any, *step: Any) -> Any:
        """Values of shape (batch,)."""
        pairs = zip(teacher_outputs, student_outputs, strict=True)
        return sum(self._one_layer(teacher, student, step[0]) for teacher, student in pairs)

    def _one_layer(self, teacher: Any, student: Any, batch: Any) -> Any:
        ops = keras.ops
        teacher, student = same_sizes(_attention(teacher), _attention(student))
        size = math.prod(teacher.shape[1:])
        teacher, student = (ops.reshape(one, (-1, size)) for one in (teacher, student))
        gap = unit(student, 1) - unit(teacher, 1)
        values = ops.sum(ops.square(gap), axis=1)
        largest = ops.one_hot(ops.argmax(teacher, axis=1), size)
        of_teacher, of_student = (ops.sum(one * largest, axis=1) for one in (teacher, student))
        return values + self.jacobian_weight * direction_gap(
            batch.teacher_gradient(of_teacher), batch.student_gradient(of_student)
        )

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "jacobian_weight": self.jacobian_weight}


@keras.saving.register_keras_serializable(package="tfcomp")
class NoisyInputMatching(LogitRegression):
    """The student responds to noisy inputs as the teacher does to the same.

    ‖z_s(x+ξ) − z_t(x+ξ)‖² with ξ ~ N(0, σ²), drawn anew for each entry of the input and step

    Its mean over the noise is ‖z_s − z_t‖² + σ²·‖J_s − J_t‖_F² + O(σ⁴), J the Jacobians of all
    responses: it matches Jacobians, unnormalised, without second-order gradients. The sum runs
    over the classes; positions are averaged and several outputs summed. Logits are centred
    where a model ends in softmax, see `LogitRegression`.

    Cost: a further forward pass of each model and a further backward pass of the student. Both
    see what they see in training and in inference, respectively, so that BatchNorm in the
    student keeps statistics of the noisy batch too. The teacher must be there to be run. The
    state of the random numbers is saved with the `Distiller`; under several replicas each draws
    its own noise.

    Args:
        stddev: σ ≥ 0, in the units of the inputs; to be tuned.
        seed: An integer; None to take one from `keras.utils.set_random_seed`.
        teacher_from_logits: Whether the teacher's outputs are logits. None: read from its last
            layer when a `Distiller` is made.
        student_from_logits: The same for the student.
        name: Name of its metric; by default `noisy_input_matching`.

    Raises:
        TfcompError: If an argument is out of range; in training, if the inputs are integers of
            32 bits or more, which are indices and not quantities.

    Example:
        >>> import keras, numpy as np
        >>> from tfcomp.distillation import Distiller
        >>> def net(units):
        ...     layers = [keras.layers.Dense(units, "tanh"), keras.layers.Dense(3)]
        ...     return keras.Sequential([keras.Input((4,)), *layers])
        >>> distiller = Distiller(net(32), net(4), NoisyInputMatching(0.1), student_loss_weight=0.0)
        >>> distiller.compile("sgd")
        >>> sorted(distiller.fit(np.random.rand(64, 4), verbose=0).history)
        ['distillation_loss', 'loss', 'student_loss']

    Reference:
        Srinivas, Fleuret (2018), Knowledge Transfer with Jacobian Matching, arXiv:1803.00443.
    """

    needs_step: ClassVar[bool] = True

    def __init__(
        self,
        stddev: float = 0.1,
        seed: int | None = None,
        teacher_from_logits: bool | None = None,
        student_from_logits: bool | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(teacher_from_logits, student_from_logits, name)
        self.stddev = weight("stddev", stddev)
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
            raise TfcompError(f"`seed` must be an integer or None. Received: {seed!r}.")
        self.seed = seed
        self._noise = InputNoise(self.stddev, seed, name=f"{name or 'noisy_input'}_noise")
        self.layers = (self._noise,)

    def per_sample(self, teacher_outputs: Any, student_outputs: Any, *step: Any) -> Any:
        """Values of shape (batch,); the outputs without noise are not used."""
        for one in keras.tree.flatten(step[0].inputs):
            if keras.backend.standardize_dtype(one.dtype) in _INDICES:
                raise TfcompError(
                    "Noise can be added to quantities alone: expected inputs of floats or bytes, "
                    f"received {one.dtype.name}. Cast them to float32, unless they are indices."
                )
        noisy = keras.tree.map_structure(self._noise, step[0].inputs)
        teacher, student = step[0].teacher(noisy), step[0].student(noisy)
        return 2.0 * super().per_sample(teacher, student)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"stddev": self.stddev, "seed": self.seed, **super().get_config()}


@keras.saving.register_keras_serializable(package="tfcomp")
class InputNoise(RandomLayer):
    """x + ξ with ξ ~ N(0, σ²), in float32.

    Args:
        stddev: σ.
        seed: An integer, or None.
        **kwargs: Passed to `keras.layers.Layer`.
    """

    def __init__(self, stddev: float, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(seed, **kwargs)
        self.stddev = stddev

    def call(self, inputs: Any) -> Any:
        """Noisy inputs, of the shape of `inputs`."""
        inputs = float32(inputs)
        noise = tf.random.stateless_normal(tf.shape(inputs), self.next_seed())
        return inputs + self.stddev * noise

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "stddev": self.stddev}


def comparable(pair: Pair) -> Pair:
    """Both as logits if both models gave them, else both as logarithms of probabilities."""
    if pair.teacher_gave_logits == pair.student_gave_logits:
        return pair
    log_softmax = keras.ops.log_softmax
    return pair._replace(
        teacher=log_softmax(pair.teacher, axis=-1), student=log_softmax(pair.student, axis=-1)
    )


def direction_gap(teacher: Any, student: Any) -> Any:
    """‖s/‖s‖ − t/‖t‖‖² per sample of two gradients with respect to inputs, which may be nested."""
    pairs = zip(keras.tree.flatten(teacher), keras.tree.flatten(student), strict=True)
    parts = [_same_sizes(float32(t), float32(s)) for t, s in pairs]
    of_teacher, of_student = (
        unit(keras.ops.concatenate([_flat(part[side]) for part in parts], axis=1), 1)
        for side in (0, 1)
    )
    return keras.ops.sum(keras.ops.square(of_student - of_teacher), axis=1)


def _same_sizes(teacher: Any, student: Any) -> tuple[Any, Any]:
    # Sizes that are not known are the same: both models saw one batch.
    same = teacher.shape[1:] == student.shape[1:]
    return (teacher, student) if same else same_sizes(teacher, student)


def _flat(tensor: Any) -> Any:
    return keras.ops.reshape(tensor, (keras.ops.shape(tensor)[0], -1))


def _attention(maps: Any) -> Any:
    """Σ_c a_c² of shape (batch, …, 1), up to a factor for each sample."""
    ops = keras.ops
    maps = float32(maps)
    # Any factor will do, as long as it has no gradient; this one keeps squares from overflowing.
    largest = ops.stop_gradient(ops.max(ops.abs(maps), axis=rest(maps), keepdims=True))
    maps = maps / ops.where(largest > 0, largest, 1.0)
    return ops.sum(ops.square(maps), axis=-1, keepdims=True)
