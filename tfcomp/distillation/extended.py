"""Distillers that bring losses of their own beside the caller's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from tfcomp.distillation.distiller import Distiller
from tfcomp.distillation.losses.per_sample import PerSampleLoss
from tfcomp.distillation.terms import Term
from tfcomp.errors import TfcompError


class ExtendedDistiller(Distiller):
    """A `Distiller` whose own losses follow the caller's, in all but its configuration.

    Args:
        teacher: As in `Distiller`.
        student: As in `Distiller`.
        distillation_losses: The caller's, as in `Distiller`; there may be none.
        distillation_loss_weights: The caller's.
        own_losses: Losses that the subclass makes anew from its configuration.
        own_weights: A weight for each of them.
        **kwargs: Passed to `Distiller`.

    Example:
        >>> import keras
        >>> from tfcomp.distillation import KnowledgeDistillation, LogitRegression
        >>> class Both(ExtendedDistiller):
        ...     def __init__(self, teacher, student, losses=None):
        ...         own = [LogitRegression()]
        ...         super().__init__(teacher, student, losses, None, own, [0.5])
        >>> models = [keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]) for _ in "ab"]
        >>> both = Both(*models, KnowledgeDistillation())
        >>> both.loss_names, both.distillation_loss_weights
        (['knowledge_distillation', 'logit_regression'], [1.0, 0.5])
        >>> both.get_config()["distillation_loss_weights"]
        [1.0]
    """

    def __init__(
        self,
        teacher: keras.Model | None,
        student: keras.Model,
        distillation_losses: Any,
        distillation_loss_weights: Any,
        own_losses: Sequence[PerSampleLoss],
        own_weights: Sequence[float],
        **kwargs: Any,
    ) -> None:
        given = _listed(distillation_losses)
        weights = [1.0] * len(given)
        if distillation_loss_weights is not None:
            weights = _listed(distillation_loss_weights)
        if len(weights) != len(given):
            raise TfcompError(
                f"There must be one weight for each loss: expected {len(given)} "
                f"distillation_loss_weights, received {len(weights)}."
            )
        losses, weights = [*given, *own_losses], [*weights, *own_weights]
        super().__init__(teacher, student, losses, weights, **kwargs)
        self._given = len(given)

    def own_terms(self) -> list[Term]:
        """Those of the distiller's own losses."""
        return [term for term in self._setup.terms if term.entry >= self._given]

    def get_config(self) -> dict[str, Any]:
        """Both models, the caller's losses and their weights."""
        config = super().get_config()
        for key in ("distillation_losses", "distillation_loss_weights"):
            config[key] = config[key][: self._given]
        return config


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]
