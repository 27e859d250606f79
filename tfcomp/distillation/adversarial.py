"""A student that learns to be taken for its teacher."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal, get_args

import keras
import tensorflow as tf

from tfcomp.distillation.extended import ExtendedDistiller
from tfcomp.distillation.extractor import Features
from tfcomp.distillation.losses.arguments import weight
from tfcomp.distillation.losses.jacobian import comparable
from tfcomp.distillation.losses.maps import float32
from tfcomp.distillation.losses.per_sample import describe
from tfcomp.distillation.losses.response_loss import Pair, ResponseLoss
from tfcomp.distillation.losses.step import Step
from tfcomp.distillation.terms import Term
from tfcomp.errors import TfcompError
from tfcomp.graph import is_graph_model

Objective = Literal["minimax", "non_saturating"]


@keras.saving.register_keras_serializable(package="tfcomp")
class LogitL1(ResponseLoss):
    """The sum over classes of |z_s − z_t|.

    Where either model ends in softmax, whose logits are known up to a constant, z is log p in
    both. Positions are averaged and several outputs summed.

    Args:
        teacher_from_logits: Whether the teacher's outputs are logits. None: read from its last
            layer when a `Distiller` is made.
        student_from_logits: The same for the student.
        name: Name of its metric; by default `logit_l1`.

    Example:
        >>> import keras
        >>> teacher, student = keras.ops.array([[3.0, -1.0]]), keras.ops.array([[1.0, 0.0]])
        >>> float(LogitL1().per_sample(teacher, student)[0])
        3.0

    Reference:
        Xu, Hsu, Huang (2017), Training Shallow and Thin Networks for Acceleration via Knowledge
        Distillation with Conditional Adversarial Networks, arXiv:1709.00513.
    """

    def __init__(
        self,
        teacher_from_logits: bool | None = None,
        student_from_logits: bool | None = None,
        name: str | None = "logit_l1",
    ) -> None:
        super().__init__(teacher_from_logits, student_from_logits, name)

    def compare(self, pair: Pair) -> Any:
        """Values per sample and position."""
        pair = comparable(pair)
        return keras.ops.sum(keras.ops.abs(pair.student - pair.teacher), axis=-1)


@keras.saving.register_keras_serializable(package="tfcomp")
class AdversarialDistiller(ExtendedDistiller):
    """A `Distiller` whose student learns to be taken for the teacher by a discriminator of logits.

    loss = s·student + (1−s)·(Σ wᵢ·lossᵢ + a·adversarial) + regularisation

    The discriminator D looks at logits z of one sample and says who gave them, P(teacher | z),
    and in an auxiliary head of which class the sample is, P(y | z), y its label:

    - D minimises ½·[−log P(teacher | z_t) − log P(student | z_s) − log P(y | z_t)
      − log P(y | z_s)] plus its own regularisation;
    - adversarial = ½·[log P(student | z_s) − log P(y | z_s)] by the `objective` `"minimax"`,
      ½·[−log P(teacher | z_s) − log P(y | z_s)] by `"non_saturating"`, whose gradient does not
      vanish when D is sure.

    In each step D is updated first, on this batch, by an optimizer of its own, with
    `training=True`; the student is then judged by the updated D with `training=False`. Both
    optimizers are saved with the distiller and restored. As in the paper the other loss is by
    default the L1 distance of the logits, and with s = 1/2 and all weights at 1 the three parts
    are as in its sum, halved: take twice the learning rate. Randomness, for which the paper has
    dropout, is the student's own affair, and D's if it has any. A strong D is held back by
    regularisers on its kernels, which the paper studies, or by a lower learning rate.

    Where either model ends in softmax, z is log p in both. Sample and class weights apply to D
    as to the student. Labels are needed, whole numbers or one-hot; samples that
    `mix_unlabelled` marked have no part in −log P(y | z). With data from `cache_teacher` the
    teacher is not run.

    Logs: those of `Distiller`, in which the adversarial part is one of the distillation losses,
    `adversarial_loss`; and `discriminator_loss` without regularisation, and
    `discriminator_accuracy`, the fraction of logits whose giver D recognised before its update.

    Args:
        teacher: As in `Distiller`; a classifier with one output.
        student: Likewise.
        distillation_losses: The losses beside the adversarial one, as in `Distiller`. None for
            `LogitL1()`; an empty list for none.
        distillation_loss_weights: A weight ≥ 0 for each of them; 1.0 by default.
        student_loss_weight: s, in [0, 1].
        adversarial_weight: a ≥ 0; afterwards the last of `distillation_loss_weights`.
        objective: What the student wants of D, see above.
        discriminator: A model from logits of shape (batch, classes) to the list of the logit of
            P(teacher) of shape (batch, 1), and the classes' logits. None: dense layers of 128,
            256 and 128 ReLUs below the two heads.
        teacher_from_logits: Whether the teacher's outputs are logits. None: read from its last
            layer.
        student_from_logits: The same for the student.
        name: Name of the model.
        **kwargs: Passed to `keras.Model`.

    Raises:
        TfcompError: As `Distiller`; if there are several outputs, or the discriminator does not
            fit them.

    Example:
        >>> import keras, numpy as np
        >>> from tfcomp.distillation import AdversarialDistiller
        >>> def net(units):
        ...     layers = [keras.layers.Dense(units, "relu"), keras.layers.Dense(3)]
        ...     return keras.Sequential([keras.Input((4,)), *layers])
        >>> distiller = AdversarialDistiller(net(32), net(4))
        >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        >>> distiller.compile("adam", loss=loss, discriminator_optimizer="adam")
        >>> x, y = np.random.rand(64, 4), np.random.randint(3, size=64)
        >>> sorted(distiller.fit(x, y, verbose=0).history)[:4]
        ['adversarial_loss', 'discriminator_accuracy', 'discriminator_loss', 'distillation_loss']

    Reference:
        Xu, Hsu, Huang (2017), Training Shallow and Thin Networks for Acceleration via Knowledge
        Distillation with Conditional Adversarial Networks, arXiv:1709.00513.
    """

    def __init__(
        self,
        teacher: keras.Model | None,
        student: keras.Model,
        distillation_losses: Any = None,
        distillation_loss_weights: Any = None,
        student_loss_weight: float = 0.5,
        adversarial_weight: float = 1.0,
        objective: Objective = "minimax",
        discriminator: keras.Model | None = None,
        teacher_from_logits: bool | None = None,
        student_from_logits: bool | None = None,
        name: str = "adversarial_distiller",
        **kwargs: Any,
    ) -> None:
        if objective not in get_args(Objective):
            raise TfcompError(
                f"`objective` must be one of {', '.join(map(repr, get_args(Objective)))}. "
                f"Received: {objective!r}."
            )
        weight("adversarial_weight", adversarial_weight)
        flags: dict[str, Any] = {
            "teacher_from_logits": teacher_from_logits,
            "student_from_logits": student_from_logits,
        }
        if discriminator is None:
            discriminator = _discriminator(_classes(student))
        adversarial = _Adversarial(discriminator, objective, **flags)
        super().__init__(
            teacher,
            student,
            LogitL1(**flags) if distillation_losses is None else distillation_losses,
            distillation_loss_weights,
            [adversarial],
            [adversarial_weight],
            student_loss_weight=student_loss_weight,
            name=name,
            **kwargs,
        )
        self._discriminator_trackers = [
            keras.metrics.Mean(name=f"discriminator_{what}") for what in ("loss", "accuracy")
        ]
        discrimination = _Discrimination(adversarial, self._discriminator_trackers[1])
        term = self.own_terms()[0]
        self._game = _Game(
            discriminator,
            term,
            dataclasses.replace(term, loss=discrimination, name="discriminator_loss"),
            {"objective": objective, **flags},
        )

    @property
    def discriminator(self) -> keras.Model:
        """The model that tells the two apart; no part of the student's training."""
        return self._game.discriminator

    @property
    def discriminator_optimizer(self) -> keras.optimizers.Optimizer | None:
        """The optimizer of the discriminator; None before `compile`."""
        return self._game.optimizer

    def compile(self, *args: Any, discriminator_optimizer: Any = "adam", **kwargs: Any) -> None:
        """As `Distiller.compile`.

        Args:
            *args: As in Keras: the student's optimizer, its loss, ….
            discriminator_optimizer: The discriminator's own.
            **kwargs: As in `Distiller.compile`.

        Raises:
            TfcompError: As `Distiller.compile`; if both optimizers are one, or the
                discriminator's averages weights, which Keras does for one optimizer alone.
        """
        super().compile(*args, **kwargs)
        variables = self.discriminator.trainable_variables
        if not variables:
            raise TfcompError(
                f"The discriminator {self.discriminator.name!r} cannot learn: expected trainable "
                "weights, received none. Set discriminator.trainable = True."
            )
        optimizer = keras.optimizers.get(discriminator_optimizer)
        used = [self.optimizer, getattr(self.optimizer, "inner_optimizer", None)]
        if any(optimizer is one for one in used):
            raise TfcompError(
                "Student and discriminator need an optimizer each: expected two, received "
                f"{optimizer.name!r} for both. Make another."
            )
        if getattr(optimizer, "inner_optimizer", optimizer).use_ema:
            raise TfcompError(
                f"The discriminator's weights cannot be averaged: expected use_ema=False, received "
                f"{optimizer.name!r} with use_ema=True. Leave it out."
            )
        self._game.given = optimizer
        scaled = keras.optimizers.LossScaleOptimizer
        policies = {self.dtype_policy.name, self.discriminator.dtype_policy.name}
        with self.distribute_strategy.scope():
            if "mixed_float16" in policies and not isinstance(optimizer, scaled):
                optimizer = scaled(optimizer, name=f"{optimizer.name}_loss_scale")
            if not optimizer.built:
                optimizer.build(variables)
        self._game.optimizer = optimizer

    def get_compile_config(self) -> dict[str, Any]:
        """What `compile` was called with."""
        config = dict(super().get_compile_config() or {})
        if config:
            serialize = keras.saving.serialize_keras_object
            config["discriminator_optimizer"] = serialize(self._game.given)
        return config

    def step_losses(
        self,
        known: Any,
        y: Any,
        sample_weight: Any,
        teacher: Features,
        student: Features,
        step: Step,
    ) -> Any:
        """The student's losses, after an update of the discriminator."""
        if self._setup.selection.is_active(self._game.term.name):
            self._train_discriminator(teacher, student.detached(), sample_weight, step)
        return super().step_losses(known, y, sample_weight, teacher, student, step)

    def _train_discriminator(
        self, teacher: Features, student: Features, sample_weight: Any, step: Step
    ) -> None:
        game = self._game
        if game.optimizer is None:
            raise TfcompError("Training needs a compiled distiller: call compile() first.")
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        with tf.GradientTape() as tape:
            loss = game.discrimination.value(teacher, student, sample_weight, step)
            extra = sum(float32(one) for one in self.discriminator.losses)
            scaled = game.optimizer.scale_loss(loss + extra / replicas)
        variables = self.discriminator.trainable_variables
        gradients = tape.gradient(scaled, variables)
        game.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        count = tf.shape(keras.tree.flatten(student.outputs)[0])[0]
        self._discriminator_trackers[0].update_state(loss * replicas, sample_weight=count)

    def test_step(self, data: Any) -> dict[str, Any]:
        """The student's evaluation, which knows of no discriminator."""
        logs = super().test_step(data)
        ours = {tracker.name for tracker in self._discriminator_trackers}
        return {name: value for name, value in logs.items() if name not in ours}

    def get_config(self) -> dict[str, Any]:
        """All models, the losses and their weights."""
        return {
            **super().get_config(),
            **self._game.config,
            "adversarial_weight": self._game.term.weight.number,
            "discriminator": keras.saving.serialize_keras_object(self.discriminator),
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: Any = None
    ) -> AdversarialDistiller:
        """The distiller that `get_config` described, with models of its own."""
        load = keras.saving.deserialize_keras_object
        discriminator = load(config["discriminator"], custom_objects=custom_objects)
        config = {**config, "discriminator": discriminator}
        made: AdversarialDistiller = super().from_config(config, custom_objects)
        return made


@dataclasses.dataclass(eq=False)
class _Game:
    """The discriminator's side. Keras does not look into it, so that its weights are not among
    those that the student's optimizer trains.
    """

    discriminator: keras.Model
    term: Term
    discrimination: Term
    config: dict[str, Any]
    optimizer: Any = None
    given: Any = None


class _Adversarial(ResponseLoss):
    """What the student wants of the discriminator."""

    needs_step: ClassVar[bool] = True

    def __init__(self, discriminator: keras.Model, objective: Objective, **flags: Any) -> None:
        super().__init__(name="adversarial_loss", **flags)
        self.discriminator = discriminator
        self.objective = objective

    def validate_outputs(self, teacher_outputs: Any, student_outputs: Any) -> None:
        """Raises `TfcompError` unless both are one output of the same classes."""
        super().validate_outputs(teacher_outputs, student_outputs)
        if keras.tree.is_nested(student_outputs) or len(student_outputs.shape) != 2:
            raise TfcompError(
                "A discriminator looks at one output of shape (batch, classes). Received: "
                f"{describe(student_outputs)}. Make the models alike with keras.Model(inputs, "
                "output)."
            )
        if is_graph_model(self.discriminator):
            classes = student_outputs.shape[-1]
            inputs = keras.tree.flatten(self.discriminator.inputs)
            if len(inputs) != 1 or tuple(inputs[0].shape[1:]) != (classes,):
                raise TfcompError(
                    f"The discriminator must take logits: expected an input of shape (None, "
                    f"{classes}), received {describe(inputs)}. Begin with keras.Input({classes},)."
                )
            _check_judgement(list(self.discriminator.outputs), classes)

    def judge(self, logits: Any, training: bool) -> tuple[Any, Any]:
        """The logit of P(teacher), of shape (batch,), and the classes' log-probabilities."""
        judgement = self.discriminator(logits, training=training)
        _check_judgement(judgement, logits.shape[-1])
        source, classes = (float32(part) for part in judgement)
        return source[:, 0], keras.ops.log_softmax(classes, axis=-1)

    def seen(self, teacher_outputs: Any, student_outputs: Any) -> Pair:
        """The logits that the discriminator looks at."""
        return comparable(self.pairs(teacher_outputs, student_outputs)[0])

    def per_sample(self, teacher_outputs: Any, student_outputs: Any, *step: Any) -> Any:
        """Values of shape (batch,)."""
        source, classes = self.judge(self.seen(teacher_outputs, student_outputs).student, False)
        if self.objective == "minimax":
            deceived = keras.ops.log_sigmoid(-source)
        else:
            deceived = -keras.ops.log_sigmoid(source)
        return 0.5 * (deceived - _log_likelihood(classes, step[0]))


class _Discrimination(ResponseLoss):
    """What the discriminator minimises; `accuracy` is told how often it is right."""

    needs_step: ClassVar[bool] = True

    def __init__(self, adversarial: _Adversarial, accuracy: keras.metrics.Metric) -> None:
        self.adversarial = adversarial
        self.accuracy = accuracy
        self.name = "discriminator_loss"

    def validate_outputs(self, teacher_outputs: Any, student_outputs: Any) -> None:
        """As for the student."""
        self.adversarial.validate_outputs(teacher_outputs, student_outputs)

    def per_sample(self, teacher_outputs: Any, student_outputs: Any, *step: Any) -> Any:
        """Values of shape (batch,)."""
        ops = keras.ops
        pair = self.adversarial.seen(teacher_outputs, student_outputs)
        # One pass, so that a BatchNorm sees both.
        both = ops.concatenate([pair.teacher, pair.student], axis=0)
        sources, classes = self.adversarial.judge(both, training=True)
        of_teacher, of_student = ops.split(sources, 2)
        right = ops.concatenate([of_teacher > 0, of_student < 0], axis=0)
        self.accuracy.update_state(float32(right))
        told_apart = ops.log_sigmoid(of_teacher) + ops.log_sigmoid(-of_student)
        likelihoods = [_log_likelihood(part, step[0]) for part in ops.split(classes, 2)]
        return -0.5 * (told_apart + likelihoods[0] + likelihoods[1])


def _discriminator(classes: int) -> keras.Model:
    """Three dense layers below two heads."""
    dense = keras.layers.Dense
    hidden = inputs = keras.Input((classes,), name="logits", dtype="float32")
    for number, units in enumerate((128, 256, 128), start=1):
        hidden = dense(units, "relu", dtype="float32", name=f"hidden_{number}")(hidden)
    heads = [
        dense(1, dtype="float32", name="source")(hidden),
        dense(classes, dtype="float32", name="classes")(hidden),
    ]
    return keras.Model(inputs, heads, name="discriminator", dtype="float32")


def _classes(student: Any) -> int:
    shapes = [tuple(o.shape) for o in student.outputs] if is_graph_model(student) else []
    if len(shapes) != 1 or len(shapes[0]) != 2 or shapes[0][1] is None:
        raise TfcompError(
            "A discriminator looks at one output of shape (batch, classes). Received: "
            f"{shapes or 'a subclassed student'}. Make the models alike with keras.Model(inputs, "
            "output), or pass a discriminator."
        )
    return int(shapes[0][1])


def _check_judgement(judgement: Any, classes: int) -> None:
    parts = list(judgement) if isinstance(judgement, (list, tuple)) else [judgement]
    shapes = [tuple(part.shape[1:]) for part in parts]
    if shapes != [(1,), (classes,)]:
        raise TfcompError(
            f"The discriminator must give who and which class: expected outputs of shape (None, "
            f"1) and (None, {classes}), received {describe(parts)}. Give it two heads."
        )


def _log_likelihood(log_probabilities: Any, step: Step) -> Any:
    """log P(y | z) of shape (batch,); 0 for a sample without a label."""
    ops = keras.ops
    if step.labels is None:
        raise TfcompError(
            "A discriminator learns the classes too: expected data of (x, y), received x alone. "
            "Train on a labelled dataset."
        )
    labels = keras.tree.flatten(step.labels)[0]
    classes = log_probabilities.shape[-1]
    if len(labels.shape) == 1 or labels.shape[-1] == 1:
        labels = ops.one_hot(ops.cast(ops.reshape(labels, (-1,)), "int32"), classes)
    found = ops.sum(float32(labels) * log_probabilities, axis=-1)
    return found if step.labelled is None else found * float32(step.labelled)
