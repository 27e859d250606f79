"""SparsityLogger: what is in the logs, for whom."""

from __future__ import annotations

import csv
import json
import pathlib
from typing import Any

import keras
import numpy as np
import pytest

from tfcomp.callbacks import PruneWeights, SparsityLogger
from tfcomp.pruning import PolynomialDecay

X = np.random.default_rng(0).normal(size=(32, 8)).astype("float32")
SCHEDULE = PolynomialDecay(0.0, 0.5, 0, 8, frequency=2)


def fitted(*callbacks: Any) -> Any:
    layers = [keras.layers.Dense(10, name="a"), keras.layers.Dense(2, name="b")]
    model = keras.Sequential([keras.Input((8,)), *layers], name="m")
    model.compile("adam", "mse", jit_compile=False)
    options = {"batch_size": 8, "epochs": 2, "verbose": 0}
    return model.fit(X, X[:, :2], callbacks=list(callbacks), **options).history


@pytest.mark.parametrize("first", [True, False])
def test_history_holds_each_kernel_and_the_total(first: bool) -> None:
    both = [SparsityLogger(), PruneWeights(SCHEDULE)]
    history = fitted(*(both if first else both[::-1]))
    # 80 and 20 weights; 0.4375 of them after 4 of 8 steps.
    assert SCHEDULE(4) == 0.4375
    assert history["sparsity/m/a/kernel"] == [35 / 80, 0.5]
    assert history["sparsity/m/b/kernel"] == [9 / 20, 0.5]
    assert history["sparsity"] == [44 / 100, 0.5]


def test_what_is_skipped_does_not_count() -> None:
    history = fitted(SparsityLogger(skip="b"), PruneWeights(SCHEDULE, skip="b"))
    assert history["sparsity"] == [35 / 80, 0.5]
    assert "sparsity/m/b/kernel" not in history


def test_total_alone_and_a_printed_line(capsys: pytest.CaptureFixture[str]) -> None:
    history = fitted(PruneWeights(SCHEDULE), SparsityLogger(per_layer=False, verbose=1))
    assert {name for name in history if name.startswith("sparsity")} == {"sparsity"}
    assert capsys.readouterr().out.splitlines() == [
        "Epoch 1: sparsity 0.4400 (44 of 100 weights)",
        "Epoch 2: sparsity 0.5000 (50 of 100 weights)",
    ]


def test_other_callbacks_read_it(tmp_path: pathlib.Path) -> None:
    fitted(
        PruneWeights(SCHEDULE),
        SparsityLogger(),
        keras.callbacks.CSVLogger(tmp_path / "log.csv"),
        keras.callbacks.ModelCheckpoint(tmp_path / "{sparsity:.2f}.keras"),
    )
    with open(tmp_path / "log.csv") as file:
        assert [float(row["sparsity"]) for row in csv.DictReader(file)] == [0.44, 0.5]
    assert {path.name for path in tmp_path.glob("*.keras")} == {"0.44.keras", "0.50.keras"}


def test_round_trips() -> None:
    logger = SparsityLogger(
        per_layer=False, verbose=1, skip=[keras.layers.Dense(1, name="x")], depthwise=True
    )
    stored = json.loads(json.dumps(keras.saving.serialize_keras_object(logger)))
    clone = keras.saving.deserialize_keras_object(stored)
    assert clone.get_config() == logger.get_config()
    assert clone.get_config()["skip"] == ["x"]
