"""What a loss may ask about a step of training, beyond the tensors that it compares."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """One batch, and both models as far as a loss may use them.

    Attributes:
        inputs: What the student received.
        labels: The labels; None in training without them.
        index: Each sample's position in its dataset, int64, of shape (batch,), from
            `with_indices`; None without.
        teacher: Runs the teacher once more, on other inputs: its outputs, without gradients.
        student: Runs the student once more, on other inputs, with `training=True`.
        teacher_gradient: d(Σ values)/d(inputs of the teacher) for values that were made from
            what the teacher gave in this step.
        student_gradient: The same for the student; may be differentiated again with respect to
            the student's weights. Both need a loss with `needs_input_gradients`.
        labelled: Whether each sample's label is one, bool of shape (batch,), from
            `mix_unlabelled`; None where all are.
    """

    inputs: Any
    labels: Any = None
    index: Any = None
    teacher: Callable[[Any], Any] | None = None
    student: Callable[[Any], Any] | None = None
    teacher_gradient: Callable[[Any], Any] | None = None
    student_gradient: Callable[[Any], Any] | None = None
    labelled: Any = None
