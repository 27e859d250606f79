"""How well each criterion ranks channels as the oracle does: Spearman's correlation.

The networks of `benchmarks.pruning.cifar_vgg` before anything is cut. The oracle is the true change
of the cost on training images when one channel is zero; each criterion looks at the same images.
As in figure 4 and table 1 of Molchanov et al. (2016, arXiv:1611.06440): over all channels of all
layers, and in each layer, of which the mean is taken. One JSON for each seed; what is there is not
run again.

    TFCOMP_DATA=DIR python -m benchmarks.pruning.oracle_ranks [--work=DIR] [--seeds=0,1,2]
"""

from __future__ import annotations

import pathlib
import statistics
import time
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags
from scipy.stats import spearmanr

from benchmarks import results
from benchmarks.distillation import cifar
from benchmarks.pruning import cifar_vgg
from benchmarks.pruning.cifar_vgg import LOSS
from tfcomp.pruning import (
    FPGM,
    ActivationMean,
    ActivationStandardDeviation,
    APoZ,
    BatchNormScale,
    Candidates,
    Criterion,
    HRank,
    L1Norm,
    L2Norm,
    Oracle,
    Random,
    Taylor,
)

NAME = "pruning_oracle_ranks"
IMAGES = 500


def criteria(data: tuple[Any, Any], seed: int) -> dict[str, Criterion]:
    """All of them, by name."""
    images, _ = data
    return {
        "taylor": Taylor(LOSS, data),
        "activation_mean": ActivationMean(images),
        "activation_std": ActivationStandardDeviation(images),
        "apoz": APoZ(images),
        "hrank": HRank(images),
        "l1": L1Norm(),
        "l2": L2Norm(),
        "fpgm": FPGM(),
        "batch_norm_scale": BatchNormScale(),
        "random": Random(seed),
    }


def scores(criterion: Criterion, channels: Candidates) -> dict[str, Any]:
    """Scores of the layers whose channels can be removed."""
    found = criterion.scores(channels)
    return {name: np.asarray(found[name], np.float64) for name in channels}


def correlations(found: dict[str, Any], truth: dict[str, Any]) -> dict[str, Any]:
    """Spearman's ρ over all channels, and in each layer."""

    def rank(one: Any, other: Any) -> float:
        # Scores that are all alike rank nothing.
        return 0.0 if np.ptp(one) == 0 else float(spearmanr(one, other).statistic)

    layers = {name: rank(found[name], truth[name]) for name in truth}
    together = (np.concatenate([of[name] for name in truth]) for of in (found, truth))
    return {"all": rank(*together), "mean": statistics.mean(layers.values()), "layers": layers}


def perform(data: cifar.Cifar, seed: int, work: pathlib.Path) -> dict[str, Any]:
    """One network."""
    model = cifar_vgg.trained("dense", data, seed, work)
    rows = np.random.default_rng((6, seed)).choice(len(data.x), IMAGES, replace=False)
    images = (data.x[rows], data.y[rows])
    found = Candidates.of_channels(model)
    start = time.process_time()
    truth = scores(Oracle(LOSS, images, batch_size=IMAGES), found)
    seconds = {"oracle": time.process_time() - start}
    ranks = {}
    for name, criterion in criteria(images, seed).items():
        start = time.process_time()
        ranks[name] = correlations(scores(criterion, found), truth)
        seconds[name] = time.process_time() - start
    return {
        "ranks": ranks,
        "core_seconds": seconds,
        "channels": sum(map(len, truth.values())),
        "widths": {name: len(values) for name, values in truth.items()},
        "oracle": [float(one) for name in truth for one in truth[name]],
        "taylor": [
            float(one) for values in scores(Taylor(LOSS, images), found).values() for one in values
        ],
    }


def main(_: list[str]) -> None:
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    data, work = cifar.load(), pathlib.Path(flags.FLAGS.work)
    budget = {"images": IMAGES, "epochs": cifar_vgg.RECIPE.epochs}
    for seed in map(int, flags.FLAGS.seeds):
        saved = results.load(f"{NAME}/{seed}")
        if saved is None or saved["budget"] != budget:
            found = perform(data, seed, work)
            results.save(f"{NAME}/{seed}", seed=seed, budget=budget, results=found)
            print(seed, {n: round(r["all"], 3) for n, r in found["ranks"].items()}, flush=True)
            keras.backend.clear_session()


if __name__ == "__main__":
    app.run(main)
