"""One distillation loss on one pair of tensors, with its weight and the name of its metric."""

from __future__ import annotations

import dataclasses
import math
import re
import warnings
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcomp.distillation.coefficients import STUDENT, Coefficient
from tfcomp.distillation.extractor import (
    PRE_ACTIVATION,
    FeatureExtractor,
    Features,
    model_input,
    model_output,
)
from tfcomp.distillation.losses.feature_loss import FeatureLoss
from tfcomp.distillation.losses.per_sample import PerSampleLoss, check_same_shapes, describe
from tfcomp.distillation.losses.step import Step
from tfcomp.errors import TfcompError
from tfcomp.graph import is_graph_model

# Names that a distiller's own metrics have.
_RESERVED = ("loss", "student_loss", "distillation_loss", STUDENT)
_KERAS_LOSSES = (
    keras.distillation.LogitsDistillation,
    keras.distillation.FeatureDistillation,
)


@dataclasses.dataclass(frozen=True, eq=False)
class Term:
    """weight · loss(teacher's tensors, student's tensors).

    Attributes:
        loss: The distillation loss.
        weight: Its weight among the losses; the losses that one entry gives for several outputs
            share it.
        name: Name of its metric.
        output: Which output of both models it compares; None for all of them.
        entry: Which of the caller's entries it comes from.
    """

    loss: keras.distillation.DistillationLoss
    weight: Coefficient
    name: str
    output: str | int | None
    entry: int

    @property
    def teacher_layers(self) -> Any:
        """Name, or nested names, of the teacher's layers; None for its outputs."""
        return self._layers("teacher")

    @property
    def student_layers(self) -> Any:
        """Name, or nested names, of the student's layers; None for its outputs."""
        return self._layers("student")

    @property
    def layers(self) -> tuple[keras.layers.Layer, ...]:
        """Layers that are trained for this loss."""
        return tuple(getattr(self.loss, "layers", ()))

    @property
    def needs_input_gradients(self) -> bool:
        """Whether the loss asks for gradients with respect to inputs."""
        return bool(getattr(self.loss, "needs_input_gradients", False))

    def resolve(self, teacher: keras.Model | None, student: keras.Model) -> None:
        """Lets a loss on layers find their names."""
        if isinstance(self.loss, FeatureLoss):
            self.loss.resolve(teacher, student)

    def check(self, teacher: FeatureExtractor | None, student: FeatureExtractor) -> None:
        """Lets the loss see both models, and their shapes where these are known."""
        if teacher is None and self.teacher_layers is not None:
            raise TfcompError(
                f"{self.name!r} compares the teacher's layer {self.teacher_layers!r}: expected a "
                "teacher, received None. Cached outputs do not hold layers; pass the teacher."
            )
        if teacher is None and not isinstance(self.loss, PerSampleLoss):
            return
        self.loss.validate_model_compatibility(
            None if teacher is None else self._view(teacher.model), self._view(student.model)
        )
        of_teacher = None if teacher is None else teacher.symbolic()
        of_student = student.symbolic()
        if of_teacher is not None and of_student is not None:
            self._select(of_teacher, of_student)

    def value(self, teacher: Features, student: Features, sample_weight: Any, step: Step) -> Any:
        """Mean over the batch, weighted by sample, before weight and replicas."""
        pair = self._select(teacher, student)
        if self.output is not None and keras.tree.is_nested(step.labels):
            step = dataclasses.replace(step, labels=pick(step.labels, self.output, "y"))
        extra = (step,) if getattr(self.loss, "needs_step", False) else ()
        if isinstance(self.loss, PerSampleLoss) and not self.loss.batch_relational:
            values = self.loss.per_sample(*pair, *extra)
        else:
            values = self.loss.compute_loss(*pair, *extra)
            values = keras.ops.convert_to_tensor(values)
        if len(values.shape) > 1:
            raise TfcompError(
                f"{self.name!r} must give one value per sample, of shape (batch,), or a scalar. "
                f"Received: shape {tuple(values.shape)}. Average over the other axes."
            )
        if sample_weight is not None:
            values = values * self._weights(values, sample_weight)
        return keras.ops.cast(keras.ops.mean(values), keras.config.floatx()) / self._replicas()

    def _layers(self, role: str) -> Any:
        names = getattr(self.loss, f"{role}_layer_name", None)
        if names is None or not getattr(self.loss, "pre_activation", False):
            return names
        return keras.tree.map_structure(lambda name: name + PRE_ACTIVATION, names)

    def _select(self, teacher: Features, student: Features) -> tuple[Any, Any]:
        pair = (
            _pick_features(teacher, self.teacher_layers, self.output, "teacher"),
            _pick_features(student, self.student_layers, self.output, "student"),
        )
        if isinstance(self.loss, _KERAS_LOSSES):
            check_same_shapes(*pair)
        self.loss.validate_outputs(*pair)
        return pair

    def _view(self, model: keras.Model) -> keras.Model:
        """The model as far as this term sees it: with its one output, if it has one."""
        if self.output is None or not is_graph_model(model):
            return model
        tensor = pick(model_output(model), self.output, model.name)
        return keras.Model(model_input(model), tensor, name=model.name)

    def _weights(self, values: Any, sample_weight: Any) -> Any:
        if len(values.shape) == 0 or getattr(self.loss, "batch_relational", False):
            raise TfcompError(
                f"{self.name!r} gives one value for the whole batch: expected a loss with one "
                "value per sample (tfcomp.distillation.PerSampleLoss), because sample_weight or "
                "class_weight was given. Leave the weights out or choose another loss."
            )
        if keras.tree.is_nested(sample_weight):
            flat = keras.tree.flatten(sample_weight)
            if self.output is None and len(flat) > 1:
                raise TfcompError(
                    f"{self.name!r} compares all outputs at once: expected one sample_weight for "
                    f"all, received {describe(sample_weight)}. Give one loss per output, "
                    "distillation_losses={output: loss}."
                )
            nested = self.output is not None and len(flat) > 1
            sample_weight = pick(sample_weight, self.output, "sample_weight") if nested else flat[0]
        shape = tuple(sample_weight.shape)
        if len(shape) > 2 or (len(shape) == 2 and shape[1] != 1):
            raise TfcompError(
                f"{self.name!r} needs one weight per sample: expected sample_weight of shape "
                f"(batch,), received {shape}. Average it over the other axes."
            )
        return keras.ops.cast(keras.ops.reshape(sample_weight, (-1,)), values.dtype)

    def _replicas(self) -> int:
        """What the mean must be divided by, gradients being summed over replicas."""
        replicas: int = tf.distribute.get_strategy().num_replicas_in_sync
        if replicas == 1 or not isinstance(self.loss, _KERAS_LOSSES):
            return replicas
        # A keras.losses.Loss with a reduction divides by itself; a plain function does not.
        leaves = [leaf for leaf in keras.tree.flatten(self.loss.loss) if leaf is not None]
        divided = {
            isinstance(leaf, keras.losses.Loss) and leaf.reduction not in (None, "none")
            for leaf in leaves
        }
        if len(divided) > 1:
            raise TfcompError(
                f"{self.name!r} mixes losses that Keras divides by the {replicas} replicas with "
                "functions that it does not: expected one kind, received both. Give them as "
                "keras.losses.Loss objects."
            )
        return 1 if True in divided else replicas


def make_terms(losses: Any, weights: Any, student: keras.Model) -> list[Term]:
    """The terms that `distillation_losses` and `distillation_loss_weights` ask for.

    Args:
        losses: A loss, a list of losses, or losses per output: a dict by name of output, or
            inside the list a dict or list with None for an output that is not distilled.
        weights: A number per entry of the list; None for 1.0 each.
        student: Tells the outputs' names.

    Returns:
        One term for each loss on its own output, with unique names.
    """
    entries = list(losses) if isinstance(losses, (list, tuple)) else [losses]
    weights = entry_weights(losses, weights)
    if not entries or len(weights) != len(entries):
        raise TfcompError(
            "There must be at least one distillation loss, and one weight for each: expected "
            f"{max(len(entries), 1)} distillation_loss_weights, received {len(weights)} for "
            f"{len(entries)} losses. Leave the weights out to have 1.0 for each."
        )
    taken = dict.fromkeys(_RESERVED, 1)
    terms = []
    for index, (entry, weight) in enumerate(zip(entries, weights, strict=True)):
        weight = check_weight(weight)
        shared = Coefficient(weight, "distillation_loss_weight")
        for output, label, loss in _per_output(entry, student):
            _check_loss(loss, output)
            name = "_".join([*([str(label)] if output is not None else []), _name(loss)])
            taken[name] = taken.get(name, 0) + 1
            unique = name if taken[name] == 1 else f"{name}_{taken[name]}"
            terms.append(Term(loss, shared, unique, output, index))
    if not terms:
        raise TfcompError("All distillation losses are None: expected at least one loss.")
    return terms


def entry_weights(losses: Any, weights: Any) -> list[Any]:
    """The caller's weights as a list: one for each entry of `losses`, 1.0 by default."""
    if weights is None:
        return [1.0] * (len(losses) if isinstance(losses, (list, tuple)) else 1)
    return [weights] if isinstance(weights, (int, float)) else list(weights)


def check_weight(weight: Any) -> float:
    """The weight of a loss as a float; raises `TfcompError` unless it is a number ≥ 0."""
    if isinstance(weight, bool) or not isinstance(weight, (int, float, np.number)):
        raise TfcompError(f"A distillation loss weight must be a number. Received: {weight!r}.")
    if not math.isfinite(weight) or weight < 0:
        raise TfcompError(f"A distillation loss weight must be ≥ 0. Received: {weight}.")
    return float(weight)


def pick(structure: Any, output: str | int | None, owner: str) -> Any:
    """The one output asked for; the whole structure for None."""
    if output is None:
        return structure
    try:
        return structure[output]
    except (KeyError, IndexError, TypeError):
        raise TfcompError(
            f"{owner} has no output {output!r}: expected outputs with it, received "
            f"{describe(structure)}. Teacher and student must name their outputs alike."
        ) from None


def _pick_features(features: Features, layers: Any, output: str | int | None, role: str) -> Any:
    if layers is None:
        return pick(features.outputs, output, f"The {role}")
    return keras.tree.map_structure(lambda name: features.layers[name], layers)


def _per_output(entry: Any, student: keras.Model) -> Iterator[tuple[Any, Any, Any]]:
    """(key of the output, its label, loss) for each loss of an entry."""
    if not isinstance(entry, (dict, list, tuple)):
        yield None, None, entry
        return
    declared = model_output(student) if is_graph_model(student) else None
    if isinstance(entry, dict):
        names = list(declared) if isinstance(declared, dict) else _output_names(student)
        for key, loss in entry.items():
            if names and key not in names:
                raise TfcompError(
                    f"The student {student.name!r} has no output {key!r}: expected one of "
                    f"{', '.join(map(repr, names))}. Received losses for {list(entry)}."
                )
            if loss is not None:
                by_position = isinstance(declared, (list, tuple))
                yield (names.index(key) if by_position else key), key, loss
        return
    if not isinstance(declared, (list, tuple)) or len(declared) != len(entry):
        outputs = "subclassed" if declared is None else describe(declared)
        raise TfcompError(
            f"A list inside distillation_losses gives one loss per output: expected as many "
            f"losses as the student {student.name!r} has outputs ({outputs}), received "
            f"{len(entry)}. Use a dict by name of output for a dict of outputs."
        )
    for index, loss in enumerate(entry):
        if loss is not None:
            yield index, _output_names(student)[index], loss


def _output_names(student: keras.Model) -> list[str]:
    return list(getattr(student, "output_names", None) or [])


def _check_loss(loss: Any, output: Any) -> None:
    if not isinstance(loss, keras.distillation.DistillationLoss):
        raise TfcompError(
            "Distillation losses must be keras.distillation.DistillationLoss objects. Received: "
            f"{loss!r}. Use KnowledgeDistillation(), for one; losses per output are a dict by "
            "name of output, or a list within the list."
        )
    layers = [getattr(loss, f"{role}_layer_name", None) for role in ("teacher", "student")]
    on_layers = isinstance(loss, FeatureLoss) or layers != [None, None]
    if output is not None and on_layers:
        raise TfcompError(
            f"{type(loss).__name__} compares layers: expected a loss on outputs for output "
            f"{output!r}, received one with the layers {layers}. Put it into the list "
            "of losses by itself."
        )
    if isinstance(loss, keras.distillation.LogitsDistillation) and any(
        leaf is keras.losses.kl_divergence for leaf in keras.tree.flatten(loss.loss)
    ):
        warnings.warn(
            "LogitsDistillation with loss='kl_divergence' by name applies neither softmax nor "
            "T². Use tfcomp.distillation.KnowledgeDistillation, or "
            "loss=keras.losses.KLDivergence().",
            stacklevel=4,
        )


def _name(loss: Any) -> str:
    given = getattr(loss, "name", None)
    return given or re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(loss).__name__).lower()
