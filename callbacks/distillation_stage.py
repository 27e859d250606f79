"""A stage of distillation that has its own losses."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

import keras

from tfcomp.distillation import Distiller
from tfcomp.errors import TfcompError


@keras.saving.register_keras_serializable(package="tfcomp")
class DistillationStage(keras.callbacks.Callback):
    """Trains on some losses alone for some epochs; before and after, on all the others.

    In its epochs, loss = Σ wᵢ·lossᵢ over the stage's losses, plus regularisation; what these do
    not reach is not updated: with a hint on a middle layer, the student is trained up to that
    layer. In all other epochs these losses train nothing. Several stages follow one another by
    `begin`. All losses are logged throughout. The optimizer goes on with what it has: its step
    count, moments and learning rate.

    FitNets: `DistillationStage("fitnets_hint", epochs=10)`, then the response. Activation
    boundaries as an initialisation: `DistillationStage("activation_boundaries", epochs=10)`.

    The stage in force follows from the number of the epoch alone, so that a training that goes
    on with `initial_epoch` or `BackupAndRestore` is in the right one. The step is traced anew
    where a stage begins or ends.

    Args:
        losses: Names of losses, their metrics'; `"student"` is the student's own.
        epochs: Length of the stage.
        begin: Its first epoch, counted from 0.

    Raises:
        TfcompError: If an argument is out of range; in `fit`, if the model is no `Distiller`,
            there is no such loss, or none would be left for the other epochs.

    Example:
        >>> import keras, numpy as np
        >>> from tfcomp.distillation import Distiller, FitNetsHint, KnowledgeDistillation
        >>> def net(units):
        ...     layers = [keras.layers.Dense(units, name="hidden"), keras.layers.Dense(3)]
        ...     return keras.Sequential([keras.Input((4,)), *layers])
        >>> losses = [KnowledgeDistillation(), FitNetsHint("hidden", "hidden")]
        >>> distiller = Distiller(net(16), net(4), losses, student_loss_weight=0.0)
        >>> distiller.compile("sgd")
        >>> before = distiller.student.get_weights()[2]
        >>> stage = DistillationStage("fitnets_hint", epochs=2)
        >>> _ = distiller.fit(np.ones((8, 4)), epochs=2, verbose=0, callbacks=[stage])
        >>> bool((distiller.student.get_weights()[2] == before).all())
        True

    Reference:
        Romero, Ballas, Kahou, Chassang, Gatta, Bengio (2014), FitNets: Hints for Thin Deep
        Nets, arXiv:1412.6550.
    """

    def __init__(self, losses: str | Iterable[str], epochs: int, begin: int = 0) -> None:
        super().__init__()
        self.losses = [losses] if isinstance(losses, str) else list(losses)
        for name, value, least in (("epochs", epochs, 1), ("begin", begin, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise TfcompError(
                    f"`{name}` must be a whole number ≥ {least}. Received: {value!r}."
                )
        if not self.losses:
            raise TfcompError("`losses` must name at least one loss. Received: none.")
        self.epochs = epochs
        self.begin = begin

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        if not isinstance(self.model, Distiller):
            raise TfcompError(
                "DistillationStage must be given to fit of a tfcomp.distillation.Distiller. "
                f"Received: {type(self.model).__name__}."
            )
        self.model.loss_selection.reserve(self.losses)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        selection = self.model.loss_selection
        if self.begin <= epoch < self.begin + self.epochs:
            selection.begin(self.losses)
        else:
            selection.end(self.losses)
        if not selection.active():
            raise TfcompError(
                f"No loss would train in epoch {epoch}: expected losses that belong to no stage, "
                f"received stages for all of {', '.join(selection.names)}. Train as many epochs "
                "as the stages last."
            )
        if selection.active() != selection.traced:
            self.model.make_train_function(force=True)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"losses": self.losses, "epochs": self.epochs, "begin": self.begin}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """The callback whose `get_config()` is `config`."""
        return cls(**config)
