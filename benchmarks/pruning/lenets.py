"""LeNet-300-100 and LeNet-5 on MNIST: pruned while trained, and before.

- Trained and pruned in turns (Han et al. 2015, arXiv:1506.02626): 12 times fewer weights, by
  magnitude over all kernels. LeNet-5 a second time with dropout before and behind its dense layer,
  which after pruning is √(1/12) of what it was, as the paper's section 3.2 has it.
- At initialisation (Lee et al. 2018, arXiv:1810.02340): SNIP, beside GraSP, SynFlow, magnitude and
  random at the same sparsity.

All networks are trained by SGD with momentum, the rate falling as a half cosine. Kernels start from
a truncated normal scaled by the fan in, as SNIP's paper starts them. What is pruned at
initialisation is trained as the dense network is, and a second time by a recipe of its own: at a
higher rate, which most sparse networks bear and gain by, and with standardised images, as the
authors' program has them; and a third time with images that lie up to a pixel to a side, anew in
each epoch, which the paper does not do: it tells whether the masks or the data are what limits. All
are the same for all criteria. Rate and weight decay are the best of
a few for SNIP on held-out training images; Keras does not pass the decay through the momentum, so
that ten times the value is what papers write as an L2 penalty. The test set is looked at once, at
the end. One JSON for each run and seed; finished ones are kept.

    TFCOMP_DATA=DIR python -m benchmarks.pruning.lenets [--seeds=3] [--only=snip]
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

from benchmarks import results
from benchmarks.distillation.mnist import Split, batches, jitter, load
from tfcomp.callbacks import PruneWeights
from tfcomp.pruning import (
    SNIP,
    Criterion,
    GraSP,
    IterativeSparsity,
    Magnitude,
    RandomWeights,
    SynFlow,
    prune_at_initialization,
)

_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "which seeds to run")
_ONLY = flags.DEFINE_string("only", "", "runs whose name has this in it")

NAME = "pruning_lenets"
BATCH = 100
HAN = 1 - 1 / 12
START = "lecun_normal"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How long and how fast each network is trained."""

    epochs: int
    rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-3
    rounds: int = 4
    round_epochs: int = 5
    standardise: bool = False
    shift_pixels: int = 0
    dropout: tuple[float, float] = (0.0, 0.0)


RECIPES = {
    "lenet_300_100": Recipe(40),
    "lenet_5": Recipe(16, rate=0.02, weight_decay=5e-4),
}
SPARSE_RECIPES = {
    "lenet_300_100": Recipe(40, rate=0.3, weight_decay=2e-3, standardise=True),
    "lenet_5": Recipe(16, rate=0.1, weight_decay=2e-3, standardise=True),
}
SHIFTED_RECIPES = {
    name: dataclasses.replace(recipe, shift_pixels=1) for name, recipe in SPARSE_RECIPES.items()
}
DROPOUT_RECIPE = dataclasses.replace(RECIPES["lenet_5"], dropout=(0.25, 0.5))


def lenet_300_100() -> keras.Model:
    """Two hidden layers: 266,610 parameters."""
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((28, 28)),
            layers.Flatten(),
            layers.Dense(300, "relu", kernel_initializer=START),
            layers.Dense(100, "relu", kernel_initializer=START),
            layers.Dense(10, kernel_initializer=START),
        ],
        name="lenet_300_100",
    )


def lenet_5(dropout: tuple[float, float] = (0.0, 0.0)) -> keras.Model:
    """Two convolutions and a hidden layer, as in Caffe: 431,080 parameters."""
    layers = keras.layers
    before, behind = ([layers.Dropout(rate)] if rate else [] for rate in dropout)
    return keras.Sequential(
        [
            keras.Input((28, 28)),
            layers.Reshape((28, 28, 1)),
            layers.Conv2D(20, 5, kernel_initializer=START),
            layers.MaxPooling2D(2),
            layers.Conv2D(50, 5, kernel_initializer=START),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            *before,
            layers.Dense(500, "relu", kernel_initializer=START),
            *behind,
            layers.Dense(10, kernel_initializer=START),
        ],
        name="lenet_5",
    )


NETWORKS: dict[str, Callable[[], keras.Model]] = {
    "lenet_300_100": lenet_300_100,
    "lenet_5": lenet_5,
}
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def criterion_of(method: str, split: Split, seed: int) -> Criterion:
    """The criterion of a run, with a batch of the training images where it needs one."""
    chosen = np.random.default_rng(seed).choice(len(split.x), BATCH, replace=False)
    batch = (split.x[chosen], split.y[chosen].astype(np.int32))
    made: dict[str, Callable[[], Criterion]] = {
        "snip": lambda: SNIP(batch, LOSS),
        "grasp": lambda: GraSP(batch, LOSS),
        "synflow": SynFlow,
        "magnitude": Magnitude,
        "random": lambda: RandomWeights(seed),
    }
    return made[method]()


@dataclasses.dataclass(frozen=True)
class Run:
    """One network, trained in one way.

    Attributes:
        network: By name.
        method: "dense", "han", or a criterion at initialisation.
        sparsity: In the end.
        paper: Test error that the paper reports, in percent.
        fast: Whether by the recipe for sparse networks, at a higher rate.
        shifted: Whether by that recipe with each image a pixel to a side in each epoch.
        dropout: Whether with dropout.
    """

    network: str
    method: str
    sparsity: float = 0.0
    paper: float | None = None
    fast: bool = False
    shifted: bool = False
    dropout: bool = False

    @property
    def name(self) -> str:
        share = f"-{100 * self.sparsity:.0f}" if self.sparsity else ""
        named = {"-fast": self.fast, "-shifted": self.shifted, "-dropout": self.dropout}
        kind = next((name for name, on in named.items() if on), "")
        return f"{self.network}-{self.method}{share}{kind}"

    @property
    def recipe(self) -> Recipe:
        """How it is trained."""
        if self.dropout:
            return DROPOUT_RECIPE
        if self.shifted:
            return SHIFTED_RECIPES[self.network]
        return (SPARSE_RECIPES if self.fast else RECIPES)[self.network]


AT_START = [
    Run("lenet_300_100", "snip", 0.95, 1.6),
    Run("lenet_300_100", "snip", 0.98, 2.4),
    *(
        Run("lenet_300_100", method, share)
        for share in (0.95, 0.98)
        for method in ("grasp", "synflow", "magnitude", "random")
    ),
    Run("lenet_5", "snip", 0.99, 1.1),
    *(Run("lenet_5", method, 0.99) for method in ("grasp", "synflow", "magnitude", "random")),
]
RUNS = [
    Run("lenet_300_100", "dense", paper=1.64),
    Run("lenet_300_100", "han", HAN, 1.59),
    Run("lenet_5", "dense", paper=0.80),
    Run("lenet_5", "han", HAN, 0.77),
    Run("lenet_5", "han", HAN, 0.77, dropout=True),
    *AT_START,
    *(dataclasses.replace(run, fast=True) for run in AT_START),
    *(dataclasses.replace(run, shifted=True) for run in AT_START if run.method == "snip"),
]


def standardised(split: Split) -> Split:
    """Images of mean 0 and variance 1 over all pixels of the training set."""
    mean, deviation = split.x.mean(), split.x.std()
    x, x_judge = ((images - mean) / deviation for images in (split.x, split.x_judge))
    return dataclasses.replace(split, x=x, x_judge=x_judge)


def train(
    model: keras.Model, split: Split, recipe: Recipe, epochs: int, seed: int, callbacks: list[Any]
) -> None:
    """SGD with momentum, the rate falling to zero."""
    data = batches((tf.constant(split.x), tf.constant(split.y)), BATCH, seed)
    if recipe.shift_pixels:
        background = split.x.min()
        data = data.map(lambda x, y: (jitter(x - background, recipe.shift_pixels) + background, y))
    steps = epochs * (len(split.x) // BATCH)
    model.compile(
        keras.optimizers.SGD(
            keras.optimizers.schedules.CosineDecay(recipe.rate, steps),
            momentum=recipe.momentum,
            nesterov=True,
            weight_decay=recipe.weight_decay,
        ),
        LOSS,
        jit_compile=False,
        steps_per_execution=20,
    )
    model.fit(data, epochs=epochs, verbose=0, callbacks=callbacks)


def error(model: keras.Model, split: Split) -> float:
    """Wrong test images, in percent."""
    logits = model.predict(split.x_judge, batch_size=1000, verbose=0)
    return 100 * float(np.mean(np.argmax(logits, axis=-1) != split.y_judge))


def perform(run: Run, split: Split, seed: int) -> dict[str, Any]:
    """Trains one network, and judges it."""
    keras.utils.set_random_seed(seed)
    recipe = run.recipe
    model = lenet_5(recipe.dropout) if run.dropout else NETWORKS[run.network]()
    if recipe.standardise:
        split = standardised(split)
    start = time.process_time()
    found: dict[str, Any] = {}
    if run.method == "dense":
        train(model, split, recipe, recipe.epochs, seed, [])
    elif run.method == "han":
        train(model, split, recipe, recipe.epochs, seed, [])
        found["dense_error"] = error(model, split)
        steps = recipe.round_epochs * (len(split.x) // BATCH)
        schedule = IterativeSparsity(run.sparsity, recipe.rounds, steps)
        again = dataclasses.replace(recipe, rate=recipe.rate / 2)
        for layer in model.layers:
            if isinstance(layer, keras.layers.Dropout):
                layer.rate *= (1 - run.sparsity) ** 0.5
        prune = PruneWeights(schedule, scope="global", first=True, last=True)
        # As long after the last round as the network was trained before.
        epochs = recipe.epochs + (recipe.rounds - 1) * recipe.round_epochs
        train(model, split, again, epochs, seed, [prune])
    else:
        criterion = criterion_of(run.method, split, seed)
        model, report = prune_at_initialization(model, run.sparsity, criterion)
        found["collapsed"] = list(report.collapsed)
        train(model, split, recipe, recipe.epochs, seed, [PruneWeights.from_zeros()])
    kernels = [w for w in model.get_weights() if w.ndim > 1]
    zeros, size = sum(int((w == 0).sum()) for w in kernels), sum(w.size for w in kernels)
    return {
        **found,
        "error": error(model, split),
        "zeros": zeros,
        "weights": size,
        "sparsity": zeros / size,
        "core_seconds": time.process_time() - start,
    }


def main(_: list[str]) -> None:
    split = load(validate=False)
    for seed in map(int, _SEEDS.value):
        for run in RUNS:
            name = f"{NAME}/{run.name}-{seed}"
            if _ONLY.value not in run.name or results.load(name) is not None:
                continue
            found = perform(run, split, seed)
            budget = {**dataclasses.asdict(run.recipe), "batch": BATCH}
            results.save(name, seed=seed, budget=budget, results=found)
            print(run.name, seed, f"{found['error']:.2f} %", flush=True)


if __name__ == "__main__":
    app.run(main)
