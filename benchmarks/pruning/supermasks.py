"""Supermasks on MNIST with LeNet-300-100: accuracy of weights that are never trained.

- By criteria: the network is trained as the authors' code has it (Adam, batches of 60), masks are
  made from its weights before and after, and put on those before, as they are and as constants of
  the same sign. One share after the other, half the rate in the output layer.
- Trained: one number for each weight, with and without rescaling. Judged by ten drawn masks, as in
  the paper, and by the likeliest and the expected one.

Zhou, Lan, Liu and Yosinski 2019, arXiv:1905.01067. Weights are Glorot normal, as theirs. The last
10,000 training images train nothing: they choose each criterion's share, and with `--validate` the
rate of the trained masks. The test set is looked at once. One JSON for each run and seed; finished
ones are kept.

    TFCOMP_DATA=DIR python -m benchmarks.pruning.supermasks [--seeds=0,1,2] [--only=trained]
    TFCOMP_DATA=DIR python -m benchmarks.pruning.supermasks --validate
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import time
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

from benchmarks import results
from benchmarks.distillation.mnist import HELD_OUT, batches, load
from benchmarks.pruning.lenets import LOSS, lenet_300_100
from tfcomp.pruning import SupermaskTrainer, supermask
from tfcomp.pruning.supermask import CRITERIA

_FLAGS = flags.FLAGS  # `seeds` and `only` are those of lenets
_VALIDATE = flags.DEFINE_boolean("validate", False, "choose the rate on held-out images")
_RATES = flags.DEFINE_list("rates", ["30", "100", "300"], "rates to choose from")

NAME = "pruning_supermasks"
# 0.8 of what is left stays from one to the next, in the output layer 0.9.
POWERS = (2, 3, 4, 5, 6, 7, 8, 10, 12, 16)
DRAWS = 10


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How the dense network is trained, and the masks."""

    dense_epochs: int = 55
    dense_batch: int = 60
    dense_rate: float = 1.2e-3
    mask_epochs: int = 20
    mask_batch: int = 250
    mask_momentum: float = 0.9


@dataclasses.dataclass(frozen=True)
class Run:
    """Masks that are trained, over weights of one kind.

    Attributes:
        kept: "initial" or "signed_constant".
        rescale: Whether the weights left are scaled up.
        rate: The best of 30, 100, 300, 1000 and 3000 on held-out images.
        paper: Test accuracy that the paper reports, in percent.
    """

    kept: Literal["initial", "signed_constant"]
    rescale: bool
    rate: float
    paper: float

    @property
    def name(self) -> str:
        return f"trained-{self.kept}{'-rescaled' if self.rescale else ''}"


TRAINED = [
    Run("initial", False, 1000, 95.3),
    Run("signed_constant", False, 1000, 96.4),
    Run("initial", True, 300, 97.8),
    Run("signed_constant", True, 300, 98.0),
]
# By criteria, of the best one at the best share, and what it is called here.
CRITERIA_RUN = "criteria"
PAPER: dict[str, float] = {"initial": 79.3, "signed_constant": 86.3}


@dataclasses.dataclass(frozen=True, eq=False)
class Data:
    """Images and labels: to train on, to choose by, to judge by."""

    train: Any
    chosen_by: Any
    test: Any


def data() -> Data:
    """MNIST in three parts."""
    split = load(validate=False)
    first = (tf.constant(split.x[:-HELD_OUT]), tf.constant(split.y[:-HELD_OUT]))
    held_out = (split.x[-HELD_OUT:], split.y[-HELD_OUT:])
    return Data(first, held_out, (split.x_judge, split.y_judge))


def fresh(seed: int) -> keras.Model:
    """The network before training."""
    keras.utils.set_random_seed(seed)
    model = lenet_300_100()
    for number, variable in enumerate(model.trainable_variables):
        if len(variable.shape) > 1:
            normal = keras.initializers.GlorotNormal(seed=100 * seed + number)
            variable.assign(normal(variable.shape))
    return model


def accuracy(model: keras.Model, images: Any) -> float:
    """Right images, in percent."""
    x, y = images
    logits = model.predict(x, batch_size=1000, verbose=0)
    return 100 * float(np.mean(np.argmax(logits, axis=-1) == y))


def fit(
    model: keras.Model, images: Any, batch: int, epochs: int, seed: int, optimizer: Any
) -> None:
    """Without a word."""
    model.compile(optimizer, LOSS, jit_compile=False, steps_per_execution=20)
    model.fit(batches(images, batch, seed), epochs=epochs, verbose=0)


def by_criteria(parts: Data, recipe: Recipe, seed: int) -> dict[str, Any]:
    """Accuracy of every criterion at every share, on held-out and test images."""
    before, after = fresh(seed), fresh(seed)
    adam = keras.optimizers.Adam(recipe.dense_rate)
    fit(after, parts.train, recipe.dense_batch, recipe.dense_epochs, seed, adam)
    judged = fresh(seed)  # one model, so that nothing is traced again
    found: dict[str, Any] = {"dense_test": accuracy(after, parts.test)}
    for kept, criterion in itertools.product(PAPER, (*CRITERIA, "random")):
        rows = found.setdefault(kept, {}).setdefault(criterion, [])
        for power in POWERS:
            masked = supermask(
                before,
                after,
                1 - 0.8**power,
                criterion,
                kept=kept,
                overrides={before.layers[-1].name: 1 - 0.9**power},
                seed=seed,
            )
            judged.set_weights(masked.model.get_weights())
            row = {"power": power, "sparsity": masked.sparsity}
            row["held_out"] = accuracy(judged, parts.chosen_by)
            rows.append({**row, "test": accuracy(judged, parts.test)})
    return found


def train_masks(run: Run, parts: Data, recipe: Recipe, seed: int) -> SupermaskTrainer:
    """Masks over the weights of a fresh network."""
    trainer = SupermaskTrainer(
        fresh(seed),
        kept=run.kept,
        rescale=run.rescale,
        seed=seed,
    )
    steps = recipe.mask_epochs * (len(parts.train[1]) // recipe.mask_batch)
    rate = keras.optimizers.schedules.CosineDecay(run.rate, steps)
    sgd = keras.optimizers.SGD(rate, momentum=recipe.mask_momentum)
    fit(trainer, parts.train, recipe.mask_batch, recipe.mask_epochs, seed, sgd)
    return trainer


def judge(trainer: SupermaskTrainer, images: Any) -> dict[str, Any]:
    """By drawn masks, the likeliest and the expected one."""
    drawn = [accuracy(trainer.result("sampled", seed), images) for seed in range(DRAWS)]
    likeliest = trainer.result()
    kernels = [w for w in likeliest.get_weights() if w.ndim > 1]
    return {
        "drawn": statistics.mean(drawn),
        "each_drawn": drawn,
        "likeliest": accuracy(likeliest, images),
        "expected": accuracy(trainer.result("expected"), images),
        "sparsity_drawn": trainer.sparsity,
        "sparsity_likeliest": sum(int((w == 0).sum()) for w in kernels)
        / sum(w.size for w in kernels),
    }


def validate(parts: Data) -> None:
    """Which rate is best on held-out images, of those tried before and those asked for."""
    recipe = dataclasses.replace(Recipe(), mask_epochs=8)
    saved = results.load(f"{NAME}/rates")
    found: dict[str, dict[str, float]] = {} if saved is None else saved["results"]
    for run, rate in itertools.product(TRAINED, map(float, _RATES.value)):
        tried = found.setdefault(run.name, {})
        if f"{rate:g}" not in tried:
            trainer = train_masks(dataclasses.replace(run, rate=rate), parts, recipe, 1000)
            tried[f"{rate:g}"] = judge(trainer, parts.chosen_by)["drawn"]
            print(run.name, rate, tried[f"{rate:g}"], flush=True)
    results.save(f"{NAME}/rates", seed=1000, budget=dataclasses.asdict(recipe), results=found)


def perform(name: str, parts: Data, recipe: Recipe, seed: int) -> dict[str, Any]:
    """What is found in one run."""
    if name == CRITERIA_RUN:
        found = by_criteria(parts, recipe, seed)
        for kept in PAPER:
            most = max(row["test"] for rows in found[kept].values() for row in rows)
            print(kept, seed, f"at most {most:.2f} %", flush=True)
        return found
    run = next(run for run in TRAINED if run.name == name)
    found = {"rate": run.rate, **judge(train_masks(run, parts, recipe, seed), parts.test)}
    print(name, seed, f"{found['drawn']:.2f} %", flush=True)
    return found


def main(_: list[str]) -> None:
    parts, recipe = data(), Recipe()
    if _VALIDATE.value:
        validate(parts)
        return
    for seed in map(int, _FLAGS.seeds):
        for run in [CRITERIA_RUN, *(run.name for run in TRAINED)]:
            name = f"{NAME}/{run}-{seed}"
            if _FLAGS.only not in run or results.load(name) is not None:
                continue
            start = time.process_time()
            found = perform(run, parts, recipe, seed)
            found["core_seconds"] = time.process_time() - start
            results.save(name, seed=seed, budget=dataclasses.asdict(recipe), results=found)


if __name__ == "__main__":
    app.run(main)
