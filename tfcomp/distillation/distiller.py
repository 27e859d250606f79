"""Training a student with a teacher's help, through `fit`."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import tensorflow as tf

from tfcomp.distillation.extractor import FeatureExtractor, Features
from tfcomp.distillation.losses.per_sample import shapes
from tfcomp.distillation.teachers import CachedInputs
from tfcomp.distillation.terms import Term, make_terms
from tfcomp.errors import TfcompError
from tfcomp.graph import is_graph_model


@keras.saving.register_keras_serializable(package="tfcomp")
class Distiller(keras.Model):
    """Trains a student on its labels and on what a teacher says, with `compile` and `fit`.

    loss = s·student + (1−s)·Σ wᵢ·lossᵢ + regularisation

    s is `student_loss_weight`, wᵢ are `distillation_loss_weights`, and `student` is the loss
    given to `compile`. What the student's layers add with `add_loss` or regularisers counts
    once, as in training without a teacher. A paper that writes α·KD + (1−α)·CE has s = 1−α;
    one that writes CE + β·hint has s = 1/2 and w = β, at twice the learning rate.

    One step runs the student once and the teacher once, without a gradient and with
    `training=False`; with data from `cache_teacher` the teacher is not run. Sample and class
    weights apply to the student's loss and to every distillation loss: Σ wₙ·lossₙ / N over the
    batch, as Keras reduces. `evaluate`, `predict` and a call are the student's alone. The
    teacher is not changed, its `trainable` flags included, and its weights are not among this
    model's; both models are saved with it.

    Logs: `loss`; `student_loss`, which is what the student would report by itself;
    `distillation_loss`, which is Σ wᵢ·lossᵢ; with several losses also each unweighted, by name.

    Args:
        teacher: A built model. None where all training data comes from `cache_teacher`.
        student: A built model with inputs like the teacher's; `distiller.student` afterwards.
        distillation_losses: A loss or a list of them: ours, Keras's or your own
            `keras.distillation.DistillationLoss`. A loss sees all outputs of a multi-output
            model, ours sum over them. Losses per output are a dict by name of output, or in the
            list a dict or a list, None for an output that is not distilled.
        distillation_loss_weights: A weight ≥ 0 for each entry; 1.0 by default.
        student_loss_weight: s, in [0, 1]. At 0 neither labels nor a loss are needed.
        name: Name of the model.
        **kwargs: Passed to `keras.Model`.

    Raises:
        TfcompError: If models, outputs, layers and losses do not fit together.

    Example:
        >>> import keras, numpy as np
        >>> from tfcomp.distillation import Distiller, KnowledgeDistillation
        >>> def net(units):
        ...     layers = [keras.layers.Dense(units, "relu"), keras.layers.Dense(3)]
        ...     return keras.Sequential([keras.Input((4,)), *layers])
        >>> distiller = Distiller(net(32), net(4), KnowledgeDistillation(), student_loss_weight=0.1)
        >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        >>> distiller.compile("adam", loss=loss, metrics=["accuracy"])
        >>> x, y = np.random.rand(64, 4), np.random.randint(3, size=64)
        >>> sorted(distiller.fit(x, y, verbose=0).history)
        ['accuracy', 'distillation_loss', 'loss', 'student_loss']

    Reference:
        Hinton, Vinyals, Dean (2015), Distilling the Knowledge in a Neural Network,
        arXiv:1503.02531.
    """

    def __init__(
        self,
        teacher: keras.Model | None,
        student: keras.Model,
        distillation_losses: Any,
        distillation_loss_weights: Any = None,
        student_loss_weight: float = 0.5,
        name: str = "distiller",
        **kwargs: Any,
    ) -> None:
        _check_models(teacher, student)
        terms = make_terms(distillation_losses, distillation_loss_weights, student)
        # Mixed precision is the student's affair, whatever the global policy now is.
        kwargs.setdefault("dtype", student.dtype_policy)
        super().__init__(name=name, **kwargs)
        self.student = student
        self.student_loss_weight = _fraction(student_loss_weight)
        self._setup = _Setup(
            teacher=None
            if teacher is None
            else FeatureExtractor(teacher, _names(terms, "teacher"), "teacher"),
            student=FeatureExtractor(student, _names(terms, "student"), "student"),
            terms=tuple(terms),
            losses=distillation_losses,
            weights=distillation_loss_weights,
        )
        for term in terms:
            term.check(self._setup.teacher, self._setup.student)
        self.loss_layers = [layer for term in terms for layer in term.layers]
        self._student_tracker = keras.metrics.Mean(name="student_loss")
        self._distillation_tracker = keras.metrics.Mean(name="distillation_loss")
        several = terms if len(terms) > 1 else []
        self._term_trackers = [keras.metrics.Mean(name=term.name) for term in several]
        self.built = True

    @property
    def teacher(self) -> keras.Model | None:
        """The caller's teacher."""
        return None if self._setup.teacher is None else self._setup.teacher.model

    @property
    def distillation_losses(self) -> list[keras.distillation.DistillationLoss]:
        """The losses in order; several for an entry that was given per output."""
        return [term.loss for term in self._setup.terms]

    @property
    def distillation_loss_weights(self) -> list[float]:
        """The weight of each of `distillation_losses`."""
        return [term.weight for term in self._setup.terms]

    @property
    def output_names(self) -> list[str]:
        """The student's, so that losses and metrics can be given by name of output."""
        names: list[str] = self.student.output_names
        return names

    def compile(self, *args: Any, jit_compile: bool | str = False, **kwargs: Any) -> None:
        """As `keras.Model.compile`; `loss` is the student's own.

        Args:
            *args: As in Keras: optimizer, loss, ….
            jit_compile: Whether to compile with XLA. Off by default, because it makes steps
                several times slower on CPUs; on GPUs try `True`.
            **kwargs: As in Keras.

        Raises:
            TfcompError: If there is no loss although `student_loss_weight` is above 0.
        """
        loss = args[1] if len(args) > 1 else kwargs.get("loss")
        if loss is None and self.student_loss_weight > 0:
            raise TfcompError(
                f"The student's loss has the weight {self.student_loss_weight}: expected "
                "compile(..., loss=...), received none. For training without labels pass "
                "student_loss_weight=0.0 to the Distiller."
            )
        super().compile(*args, jit_compile=jit_compile, **kwargs)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles as it was compiled when it was saved."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.optimizer is not None:
            self.optimizer.build(self.trainable_variables)

    def build(self, input_shape: Any = None) -> None:
        """Nothing to do: both models are built."""

    def call(self, inputs: Any, training: bool | None = None, **kwargs: Any) -> Any:
        """The student's outputs."""
        if isinstance(inputs, CachedInputs):
            inputs = inputs.inputs
        return self.student(inputs, training=training, **kwargs)

    def train_step(self, data: Any) -> dict[str, Any]:
        """One update of the student, and of the losses' own layers."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        x, teacher = self._teacher_features(x)
        with tf.GradientTape() as tape:
            student = self._setup.student(x, training=True)
            loss = self._mixed_loss(data, teacher, student)
            loss = self.optimizer.scale_loss(loss)
        variables = self.trainable_variables
        if not variables:
            raise TfcompError(
                f"The student {self.student.name!r} cannot learn: expected trainable weights, "
                "received none. Set student.trainable = True and compile again."
            )
        self.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return self.compute_metrics(x, y, student.outputs, sample_weight=sample_weight)

    def _teacher_features(self, x: Any) -> tuple[Any, Features]:
        """The student's inputs, and what the teacher says of them."""
        teacher = self._setup.teacher
        if not isinstance(x, CachedInputs):
            if teacher is None:
                raise TfcompError(
                    "There is no teacher: expected data from cache_teacher(dataset, teacher), "
                    "received inputs alone. Pass the teacher to the Distiller."
                )
            return x, teacher(x, training=False).detached()
        for term in self._setup.terms:
            if term.teacher_layers is not None:
                raise TfcompError(
                    f"{term.name!r} compares the teacher's layer {term.teacher_layers!r}: expected "
                    "plain inputs, received data from cache_teacher, which holds the teacher's "
                    "outputs only. Train on the dataset itself."
                )
        student = self._setup.student.symbolic()
        outputs = x.teacher_outputs
        if student is not None and list(shapes(outputs)) == list(shapes(student.outputs)):
            # A dataset has made tuples of lists.
            outputs = keras.tree.pack_sequence_as(student.outputs, keras.tree.flatten(outputs))
        return x.inputs, Features(outputs, {})

    def _mixed_loss(self, data: Any, teacher: Features, student: Features) -> Any:
        """s·student + (1−s)·(Σ wᵢ·lossᵢ) + regularisation, for this replica's share."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        share, replicas = self.student_loss_weight, _replicas()
        values = [term.value(teacher, student, sample_weight) for term in self._setup.terms]
        weights = self.distillation_loss_weights
        distilled = sum(w * value for w, value in zip(weights, values, strict=True))
        floatx = keras.config.floatx()
        extra = sum(keras.ops.sum(keras.ops.cast(loss, floatx)) for loss in self.losses) / replicas
        if y is None and share > 0:
            raise TfcompError(
                f"The student's loss has the weight {share}: expected data of (x, y), received x "
                "alone. For training without labels pass student_loss_weight=0.0."
            )
        if self.loss is None or y is None:
            supervised, loss = extra, distilled + extra
        else:
            # What Keras computes here includes `extra`, hence it is added to both sides.
            supervised = self.compute_loss(x, y, student.outputs, sample_weight, training=True)
            loss = share * supervised + (1.0 - share) * (distilled + extra)
        count = tf.shape(next(part for part in keras.tree.flatten(x) if part is not None))[0]
        totals = {"loss": loss, "student_loss": supervised, "distillation_loss": distilled}
        totals |= {t.name: v for t, v in zip(self._term_trackers, values, strict=False)}
        for tracker in [self._loss_metric(), *self._trackers()]:
            tracker.update_state(totals[tracker.name] * replicas, sample_weight=count)
        return loss

    def _loss_metric(self) -> keras.metrics.Metric:
        """The metric that Keras reports as the loss."""
        return next(metric for metric in self.metrics if metric.name == "loss")

    def _trackers(self) -> list[keras.metrics.Metric]:
        return [self._student_tracker, self._distillation_tracker, *self._term_trackers]

    def test_step(self, data: Any) -> dict[str, Any]:
        """The student's evaluation, which knows of no teacher."""
        logs = super().test_step(data)
        ours = {tracker.name for tracker in self._trackers()}
        return {name: value for name, value in logs.items() if name not in ours}

    def get_config(self) -> dict[str, Any]:
        """Both models, the losses and their weights."""
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "teacher": None if self.teacher is None else serialize(self.teacher),
            "student": serialize(self.student),
            "distillation_losses": serialize(self._setup.losses),
            "distillation_loss_weights": self._setup.weights,
            "student_loss_weight": self.student_loss_weight,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Distiller:
        """The distiller that `get_config` described, with models of its own."""
        config = dict(config)
        for key in ("teacher", "student", "distillation_losses"):
            config[key] = keras.saving.deserialize_keras_object(
                config[key], custom_objects=custom_objects
            )
        return cls(**config)


@dataclasses.dataclass(frozen=True, eq=False)
class _Setup:
    """What a distiller works with. Keras does not look into it, so it tracks none of it: the
    teacher's weights are not the distiller's, nor are the extractors saved beside the models.
    """

    teacher: FeatureExtractor | None
    student: FeatureExtractor
    terms: tuple[Term, ...]
    losses: Any
    weights: Any


def _names(terms: list[Term], role: str) -> list[str]:
    """The layers that the terms want of one model."""
    wanted = [getattr(term, f"{role}_layers") for term in terms]
    return [name for name in keras.tree.flatten(wanted) if name is not None]


def _replicas() -> int:
    replicas: int = tf.distribute.get_strategy().num_replicas_in_sync
    return replicas


def _fraction(weight: Any) -> float:
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight <= 1:
        raise TfcompError(f"`student_loss_weight` must be in [0, 1]. Received: {weight!r}.")
    return float(weight)


def _check_models(teacher: Any, student: Any) -> None:
    for model, role in [(student, "student"), (teacher, "teacher")]:
        if model is None and role == "teacher":
            continue
        if not isinstance(model, keras.Model):
            raise TfcompError(f"The {role} must be a keras.Model. Received: {model!r}.")
        if not model.built:
            raise TfcompError(
                f"The {role} {model.name!r} has no weights yet: expected a built model, received "
                "an unbuilt one. Start it with keras.Input(shape), or call it on a batch."
            )
    if teacher is student:
        raise TfcompError(
            f"Teacher and student must be two models. Received: {student.name!r} as both. Copy it "
            "with keras.models.clone_model."
        )
    if teacher is not None and is_graph_model(teacher) and is_graph_model(student):
        _check_inputs(teacher, student)


def _check_inputs(teacher: keras.Model, student: keras.Model) -> None:
    expected, received = shapes(list(teacher.inputs)), shapes(list(student.inputs))
    same = list(expected) == list(received) and all(
        len(a) == len(b) and all(m == n or None in (m, n) for m, n in zip(a, b, strict=True))
        for a, b in zip(expected.values(), received.values(), strict=True)
    )
    if not same:
        raise TfcompError(
            f"Teacher and student must take the same inputs: expected {list(expected.values())} as "
            f"the teacher's, received {list(received.values())} from the student. Put a Resizing "
            "or Rescaling layer in front of one of them."
        )
