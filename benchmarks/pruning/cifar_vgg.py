"""Channels cut out of a small VGG on CIFAR-10: network slimming, HRank and others, and random.

A VGG with BatchNormalization is trained on 10,000 images, a class-balanced subset that is always
the same, with mirrored and shifted views; once plainly, once with an L1 penalty on the scales.
Channels are cut until half, or 70 %, of the multiply-adds are gone, and what is left is trained
on for a few epochs, the same for all. A seed draws the first weights, views and their order; all
methods of a seed but network slimming cut the same trained network.

- Network slimming (Liu et al. 2017, arXiv:1708.06519): the penalised network, channels of all
  layers compared by |γ|.
- HRank (Lin et al. 2020, arXiv:2002.10179): ranks of the feature maps of 500 training images, the
  same share in each layer (the paper chooses shares by hand, layer by layer).
- Taylor (Molchanov et al. 2016, arXiv:1611.06440): all layers compared, cut at once (the paper
  cuts one channel at a time and trains between).
- L1 norms, FPGM and APoZ: the same share in each layer.
- Random: the control, the same share in each layer.

The penalty is 2e-3, 20 times the paper's: with SGD the pull on a scale over a whole training is λ
times the sum of the rates, which is 66 times less in this short training than in the paper's 160
epochs of 50,000 images. Neither this nor another number was chosen by results. One JSON for each
run and seed; finished ones are kept, trained networks are kept in --work.

    TFCOMP_DATA=DIR python -m benchmarks.pruning.cifar_vgg [--work=DIR] [--seeds=0,1,2]
        [--only=hrank]
"""

from __future__ import annotations

import dataclasses
import pathlib
import time
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

from benchmarks import results
from benchmarks.distillation import cifar
from tfcomp.callbacks import NetworkSlimming
from tfcomp.files import replacing
from tfcomp.profiling import profile
from tfcomp.pruning import (
    FPGM,
    APoZ,
    BatchNormScale,
    Budget,
    Criterion,
    HRank,
    L1Norm,
    Random,
    Taylor,
    shrink,
)

_WORK = flags.DEFINE_string("work", "build/cifar_vgg", "folder for the trained networks")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "which seeds to run")
_ONLY = flags.DEFINE_string("only", "", "runs whose name has this in it")

NAME = "pruning_cifar_vgg"
# Channels of the convolutions; "pool" halves the maps.
WIDTHS: tuple[int | str, ...] = (24, "pool", 48, "pool", 96, 96, "pool", 96, 96)
GLOBAL = ("slimming", "taylor")
METHODS = ("slimming", "hrank", "taylor", "l1", "fpgm", "apoz", "random")
CUTS = (0.5, 0.7)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How networks are trained: SGD with Nesterov momentum, rates falling as half a cosine.

    Attributes:
        epochs: Of the network that is to be cut; each shows a new view of every image.
        batch: Images in a batch.
        rate: The highest, after a warm-up of one epoch.
        weight_decay: Decoupled; with momentum 0.9 it acts like a tenth of it on the loss.
        tuning_epochs: Of the network that was cut.
        tuning_rate: The highest there.
        strength: λ of network slimming.
        images: Training images that criteria look at.
    """

    epochs: int = 20
    batch: int = 50
    rate: float = 0.05
    weight_decay: float = 5e-3
    tuning_epochs: int = 5
    tuning_rate: float = 0.01
    strength: float = 2e-3
    images: int = 500


RECIPE = Recipe()


@dataclasses.dataclass(frozen=True)
class Run:
    """A method, and the share of the multiply-adds that it takes away."""

    method: str
    cut: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.method}-{100 * self.cut:.0f}" if self.cut else self.method


# The network that is not cut is trained on as well.
RUNS = [Run("dense"), *(Run(method, cut) for cut in CUTS for method in METHODS)]


def vgg(seed: int) -> keras.Model:
    """Six convolutions, each with BatchNormalization, and a dense layer: 304,114 parameters."""
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    parts: list[Any] = [keras.Input((32, 32, 3)), layers.Rescaling(1 / 127.5, offset=-1.0)]
    for width in WIDTHS:
        if width == "pool":
            parts.append(layers.MaxPooling2D(2))
            continue
        start = "he_normal"
        parts.append(
            layers.Conv2D(width, 3, padding="same", use_bias=False, kernel_initializer=start)
        )
        parts += [layers.BatchNormalization(momentum=0.9), layers.ReLU()]
    return keras.Sequential([*parts, layers.GlobalAveragePooling2D(), layers.Dense(10)], name="vgg")


def train(
    model: keras.Model,
    data: cifar.Cifar,
    epochs: int,
    rate: float,
    views: tuple[int, int],
    callbacks: list[keras.callbacks.Callback],
) -> None:
    """Trains in place.

    Args:
        model: The network.
        data: The images.
        epochs: Passes over the training images.
        rate: The highest.
        views: What the views are drawn from, with the epoch.
        callbacks: For `fit`.
    """
    steps = len(data.x) // RECIPE.batch
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, (epochs - 1) * steps, warmup_target=rate, warmup_steps=steps
    )
    optimizer = keras.optimizers.SGD(
        schedule, momentum=0.9, nesterov=True, weight_decay=RECIPE.weight_decay
    )
    model.compile(optimizer, LOSS)
    # One `fit`, so that callbacks see one training.
    model.fit(
        _batches(data, epochs, views),
        epochs=epochs,
        steps_per_epoch=steps,
        verbose=0,
        callbacks=callbacks,
    )


def _batches(data: cifar.Cifar, epochs: int, views: tuple[int, int]) -> Any:
    """A generator of batches of all epochs."""
    for epoch in range(epochs):
        images = cifar.augmented(data.x, *views, epoch)
        order = np.random.default_rng((*views, epoch)).permutation(len(images))
        for start in range(0, len(order) - RECIPE.batch + 1, RECIPE.batch):
            rows = order[start : start + RECIPE.batch]
            yield images[rows], data.y[rows]


def trained(kind: str, data: cifar.Cifar, seed: int, work: pathlib.Path) -> keras.Model:
    """The network that is to be cut, "dense" or "slimming"; from `work` if it is there."""
    path = work / f"{kind}-{seed}.keras"
    if path.exists():
        return keras.saving.load_model(path)
    model, start = vgg(seed), time.process_time()
    callbacks = [NetworkSlimming(RECIPE.strength)] if kind == "slimming" else []
    train(model, data, RECIPE.epochs, RECIPE.rate, (3, seed), callbacks)
    work.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        model.save(temporary)
    print(f"{path.stem} trained in {time.process_time() - start:.0f} core-seconds", flush=True)
    return model


def criterion_of(method: str, data: cifar.Cifar, seed: int) -> Criterion:
    """The criterion, with training images where it looks at some."""
    rows = np.random.default_rng((4, seed)).choice(len(data.x), RECIPE.images, replace=False)
    images, labels = data.x[rows], data.y[rows]
    made: dict[str, Any] = {
        "slimming": BatchNormScale,
        "hrank": lambda: HRank(images),
        "taylor": lambda: Taylor(LOSS, (images, labels)),
        "l1": L1Norm,
        "fpgm": FPGM,
        "apoz": lambda: APoZ(images),
        "random": lambda: Random(seed),
    }
    criterion: Criterion = made[method]()
    return criterion


def perform(run: Run, data: cifar.Cifar, seed: int, work: pathlib.Path) -> dict[str, Any]:
    """Cuts, trains on, judges."""
    model = trained("slimming" if run.method == "slimming" else "dense", data, seed, work)
    whole, start = profile(model), time.process_time()
    found: dict[str, Any] = {"trained_accuracy": _accuracy(model, data)}
    if run.cut:
        scope = "global" if run.method in GLOBAL else "local"
        criterion = criterion_of(run.method, data, seed)
        model, report = shrink(
            model, budget=Budget(macs=1 - run.cut), criterion=criterion, scope=scope
        )
        found["channels"] = [
            layer.after for layer in report.layers if layer.kind == keras.layers.Conv2D.__name__
        ]
    cost = profile(model)
    found |= {"cut_seconds": time.process_time() - start, "before": _accuracy(model, data)}
    train(model, data, RECIPE.tuning_epochs, RECIPE.tuning_rate, (5, seed), [])
    return {
        **found,
        "after": _accuracy(model, data),
        "parameters": cost.parameters / whole.parameters,
        "macs": cost.macs / whole.macs,
        "dense_parameters": whole.parameters,
        "dense_macs": whole.macs,
        "core_seconds": time.process_time() - start,
    }


def _accuracy(model: keras.Model, data: cifar.Cifar) -> float:
    """Of the test images."""
    return cifar.accuracy(model, data.x_test, data.y_test)


def stored(run: Run, seed: int) -> dict[str, Any] | None:
    """What a finished run of this recipe has found."""
    saved = results.load(f"{NAME}/{run.name}-{seed}")
    if saved is None or saved["budget"] != dataclasses.asdict(RECIPE):
        return None
    found: dict[str, Any] = saved["results"]
    return found


def main(_: list[str]) -> None:
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    data, work = cifar.load(), pathlib.Path(_WORK.value)
    for seed in map(int, _SEEDS.value):
        for run in RUNS:
            if _ONLY.value not in run.name or stored(run, seed) is not None:
                continue
            found = perform(run, data, seed, work)
            budget = dataclasses.asdict(RECIPE)
            results.save(f"{NAME}/{run.name}-{seed}", seed=seed, budget=budget, results=found)
            print(run.name, seed, f"{found['before']:.4f} -> {found['after']:.4f}", flush=True)


if __name__ == "__main__":
    app.run(main)
