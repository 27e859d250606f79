"""Training of one stage: optimiser, loss, teacher and progress."""

from __future__ import annotations

import dataclasses
import time
from typing import Any, Protocol

import keras
import numpy as np

from tfcomp.datasets import Dataset
from tfcomp.distillation import Distiller, KnowledgeDistillation
from tfcomp.distillation.losses.ending import endings
from tfcomp.recipes.pipeline import training_batches
from tfcomp.recipes.recipe import Data


class Schedule(Protocol):
    """The settings of a stage that trains."""

    @property
    def epochs(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a training leaves besides the weights.

    Attributes:
        seconds: Wall-clock time of `fit`.
        history: For each metric, its value after each epoch.
    """

    seconds: float
    history: dict[str, list[float]]


class Progress(keras.callbacks.Callback):
    """Tells after each batch how far the training is."""

    def __init__(self, report: Any, epochs: int) -> None:
        super().__init__()
        self._report = report
        self._epochs = epochs
        self._epoch = 0

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        share = (batch + 1) / max(self.params.get("steps") or 1, 1)
        self._report((self._epoch + min(share, 1.0)) / self._epochs, self._text(logs))

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._report((epoch + 1) / self._epochs, self._text(logs))

    def _text(self, logs: dict[str, float] | None) -> str:
        accuracy = (logs or {}).get("accuracy")
        shown = "" if accuracy is None else f", training accuracy {accuracy:.3f}"
        return f"epoch {self._epoch + 1}/{self._epochs}{shown}"


def fit(
    model: keras.Model,
    dataset: Dataset,
    settings: Data,
    stage: Schedule,
    seed: int,
    *,
    teacher: keras.Model | None = None,
    callbacks: tuple[keras.callbacks.Callback, ...] = (),
    report: Any = None,
) -> Trained:
    """Trains `model` in place with Adam and a learning rate that falls as a cosine.

    Args:
        model: A classifier that ends in logits or in a softmax.
        dataset: What to train on.
        settings: Batch size and augmentation.
        stage: Epochs and learning rate; with a teacher, its temperature and weights as well.
        seed: Fixes the order of the data and dropout.
        teacher: A model to distil from.
        callbacks: More Keras callbacks.
        report: Called with (share done, text) as the training proceeds.

    Returns:
        Time and history.
    """
    keras.utils.set_random_seed(seed)
    batches = training_batches(dataset, settings, seed)
    trainer = model if teacher is None else _distiller(model, teacher, stage)
    trainer.compile(
        optimizer=keras.optimizers.Adam(
            keras.optimizers.schedules.CosineDecay(
                stage.learning_rate, stage.epochs * int(batches.cardinality())
            )
        ),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=endings(model)[0] == "logits"),
        metrics=["accuracy"],
        jit_compile=False,
    )
    progress = (Progress(report, stage.epochs),) if report else ()
    start = time.perf_counter()
    history = trainer.fit(
        batches, epochs=stage.epochs, shuffle=False, verbose=0, callbacks=[*callbacks, *progress]
    )
    seconds = time.perf_counter() - start
    numbers = {key: [float(v) for v in values] for key, values in history.history.items()}
    return Trained(seconds, numbers)


def accuracy(predictions: Any, dataset: Dataset) -> float:
    """Share of the test examples whose largest output is at the right class."""
    return float(np.mean(np.argmax(predictions, axis=-1) == dataset.y_test))


def _distiller(model: keras.Model, teacher: keras.Model, stage: Any) -> Distiller:
    return Distiller(
        teacher,
        model,
        KnowledgeDistillation(temperature=stage.temperature),
        student_loss_weight=stage.student_loss_weight,
    )
