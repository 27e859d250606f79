"""Training a student with a teacher's help, through `fit`."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfcomp.distillation.coefficients import STUDENT, Coefficient, LossSelection
from tfcomp.distillation.extractor import FeatureExtractor, Features
from tfcomp.distillation.inputs import (
    DistillationInputs,
    fit_size,
    is_absent,
    unpack,
    watched,
)
from tfcomp.distillation.losses.contrastive import told_of_index
from tfcomp.distillation.losses.per_sample import shapes
from tfcomp.distillation.losses.step import Step
from tfcomp.distillation.precision import policy_of
from tfcomp.distillation.setup import Setup, check_models, fraction
from tfcomp.distillation.terms import Term, check_weight, entry_weights, make_terms
from tfcomp.errors import TfcompError


@keras.saving.register_keras_serializable(package="tfcomp")
class Distiller(keras.Model):
    """Trains a student on its labels and on what a teacher says, with `compile` and `fit`.

    loss = s·student + (1−s)·Σ wᵢ·lossᵢ + regularisation

    s is `student_loss_weight`, wᵢ are `distillation_loss_weights`, and `student` is the loss
    given to `compile`. What the student's layers add with `add_loss` or regularisers counts
    once, as in training without a teacher. A paper that writes α·KD + (1−α)·CE has s = 1−α;
    one that writes CE + β·hint has s = 1/2 and w = β, at twice the learning rate.

    One step runs the student once and the teacher once, without a gradient and with
    `training=False`, however many losses there are; with data from `cache_teacher` the teacher
    is not run. Sample and class weights apply to the student's loss and to every distillation
    loss: Σ wₙ·lossₙ / N over the batch, as Keras reduces. Samples that `mix_unlabelled` marked
    count in the distillation losses only. `evaluate`, `predict` and a call are the student's
    alone. The teacher is not changed, its `trainable` flags included, and its weights are not
    among this model's; both models are saved with it.

    Teacher and student may take images of different sizes: each gets a batch of another size
    resized bilinearly to its own, in `evaluate` and `predict` as well.

    Several replicas make the update of one where batches divide by their number; a last batch
    that does not counts by the replicas' means, as in Keras: batch with `drop_remainder=True`.

    s and w may be assigned between and during trainings and take effect with the next step, see
    `tfcomp.callbacks.LossWeightSchedule`. For stages see `tfcomp.callbacks.DistillationStage`.

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
        check_models(teacher, student)
        terms = make_terms(distillation_losses, distillation_loss_weights, student)
        # Mixed precision is the student's affair, whatever the global policy now is.
        kwargs.setdefault("dtype", policy_of([student]))
        super().__init__(name=name, **{"autocast": False, **kwargs})
        self.student = student
        for term in terms:
            term.resolve(teacher, student)
        self._setup = Setup(
            teacher=None
            if teacher is None
            else FeatureExtractor(teacher, _names(terms, "teacher"), "teacher"),
            student=FeatureExtractor(student, _names(terms, "student"), "student"),
            terms=tuple(terms),
            losses=distillation_losses,
            weights=entry_weights(distillation_losses, distillation_loss_weights),
            share=Coefficient(fraction(student_loss_weight), "student_loss_weight"),
            selection=LossSelection(term.name for term in terms),
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
    def loss_names(self) -> list[str]:
        """The names of `distillation_losses`, each its metric's when there are several."""
        return [term.name for term in self._setup.terms]

    @property
    def loss_selection(self) -> LossSelection:
        """Which losses train, for callbacks; after a change make the train function anew."""
        return self._setup.selection

    @property
    def student_loss_weight(self) -> float:
        """The weight of the student's own loss; assign to change it."""
        return self._setup.share.number

    @student_loss_weight.setter
    def student_loss_weight(self, weight: float) -> None:
        weight = fraction(weight)
        compiled = getattr(self, "compiled", False)
        if weight > 0 and ((compiled and self.loss is None) or self._setup.unlabelled):
            raise TfcompError(
                f"The student's loss cannot have the weight {weight}: expected compile(loss=...) "
                "and data with labels, received none. Leave the weight at 0."
            )
        self._setup.share.assign(weight)

    @property
    def distillation_loss_weights(self) -> list[float]:
        """The weight of each of `distillation_losses`; assign a list to change them."""
        return [term.weight.number for term in self._setup.terms]

    @distillation_loss_weights.setter
    def distillation_loss_weights(self, weights: Sequence[float]) -> None:
        terms = self._setup.terms
        if len(weights) != len(terms):
            raise TfcompError(
                f"There must be one weight for each loss: expected {len(terms)} for "
                f"{', '.join(self.loss_names)}, received {len(weights)}."
            )
        asked = [check_weight(weight) for weight in weights]
        for term, weight in zip(terms, asked, strict=True):
            if any(w != weight for t, w in zip(terms, asked, strict=True) if t.entry == term.entry):
                raise TfcompError(
                    f"Losses per output of one entry share their weight: expected equal ones for "
                    f"entry {term.entry}, received {asked}. Give several entries instead."
                )
            term.weight.assign(weight)

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

    def fit(self, *args: Any, **kwargs: Any) -> keras.callbacks.History:
        """As `keras.Model.fit`.

        Args:
            *args: As in Keras.
            **kwargs: As in Keras.

        Raises:
            TfcompError: If the data does not fit the losses.
        """
        try:
            return super().fit(*args, **kwargs)
        except tf.errors.InvalidArgumentError as error:
            # Known while a compiled step runs, which can but stop with many lines.
            line = told_of_index(error)
            if line is None:
                raise
            raise TfcompError(line) from None

    def make_train_function(self, force: bool = False) -> Any:
        """As in Keras. `fit` calls it first: stages of an earlier, interrupted one are over."""
        selection = self._setup.selection
        if not force:
            selection.clear()
            force = selection.traced not in (None, selection.active())
        if self.optimizer is not None and not self.optimizer.built:
            # For all variables: a stage's step may reach but some of them.
            with self.distribute_strategy.scope():
                self.optimizer.build(self.trainable_variables)
        return super().make_train_function(force=force)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles as it was compiled when it was saved."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.optimizer is not None:
            self.optimizer.build(self.trainable_variables)

    def build(self, input_shape: Any = None) -> None:
        """Nothing to do: both models are built."""

    def call(self, inputs: Any, training: bool | None = None, **kwargs: Any) -> Any:
        """The student's outputs."""
        inputs = fit_size(unpack(inputs).inputs, self._setup.student_size)
        return self.student(inputs, training=training, **kwargs)

    def train_step(self, data: Any) -> dict[str, Any]:
        """One update of the student, and of the losses' own layers."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        known = unpack(x)
        partial = not self._setup.selection.is_active(STUDENT)
        self._setup.selection.traced = self._setup.selection.active()
        with contextlib.ExitStack() as stack:
            teacher, teacher_gradient = self._teacher_features(known, stack)
            with tf.GradientTape(persistent=partial) as tape:
                student, step = self._student_features(known, y, teacher_gradient, stack)
                parts = self.step_losses(known, y, sample_weight, teacher, student, step)
                loss = self.optimizer.scale_loss(parts.total)
        variables = self._trained_variables()
        if partial:
            # What the stage's losses do not reach rests, weight decay and regularisers included.
            reached = tape.gradient(parts.distilled, variables)
            pairs = zip(variables, reached, strict=True)
            variables = [variable for variable, gradient in pairs if gradient is not None]
        if not variables:
            raise TfcompError(
                f"The student {self.student.name!r} cannot learn: expected trainable weights, "
                "received none. Set student.trainable = True and compile again."
            )
        gradients = tape.gradient(loss, variables)
        self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return self._step_metrics(known, y, student.outputs, sample_weight)

    def _trained_variables(self) -> list[Any]:
        """The trainable variables but those of the losses that do not train now."""
        setup = self._setup
        resting = {
            id(variable)
            for term in setup.terms
            if not setup.selection.is_active(term.name)
            for layer in term.layers
            for variable in layer.trainable_variables
        }
        return [variable for variable in self.trainable_variables if id(variable) not in resting]

    def _teacher_features(
        self, known: DistillationInputs, stack: contextlib.ExitStack
    ) -> tuple[Features, Callable[[Any], Any] | None]:
        """What the teacher says, and a function that differentiates it by its inputs."""
        teacher = self._setup.teacher
        if is_absent(known.teacher_outputs):
            if teacher is None:
                raise TfcompError(
                    "There is no teacher: expected data from cache_teacher(dataset, teacher), "
                    "received inputs alone. Pass the teacher to the Distiller."
                )
            wanted = any(term.needs_input_gradients for term in self._setup.terms)
            inputs = fit_size(known.inputs, self._setup.teacher_size)
            inputs, gradient = stack.enter_context(watched(inputs, wanted))
            features = teacher(inputs, training=False)
            return (features if wanted else features.detached()), gradient
        return self._cached_features(known), None

    def _cached_features(self, known: DistillationInputs) -> Features:
        layers = dict(known.teacher_layers) if known.teacher_layers else {}
        for term in self._setup.terms:
            names = [n for n in keras.tree.flatten(term.teacher_layers) if n is not None]
            missing = [name for name in names if name not in layers]
            if missing or term.needs_input_gradients:
                wants = f"the teacher's layers {missing}" if missing else "the teacher's gradients"
                raise TfcompError(
                    f"{term.name!r} compares {wants}: expected them in the data, received data "
                    f"from cache_teacher with outputs and the layers {list(layers)}. Pass "
                    "layers=[...] to cache_teacher, or train on the dataset itself."
                )
        student = self._setup.student.symbolic()
        outputs = known.teacher_outputs
        if student is not None and list(shapes(outputs)) == list(shapes(student.outputs)):
            # A dataset has made tuples of lists.
            outputs = keras.tree.pack_sequence_as(student.outputs, keras.tree.flatten(outputs))
        return Features(outputs, layers)

    def _student_features(
        self,
        known: DistillationInputs,
        labels: Any,
        teacher_gradient: Callable[[Any], Any] | None,
        stack: contextlib.ExitStack,
    ) -> tuple[Features, Step]:
        """The student's forward pass, and what losses may ask about the step."""
        setup = self._setup
        inputs = fit_size(known.inputs, setup.student_size)
        wanted = any(term.needs_input_gradients for term in setup.terms)
        inputs, gradient = stack.enter_context(watched(inputs, wanted))

        def ask_teacher(inputs: Any) -> Any:
            if setup.teacher is None:
                raise TfcompError(
                    "A loss runs the teacher: expected one, received None. Pass it to the "
                    "Distiller."
                )
            outputs = setup.teacher.model(fit_size(inputs, setup.teacher_size), training=False)
            return keras.tree.map_structure(keras.ops.stop_gradient, outputs)

        def ask_student(inputs: Any) -> Any:
            return self.student(fit_size(inputs, setup.student_size), training=True)

        def detached_gradient(values: Any) -> Any:
            if teacher_gradient is None:
                raise TfcompError("Cached teachers have no gradients. Train on the dataset itself.")
            return keras.tree.map_structure(keras.ops.stop_gradient, teacher_gradient(values))

        index = None if is_absent(known.index) else known.index
        ask = (ask_teacher, ask_student, detached_gradient, gradient)
        step = Step(inputs, labels, index, *ask, labelled=_labelled(known))
        return setup.student(inputs, training=True), step

    def step_losses(
        self,
        known: DistillationInputs,
        y: Any,
        sample_weight: Any,
        teacher: Features,
        student: Features,
        step: Step,
    ) -> StepLosses:
        """s·student + (1−s)·(Σ wᵢ·lossᵢ) + regularisation, for this replica's share."""
        setup, replicas = self._setup, _replicas()
        values = {t.name: t.value(teacher, student, sample_weight, step) for t in setup.terms}
        distilled = sum(
            term.weight.variable.value * values[term.name]
            for term in setup.terms
            if setup.selection.is_active(term.name)
        )
        floatx = keras.config.floatx()
        extra = sum(keras.ops.sum(keras.ops.cast(loss, floatx)) for loss in self.losses) / replicas
        if y is None and setup.share.number > 0:
            raise TfcompError(
                f"The student's loss has the weight {setup.share.number}: expected data of (x, y), "
                "received x alone. For training without labels pass student_loss_weight=0.0."
            )
        setup.unlabelled = self.loss is None or y is None
        if setup.unlabelled:
            supervised, loss = extra, distilled + extra
        else:
            weights = _labelled_weight(_labelled(known), sample_weight)
            # What Keras computes here includes `extra`, hence it is added to both sides.
            supervised = self.compute_loss(step.inputs, y, student.outputs, weights, training=True)
            share = setup.share.variable.value
            if setup.selection.is_active(STUDENT):
                loss = share * supervised + (1.0 - share) * (distilled + extra)
            else:
                loss = distilled + extra
        inputs = keras.tree.flatten(known.inputs)
        count = tf.shape(next(part for part in inputs if part is not None))[0]
        totals = {
            "loss": loss,
            "student_loss": supervised,
            "distillation_loss": distilled,
            **values,
        }
        for tracker in [self._loss_metric(), *self._trackers()]:
            tracker.update_state(totals[tracker.name] * replicas, sample_weight=count)
        return StepLosses(loss, distilled)

    def _step_metrics(
        self, known: DistillationInputs, y: Any, outputs: Any, sample_weight: Any
    ) -> dict[str, Any]:
        """The metrics, to which samples without a label are unknown."""
        inputs, labelled = known.inputs, _labelled(known)
        if labelled is not None and y is not None:
            y, outputs, sample_weight = keras.tree.map_structure(
                lambda part: None if part is None else tf.boolean_mask(part, labelled),
                (y, outputs, sample_weight),
            )
        return self.compute_metrics(inputs, y, outputs, sample_weight=sample_weight)

    def _loss_metric(self) -> keras.metrics.Metric:
        """The metric that Keras reports as the loss."""
        return next(metric for metric in self.metrics if metric.name == "loss")

    def _trackers(self) -> list[keras.metrics.Metric]:
        return [self._student_tracker, self._distillation_tracker, *self._term_trackers]

    def test_step(self, data: Any) -> dict[str, Any]:
        """The student's evaluation, which knows of no teacher."""
        ours = {tracker.name for tracker in self._trackers()}
        if self.loss is None:
            # Trained without labels, it has no loss to report, but may have metrics.
            x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
            outputs = self(x, training=False)
            logs = self.compute_metrics(x, y, outputs, sample_weight=sample_weight)
            ours.add("loss")
        else:
            logs = super().test_step(data)
        return {name: value for name, value in logs.items() if name not in ours}

    def get_config(self) -> dict[str, Any]:
        """Both models, the losses and their weights."""
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "teacher": None if self.teacher is None else serialize(self.teacher),
            "student": serialize(self.student),
            "distillation_losses": serialize(self._setup.losses),
            "distillation_loss_weights": self._setup.entry_weights(),
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
class StepLosses:
    """The losses of one step: what is minimised, and the distillation losses' share of it."""

    total: Any
    distilled: Any


def _names(terms: list[Term], role: str) -> list[str]:
    """The layers that the terms want of one model."""
    wanted = [getattr(term, f"{role}_layers") for term in terms]
    return [name for name in keras.tree.flatten(wanted) if name is not None]


def _replicas() -> int:
    replicas: int = tf.distribute.get_strategy().num_replicas_in_sync
    return replicas


def _labelled(known: DistillationInputs) -> Any:
    """Whether each sample has a label, bool; None where all have one."""
    return None if is_absent(known.labelled) else keras.ops.cast(known.labelled, "bool")


def _labelled_weight(labelled: Any, sample_weight: Any) -> Any:
    """Weights for the student's loss: none where there is no label."""
    if labelled is None:
        return sample_weight
    labelled = keras.ops.cast(labelled, keras.config.floatx())
    if sample_weight is None:
        return labelled
    return keras.tree.map_structure(
        lambda w: keras.ops.cast(keras.ops.reshape(w, (-1,)), labelled.dtype) * labelled,
        sample_weight,
    )
