"""CIFAR-10 on two cores: a fixed training subset, augmented views of it, two networks, a teacher.

Everything follows from seeds: the subset, the views and their order in each epoch are made by
NumPy generators that are seeded with what they are for, so that runs can stop and go on, and runs
of different methods with the same seed see the same batches.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from tfcomp import datasets
from tfcomp.architectures import residual_network
from tfcomp.files import replacing

Array = npt.NDArray[Any]

IMAGES_PER_CLASS = 1_000
HELD_OUT_PER_CLASS = 500
PADDING = 4
SUBSET_SEED = 2026


@dataclasses.dataclass(frozen=True)
class Network:
    """A residual network: channels of its three stages, and blocks in each.

    Both networks have maps of 16×16, 8×8 and 4×4 positions.
    """

    widths: tuple[int, int, int]
    blocks: int

    def build(self, seed: int, name: str) -> keras.Model:
        """The network with its weights drawn from the seed."""
        keras.utils.set_random_seed(seed)
        return residual_network((32, 32, 3), 10, self.widths, self.blocks, name)


STUDENT = Network((16, 32, 64), blocks=1)
TEACHER = Network((48, 96, 192), blocks=2)


@dataclasses.dataclass(frozen=True)
class TeacherBudget:
    """How the teacher is trained: SGD with Nesterov momentum, one cosine after a warm-up.

    Attributes:
        epochs: Passes over the subset, each with a new crop and flip of every image.
        batch: Images in a batch.
        learning_rate: The highest.
        weight_decay: Decoupled; with momentum 0.9 it acts like a tenth of it on the loss.
        seed: Of weights, order and augmentation.
    """

    epochs: int = 36
    batch: int = 50
    learning_rate: float = 0.05
    weight_decay: float = 5e-3
    seed: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Cifar:
    """The subset that everybody trains on, images held out for choices, and the test set."""

    x: Array
    y: Array
    x_held_out: Array
    y_held_out: Array
    x_test: Array
    y_test: Array


def load() -> Cifar:
    """A class-balanced subset of the training images, always the same; all test images."""
    full = datasets.load("cifar10")
    rng = np.random.default_rng(SUBSET_SEED)
    chosen, held_out = [], []
    for label in range(full.classes):
        of_class = rng.permutation(np.flatnonzero(full.y_train == label))
        chosen.append(of_class[:IMAGES_PER_CLASS])
        held_out.append(of_class[IMAGES_PER_CLASS : IMAGES_PER_CLASS + HELD_OUT_PER_CLASS])
    rows, other = (np.sort(np.concatenate(part)) for part in (chosen, held_out))
    y_train, y_test = (y.astype("int64") for y in (full.y_train, full.y_test))
    return Cifar(
        full.x_train[rows],
        y_train[rows],
        full.x_train[other],
        y_train[other],
        full.x_test,
        y_test,
    )


def augmented(images: Array, *seed: int) -> Array:
    """Each image mirrored or not, and cropped from its zero-padded copy; uint8 as it was."""
    rng = np.random.default_rng(seed)
    count, height, width, _ = images.shape
    padded = np.pad(images, ((0, 0), (PADDING, PADDING), (PADDING, PADDING), (0, 0)))
    offsets: Array = rng.integers(0, 2 * PADDING + 1, (2, count, 1))
    rows, columns = offsets[0] + np.arange(height), offsets[1] + np.arange(width)
    mirrored = rng.random((count, 1)) < 0.5
    columns = np.where(mirrored, columns[:, ::-1], columns)
    cropped: Array = padded[np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return cropped


def accuracy(model: keras.Model, images: Array, labels: Array) -> float:
    """The fraction that is classified rightly."""
    logits = model.predict(images, batch_size=500, verbose=0)
    return float(np.mean(np.argmax(logits, axis=-1) == labels))


def trained_teacher(
    folder: pathlib.Path,
    data: Cifar,
    budget: TeacherBudget = TeacherBudget(),
    report: Callable[[str], None] = print,
) -> keras.Model:
    """The teacher, from `folder` if it is there; its training goes on after the last epoch kept.

    Args:
        folder: Where its weights are kept.
        data: The training subset.
        budget: How it is trained.
        report: Receives a line per epoch.
    """
    path = folder / f"teacher-{budget.seed}.keras"
    steps = len(data.x) // budget.batch
    if path.exists():
        model = keras.saving.load_model(path)
    else:
        model = TEACHER.build(budget.seed, "teacher")
        model.compile(_teacher_optimizer(budget, steps), _cross_entropy(), metrics=["accuracy"])
    for epoch in range(int(model.optimizer.iterations) // steps, budget.epochs):
        order = np.random.default_rng((budget.seed, epoch)).permutation(len(data.x))
        images = augmented(data.x, 1, budget.seed, epoch)[order]
        history = model.fit(
            images, data.y[order], budget.batch, epochs=1, verbose=0, shuffle=False
        ).history
        os.makedirs(folder, exist_ok=True)
        with replacing(path) as temporary:
            model.save(temporary)
        report(
            f"teacher: epoch {epoch + 1}/{budget.epochs}, loss {history['loss'][0]:.3f}, "
            f"accuracy on its batches {history['accuracy'][0]:.4f}"
        )
    return model


def _teacher_optimizer(budget: TeacherBudget, steps: int) -> keras.optimizers.Optimizer:
    warm_up = 2 * steps
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0,
        budget.epochs * steps - warm_up,
        warmup_target=budget.learning_rate,
        warmup_steps=warm_up,
    )
    return keras.optimizers.SGD(
        schedule, momentum=0.9, nesterov=True, weight_decay=budget.weight_decay
    )


def _cross_entropy() -> keras.losses.Loss:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)
