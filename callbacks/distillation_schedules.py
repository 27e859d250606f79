"""Temperatures and weights of distillation that change in the course of `fit`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import keras

from tfcomp.distillation import Distiller
from tfcomp.errors import TfcompError

# A schedule of Keras, which is a function of the step, or a function of the epoch.
Schedule = Callable[[Any], Any]


class _Scheduled(keras.callbacks.Callback):
    """Sets a value before each step, or before each epoch."""

    def __init__(self, schedule: Schedule, loss: str | None) -> None:
        super().__init__()
        if not callable(schedule):
            raise TfcompError(
                "`schedule` must be a keras.optimizers.schedules.LearningRateSchedule or a "
                f"function of the epoch. Received: {schedule!r}."
            )
        self.schedule = schedule
        self.loss = loss

    @property
    def _by_step(self) -> bool:
        return isinstance(self.schedule, keras.optimizers.schedules.LearningRateSchedule)

    def _assign(self, value: float) -> None:
        raise NotImplementedError

    def _check(self) -> None:
        """Refuses models and losses that have nothing to set."""
        if not isinstance(self.model, Distiller):
            raise TfcompError(
                f"{type(self).__name__} must be given to fit of a tfcomp.distillation.Distiller. "
                f"Received: {type(self.model).__name__}."
            )
        known = [*self.model.loss_names, "student"]
        if self.loss is not None and self.loss not in known:
            raise TfcompError(
                f"There is no loss {self.loss!r} to schedule: expected one of "
                f"{', '.join(map(repr, known))}, received {self.loss!r}."
            )

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._check()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if not self._by_step:
            self._assign(float(self.schedule(epoch)))

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if self._by_step:
            # The optimizer's count is saved with the model, so that a schedule goes on with it.
            step = self.model.optimizer.iterations.value
            self._assign(float(keras.ops.convert_to_numpy(self.schedule(step))))

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"schedule": keras.saving.serialize_keras_object(self.schedule), "loss": self.loss}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """The callback whose `get_config()` is `config`."""
        schedule = keras.saving.deserialize_keras_object(config["schedule"])
        return cls(**{**config, "schedule": schedule})


@keras.saving.register_keras_serializable(package="tfcomp")
class TemperatureSchedule(_Scheduled):
    """Changes the temperature T of distillation losses while a `Distiller` trains.

    With a schedule of Keras, T is a function of the steps that the optimizer has taken, and set
    before each step (before each execution, with `steps_per_execution`). With a function, it is
    one of the epoch, counted from 0, and set before each epoch. The last value stays.

    Args:
        schedule: `schedule(step)`, one of `keras.optimizers.schedules`, or a function
            `schedule(epoch)`, that returns T > 0.
        loss: Name of one loss, its metric's; None for all losses with a temperature.

    Raises:
        TfcompError: In `fit`, if the model is no `Distiller`, or no loss has a temperature.

    Example:
        >>> import keras, numpy as np
        >>> from tfcomp.distillation import Distiller, KnowledgeDistillation
        >>> def net():
        ...     return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> loss = KnowledgeDistillation(temperature=8.0)
        >>> distiller = Distiller(net(), net(), loss, student_loss_weight=0.0)
        >>> distiller.compile("sgd")
        >>> cooling = TemperatureSchedule(lambda epoch: 8.0 / (epoch + 1))
        >>> _ = distiller.fit(np.ones((8, 4)), epochs=4, verbose=0, callbacks=[cooling])
        >>> loss.temperature
        2.0
    """

    def __init__(self, schedule: Schedule, loss: str | None = None) -> None:
        super().__init__(schedule, loss)

    def _losses(self) -> list[Any]:
        pairs = zip(self.model.loss_names, self.model.distillation_losses, strict=True)
        return [
            loss
            for name, loss in pairs
            if self.loss in (None, name) and hasattr(loss, "temperature")
        ]

    def _check(self) -> None:
        super()._check()
        if not self._losses():
            whose = "No loss has" if self.loss is None else f"Loss {self.loss!r} does not have"
            raise TfcompError(
                f"{whose} a temperature: expected KnowledgeDistillation or another with one, "
                f"received {self.loss or ', '.join(self.model.loss_names)}."
            )

    def _assign(self, value: float) -> None:
        for loss in self._losses():
            loss.temperature = value


@keras.saving.register_keras_serializable(package="tfcomp")
class LossWeightSchedule(_Scheduled):
    """Changes the weight of one loss while a `Distiller` trains.

    With a schedule of Keras, the weight is a function of the steps that the optimizer has
    taken, and set before each step (before each execution, with `steps_per_execution`). With a
    function, it is one of the epoch, counted from 0, and set before each epoch. The last value
    stays.

    FitNets' λ, which decays linearly, is the weight of the response's loss: with
    `student_loss_weight=0.5`, λ is that loss's weight.

    Args:
        schedule: `schedule(step)`, one of `keras.optimizers.schedules`, or a function
            `schedule(epoch)`, that returns a weight ≥ 0, in [0, 1] for the student's.
        loss: Name of the loss, its metric's; `"student"` for `student_loss_weight`.

    Raises:
        TfcompError: In `fit`, if the model is no `Distiller` or has no such loss.

    Example:
        >>> import keras, numpy as np
        >>> from tfcomp.distillation import Distiller, KnowledgeDistillation
        >>> def net():
        ...     return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> distiller = Distiller(net(), net(), KnowledgeDistillation(), student_loss_weight=0.0)
        >>> distiller.compile("sgd")
        >>> decay = keras.optimizers.schedules.PolynomialDecay(4.0, decay_steps=2)
        >>> callback = LossWeightSchedule(decay, loss="knowledge_distillation")
        >>> _ = distiller.fit(np.ones((96, 4)), verbose=0, callbacks=[callback])
        >>> print([round(weight, 4) for weight in distiller.distillation_loss_weights])
        [0.0001]

    Reference:
        Romero, Ballas, Kahou, Chassang, Gatta, Bengio (2014), FitNets: Hints for Thin Deep
        Nets, arXiv:1412.6550.
    """

    def __init__(self, schedule: Schedule, loss: str = "student") -> None:
        super().__init__(schedule, loss)

    def _assign(self, value: float) -> None:
        if self.loss == "student":
            self.model.student_loss_weight = value
            return
        weights = self.model.distillation_loss_weights
        weights[self.model.loss_names.index(self.loss)] = value
        self.model.distillation_loss_weights = weights
