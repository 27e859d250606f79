"""Several teachers as one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import keras

from tfcomp.distillation.extractor import model_input, model_output
from tfcomp.distillation.losses.ending import Ending, endings, sigmoid_logits, softmax_logits
from tfcomp.distillation.losses.per_sample import describe, shapes
from tfcomp.errors import TfcompError
from tfcomp.graph import check_model

Combine = Literal["probabilities", "geometric", "logits"]
Task = Literal["multi-class", "multi-label"]

_PROBABILITIES: dict[str, Ending] = {"multi-class": "softmax", "multi-label": "sigmoid"}


@keras.saving.register_keras_serializable(package="tfcomp")
class Ensemble(keras.Model):
    """A functional model that says what its teachers say together, in logits.

    With teachers k, weights wₖ that sum to 1, logits zₖ and pₖ = softmax(zₖ):

    - `"probabilities"`: log Σₖ wₖ·pₖ, the mean of probabilities
    - `"geometric"`: log(Πₖ pₖ^wₖ / Σ_c Πₖ pₖ,c^wₖ), the normalised geometric mean
    - `"logits"`: Σₖ wₖ·zₖ, the mean of logits

    For `task="multi-label"` p is a sigmoid and each class a distribution of its own: the result
    is the logit of the mean probability, and the mean of logits for the other two. For
    regression `combine="logits"` averages the outputs.

    What comes out are logits, whatever the teachers end in: the softmax (sigmoid) of it are
    the combined probabilities. A teacher that ends in a softmax has lost a constant per sample
    of its logits, so `"logits"` refuses it; `"geometric"` gives the same softmax at any
    temperature.

    The teachers are used as they are, neither copied nor changed; they run with
    `training=False`, and the ensemble has no trainable weights. It is saved with them.

    Args:
        teachers: Built functional or Sequential models with inputs and outputs of the same
            structure. Images may differ in size: the ensemble is a model for the largest and
            resizes it bilinearly in front of the others.
        combine: How, see above.
        weights: A number above 0 for each teacher; they are divided by their sum. Equal by
            default.
        task: What the outputs mean.
        name: Name of the model.
        **kwargs: Passed to `keras.Model`.

    Raises:
        UnsupportedModelError: If a teacher is subclassed or unbuilt.
        TfcompError: If teachers, outputs and arguments do not fit together.

    Example:
        >>> import keras, numpy as np
        >>> from tfcomp.distillation import Ensemble
        >>> def net(*p):
        ...     bias = keras.initializers.Constant(np.log(p))
        ...     head = keras.layers.Dense(2, kernel_initializer="zeros", bias_initializer=bias)
        ...     return keras.Sequential([keras.Input((3,)), head])
        >>> teacher = Ensemble([net(0.9, 0.1), net(0.5, 0.5)])
        >>> print(keras.ops.softmax(teacher(np.ones((1, 3)))).numpy().round(3))
        [[0.7 0.3]]

    Reference:
        Hinton, Vinyals, Dean (2015), Distilling the Knowledge in a Neural Network,
        arXiv:1503.02531; Buciluă, Caruana, Niculescu-Mizil (2006), Model Compression, KDD.
    """

    def __init__(
        self,
        teachers: Sequence[keras.Model],
        combine: Combine = "probabilities",
        weights: Sequence[float] | None = None,
        task: Task = "multi-class",
        name: str = "ensemble",
        **kwargs: Any,
    ) -> None:
        teachers = _checked_teachers(teachers)
        _one_of("combine", combine, Combine)
        _one_of("task", task, Task)
        shares = _shares(weights, len(teachers))
        from_logits = [_from_logits(teacher, combine, task) for teacher in teachers]
        inputs = _shared_inputs(teachers)
        said = [
            keras.tree.flatten(_Member(teacher, name=f"teacher_{index}")(_resized(inputs, teacher)))
            for index, teacher in enumerate(teachers)
        ]
        combined = [
            _Combination(combine, task, shares, flags, name=f"combination_{index}")(list(outputs))
            for index, (outputs, flags) in enumerate(
                zip(zip(*said, strict=True), zip(*from_logits, strict=True), strict=True)
            )
        ]
        outputs = keras.tree.pack_sequence_as(model_output(teachers[0]), combined)
        super().__init__(inputs, outputs, name=name, **kwargs)
        self.combine: Combine = combine
        self.task: Task = task
        self._weights_given = None if weights is None else tuple(float(w) for w in weights)

    @property
    def teachers(self) -> list[keras.Model]:
        """The caller's teachers, in order."""
        return [layer.teacher for layer in self.layers if isinstance(layer, _Member)]

    @property
    def trainable_variables(self) -> list[Any]:
        """None: the teachers' weights are theirs to train."""
        return []

    @property
    def trainable_weights(self) -> list[Any]:
        """None: the teachers' weights are theirs to train."""
        return []

    @property
    def non_trainable_variables(self) -> list[Any]:
        """All variables of the teachers."""
        return list(self.variables)

    @property
    def non_trainable_weights(self) -> list[Any]:
        """All weights of the teachers."""
        return list(self.weights)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, the teachers serialised."""
        return {
            "teachers": [keras.saving.serialize_keras_object(model) for model in self.teachers],
            "combine": self.combine,
            "weights": self._weights_given,
            "task": self.task,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Ensemble:
        """The ensemble that `get_config` described, with teachers of its own."""
        teachers = [
            keras.saving.deserialize_keras_object(teacher, custom_objects=custom_objects)
            for teacher in config["teachers"]
        ]
        return cls(**{**config, "teachers": teachers})


@keras.saving.register_keras_serializable(package="tfcomp")
class _Member(keras.layers.Layer):
    """A teacher under a name that no other has, always asked and never trained."""

    def __init__(self, teacher: keras.Model, **kwargs: Any) -> None:
        kwargs.setdefault("dtype", "float32")
        super().__init__(**kwargs, autocast=False)
        self.teacher = teacher
        self.built = True

    @property
    def layers(self) -> list[keras.layers.Layer]:
        """What a walk over a model's layers finds below this one."""
        return [self.teacher]

    def build(self, input_shape: Any = None) -> None:
        """Nothing to do: the teacher is built."""

    def call(self, inputs: Any) -> Any:
        """The teacher's outputs."""
        return self.teacher(inputs, training=False)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "teacher": keras.saving.serialize_keras_object(self.teacher),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> _Member:
        """The layer that `get_config` described."""
        return cls(
            **{**config, "teacher": keras.saving.deserialize_keras_object(config["teacher"])}
        )


@keras.saving.register_keras_serializable(package="tfcomp")
class _Combination(keras.layers.Layer):
    """The teachers' outputs as one, in logits."""

    def __init__(
        self,
        combine: Combine,
        task: Task,
        shares: Sequence[float],
        from_logits: Sequence[bool],
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("dtype", "float32")
        super().__init__(**kwargs)
        self.combine, self.task = combine, task
        self.shares, self.from_logits = list(shares), list(from_logits)

    def call(self, inputs: list[Any]) -> Any:
        """Logits from one tensor per teacher."""
        to_logits = softmax_logits if self.task == "multi-class" else sigmoid_logits
        logits = [
            outputs if is_logits else to_logits(outputs)
            for outputs, is_logits in zip(inputs, self.from_logits, strict=True)
        ]
        if self.combine == "probabilities":
            return self._mean_probabilities(logits)
        if self.combine == "geometric" and self.task == "multi-class":
            # The constants of the logits must not weigh in where they are large.
            logits = [keras.ops.log_softmax(z, axis=-1) for z in logits]
            return keras.ops.log_softmax(self._mean(logits), axis=-1)
        return self._mean(logits)

    def _mean(self, logits: list[Any]) -> Any:
        return sum(share * z for share, z in zip(self.shares, logits, strict=True))

    def _mean_probabilities(self, logits: list[Any]) -> Any:
        ops = keras.ops
        if self.task == "multi-class":
            return self._log_mean([ops.log_softmax(z, axis=-1) for z in logits])
        on = self._log_mean([ops.log_sigmoid(z) for z in logits])
        return on - self._log_mean([ops.log_sigmoid(-z) for z in logits])

    def _log_mean(self, log_p: list[Any]) -> Any:
        """log Σ wₖ·exp(log pₖ), without overflow."""
        weighted = [math.log(w) + value for w, value in zip(self.shares, log_p, strict=True)]
        return keras.ops.logsumexp(keras.ops.stack(weighted), axis=0)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """That of each of the inputs."""
        return input_shape[0]

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "combine": self.combine,
            "task": self.task,
            "shares": self.shares,
            "from_logits": self.from_logits,
        }


def _checked_teachers(teachers: Any) -> list[keras.Model]:
    if not isinstance(teachers, (list, tuple)) or not teachers:
        raise TfcompError(f"`teachers` must be a list of models. Received: {teachers!r}.")
    for index, teacher in enumerate(teachers):
        check_model(teacher, "teacher")
        theirs = {id(variable) for other in teachers[:index] for variable in other.variables}
        if theirs & {id(variable) for variable in teacher.variables}:
            # In a .keras file what is shared has one place, where only the first would find it.
            raise TfcompError(
                f"Teachers must share no weights. Received: {teacher.name!r}, which shares some "
                "with another. Copy it with tfcomp.graph.rebuild(model); to give a teacher more "
                "say use `weights`."
            )
        expected, received = model_output(teachers[0]), model_output(teacher)
        if shapes(expected) != shapes(received):
            raise TfcompError(
                f"Teachers must have the same outputs: expected {describe(expected)} as of "
                f"{teachers[0].name!r}, received {describe(received)} of {teacher.name!r}. Bring "
                "them into one form with keras.Model(inputs, outputs)."
            )
    return list(teachers)


def _one_of(argument: str, value: Any, kind: Any) -> None:
    if value not in get_args(kind):
        known = ", ".join(map(repr, get_args(kind)))
        raise TfcompError(f"`{argument}` must be one of {known}. Received: {value!r}.")


def _shares(weights: Any, count: int) -> list[float]:
    """The weights, divided by their sum."""
    if weights is None:
        return [1.0 / count] * count
    values = [
        w for w in weights if isinstance(w, (int, float)) and math.isfinite(w) and float(w) > 0
    ]
    if len(values) != len(weights) or len(values) != count:
        raise TfcompError(
            f"`weights` must be {count} numbers above 0, one for each teacher. Received: "
            f"{weights!r}. Leave out a teacher that has no say."
        )
    return [float(w) / math.fsum(values) for w in values]


def _from_logits(teacher: keras.Model, combine: str, task: str) -> list[bool]:
    """For each output of a teacher, whether it is logits."""
    found = endings(teacher)
    expected = _PROBABILITIES[task]
    for ending, output in zip(found, keras.tree.flatten(model_output(teacher)), strict=True):
        if ending not in ("logits", expected):
            raise TfcompError(
                f"A {task} teacher must end in logits or {expected}. Received: {teacher.name!r}, "
                f"which ends in {ending}. Choose another `task`."
            )
        if combine == "logits" and ending == "softmax":
            raise TfcompError(
                f"The logits of {teacher.name!r} are known up to a constant only, because it ends "
                'in softmax: expected teachers that end in logits, received softmax. "geometric" '
                "gives the same probabilities at any temperature."
            )
        if combine != "logits" and task == "multi-class" and output.shape[-1] == 1:
            raise TfcompError(
                f"Classes must be two or more on the last axis: expected such an output of "
                f"{teacher.name!r}, received shape {tuple(output.shape)}. For one sigmoid unit use "
                'task="multi-label", for regression combine="logits".'
            )
    return [ending == "logits" for ending in found]


def _shared_inputs(teachers: list[keras.Model]) -> Any:
    """New inputs of the largest size that a teacher takes, structured as the first's."""
    given = [keras.tree.flatten(model_input(teacher)) for teacher in teachers]
    structures = [list(shapes(model_input(teacher))) for teacher in teachers]
    for teacher, tensors, structure in zip(teachers, given, structures, strict=True):
        if structure != structures[0] or any(
            not _fit(a.shape, b.shape) for a, b in zip(given[0], tensors, strict=True)
        ):
            raise TfcompError(
                f"Teachers must take the same inputs, images of any size: expected "
                f"{describe(model_input(teachers[0]))} as {teachers[0].name!r}, received "
                f"{describe(model_input(teacher))} for {teacher.name!r}. Put layers in front of it "
                "that adapt them."
            )
    made = [
        keras.Input(
            batch_shape=_largest([tensor.shape for tensor in tensors]),
            dtype=keras.backend.result_type(*(tensor.dtype for tensor in tensors)),
            name=tensors[0].name,
        )
        for tensors in zip(*given, strict=True)
    ]
    return keras.tree.pack_sequence_as(model_input(teachers[0]), made)


def _image_axes(shape: Any) -> tuple[int, ...]:
    """Height and width of a batch of images; nothing for tensors of another rank."""
    if len(shape) != 4:
        return ()
    return (1, 2) if keras.config.image_data_format() == "channels_last" else (2, 3)


def _fit(first: Any, second: Any) -> bool:
    return len(first) == len(second) and all(
        a == b or None in (a, b) or axis in _image_axes(first)
        for axis, (a, b) in enumerate(zip(first, second, strict=True))
    )


def _largest(candidates: list[Any]) -> tuple[int | None, ...]:
    """The shape with the most pixels, other axes as far as any of the candidates knows them."""
    axes = _image_axes(candidates[0])
    known = [shape for shape in candidates if all(shape[axis] for axis in axes)]
    largest = max(known, key=lambda shape: math.prod(shape[a] for a in axes), default=candidates[0])
    sizes = [
        largest[axis] if axis in axes else next((s[axis] for s in candidates if s[axis]), None)
        for axis in range(1, len(largest))
    ]
    return (None, *sizes)


def _resized(inputs: Any, teacher: keras.Model) -> Any:
    """The ensemble's inputs in the sizes and the structure of the teacher's."""
    resized = []
    for tensor, wanted in zip(
        keras.tree.flatten(inputs), keras.tree.flatten(model_input(teacher)), strict=True
    ):
        axes = _image_axes(wanted.shape)
        size = [wanted.shape[axis] for axis in axes]
        if all(size) and size != [tensor.shape[axis] for axis in axes]:
            resize = keras.layers.Resizing(*size, "bilinear", antialias=True, dtype="float32")
            tensor = resize(tensor)
        resized.append(tensor)
    return keras.tree.pack_sequence_as(model_input(teacher), resized)
