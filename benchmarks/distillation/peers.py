"""Mutual learning, assistants, ensembles and generations against their baselines on CIFAR-10.

Networks, images, batches and budget are those of `benchmarks.distillation.representation`: a
seed is the student's first weights and the order of its batches, the same for every run, so that
differences to the student trained alone are paired. All are judged on the 10,000 test images with
their last weights. The teachers of the ensemble are students trained alone on other seeds; they
teach with T = 4, as the large teacher and the assistant do, with the labels at the same weight.

Each run is a process of its own on one core and its result one file in
benchmarks/results/distillation_peers; finished runs are not repeated. The student that the large
teacher teaches itself is a run of `representation`, and runs that need the large teacher wait
until that has trained it and kept what it says in the same `--work`.

    TFCOMP_DATA=DIR python -m benchmarks.distillation.peers [--work=DIR] [--seeds=3]
        [--methods=alone,mutual-2]
"""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags
from rich.console import Console
from rich.table import Table

from benchmarks import results
from benchmarks.distillation import cifar, methods, representation
from benchmarks.distillation.representation import BUDGET, Bench
from tfcomp.distillation import (
    BornAgain,
    Distiller,
    Ensemble,
    KnowledgeDistillation,
    MutualLearning,
    cache_teacher,
)
from tfcomp.files import replacing

# `work`, `seeds`, `methods`, `run` and `core` are flags of `representation`.
FLAGS = flags.FLAGS

NAME = "distillation_peers"
ASSISTANT = cifar.Network((32, 64, 128), blocks=1)
# Seeds of the ensemble's members, apart from those of the students.
MEMBERS = (100, 101, 102)
GENERATIONS = 2
SHARE = 0.5
Found = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Setting:
    """What the runs of one process share."""

    data: cifar.Cifar
    work: pathlib.Path

    def path(self, name: str) -> pathlib.Path:
        """Where a trained network is kept, apart for every budget."""
        budget = "-".join(str(value) for value in dataclasses.astuple(BUDGET))
        return self.work / "peers" / budget / name

    def bench(self) -> Bench:
        """The batches, without a teacher."""
        return Bench(self.data, None, self.work)

    def batches(self, seed: int) -> tf.data.Dataset:
        """All batches of a seed, with the labels."""
        return self.bench().schedule(seed, range(BUDGET.epochs))

    def steps(self) -> int:
        """Batches of an epoch."""
        return len(self.data.x) // BUDGET.batch

    def fit(self, model: Any, dataset: tf.data.Dataset, **kwargs: Any) -> None:
        """Trains a compiled model with the budget."""
        model.fit(
            dataset,
            epochs=BUDGET.epochs,
            steps_per_epoch=self.steps(),
            shuffle=False,
            verbose=0,
            callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=_tell)],
            **kwargs,
        )

    def compiled(self, model: Any) -> Any:
        """The model with the budget's optimizer."""
        optimizer = representation.optimizer(BUDGET.epochs, self.steps())
        model.compile(optimizer, loss=representation.labels_loss())
        return model

    def judged(self, model: keras.Model) -> float:
        """Accuracy on the test images."""
        return cifar.accuracy(model, self.data.x_test, self.data.y_test)


def _tell(epoch: int, logs: dict[str, float]) -> None:
    print(f"epoch {epoch + 1}/{BUDGET.epochs} loss {logs['loss']:.4f}", flush=True)


def plain(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Images and labels alone."""
    return dataset.map(lambda x, y: (x.inputs, y))


def alone(setting: Setting, seed: int) -> keras.Model:
    """The student trained alone; from its file if it has been."""
    path = setting.path(f"alone-{seed}.keras")
    if not path.exists():
        student = cifar.STUDENT.build(seed, f"student_{seed}")
        setting.fit(setting.compiled(student), plain(setting.batches(seed)))
        keep_model(student, path)
    return keras.saving.load_model(path)


def keep_model(model: keras.Model, path: pathlib.Path) -> None:
    """Writes a model without its optimizer, whole or not at all."""
    with replacing(path) as temporary:
        model.save(temporary, include_optimizer=False)


def taught(setting: Setting, student: keras.Model, asked: tf.data.Dataset) -> keras.Model:
    """The student, distilled from what its teacher has said."""
    loss = KnowledgeDistillation(methods.TEMPERATURE, teacher_from_logits=True)
    setting.fit(setting.compiled(Distiller(None, student, loss, student_loss_weight=SHARE)), asked)
    return student


def asked(setting: Setting, teacher: keras.Model, name: str, seed: int) -> tf.data.Dataset:
    """The batches of a seed with what a teacher of ours says of them."""
    path = setting.path(f"{name}.cache")
    count = len(setting.data.x)
    every = [(number, np.arange(count)) for number in range(BUDGET.views)]
    cache_teacher(representation.batches(setting.data, every), teacher, path)
    return cache_teacher(setting.batches(seed), teacher, path)


def asked_large(setting: Setting, seed: int) -> tf.data.Dataset:
    """The batches of a seed with what the large teacher has said of them."""
    teacher = cifar.trained_teacher(setting.work, setting.data)
    bench = Bench(setting.data, teacher, setting.work)
    return bench.cached(bench.schedule(seed, range(BUDGET.epochs)), "embedding")


def run_alone(setting: Setting, seed: int) -> Found:
    """The baseline."""
    return {"student": setting.judged(alone(setting, seed))}


def run_members(setting: Setting, seed: int) -> Found:
    """Students trained alone on other seeds, and their ensembles with this seed's."""
    models = [alone(setting, number) for number in (seed, *MEMBERS)]
    found = {f"member_{n}": setting.judged(m) for n, m in zip(MEMBERS, models[1:], strict=True)}
    sizes = {f"ensemble_{k}": setting.judged(Ensemble(models[:k])) for k in (2, 3)}
    return {**found, **sizes, "teachers": setting.judged(Ensemble(models[1:]))}


def run_mutual(count: int) -> Callable[[Setting, int], Found]:
    """Mutual learning; the first peer is this seed's student."""

    def run(setting: Setting, seed: int) -> Found:
        seeds = [seed, *(1000 * k + seed for k in range(1, count))]
        peers = [cifar.STUDENT.build(s, f"peer_{k}") for k, s in enumerate(seeds)]
        mutual = setting.compiled(MutualLearning(peers))
        setting.fit(mutual, plain(setting.batches(seed)))
        found = {f"peer_{k}": setting.judged(peer) for k, peer in enumerate(peers, start=1)}
        mean = statistics.mean(found.values())
        ensemble = setting.judged(mutual)
        return {**found, "student": found["peer_1"], "peers": mean, "ensemble": ensemble}

    return run


def run_ensemble(count: int) -> Callable[[Setting, int], Found]:
    """So many students trained alone teach one."""

    def run(setting: Setting, seed: int) -> Found:
        members = [alone(setting, number) for number in MEMBERS[:count]]
        dataset = asked(setting, Ensemble(members), f"ensemble-{count}", seed)
        student = taught(setting, cifar.STUDENT.build(seed, "student"), dataset)
        return {"student": setting.judged(student)}

    return run


def run_assistant(setting: Setting, seed: int) -> Found:
    """The large teacher teaches an assistant, once for all seeds, and this one the student."""
    path = setting.path("assistant.keras")
    if not path.exists():
        assistant = ASSISTANT.build(0, "assistant")
        keep_model(taught(setting, assistant, asked_large(setting, 0)), path)
    assistant = keras.saving.load_model(path)
    student = cifar.STUDENT.build(seed, "student")
    taught(setting, student, asked(setting, assistant, "assistant", seed))
    return {"student": setting.judged(student), "assistant": setting.judged(assistant)}


def run_born_again(setting: Setting, seed: int) -> Found:
    """Generations after the student that was trained alone."""
    born_again = setting.compiled(BornAgain(alone(setting, seed), GENERATIONS))
    born_again.fit(
        plain(setting.batches(seed)),
        epochs=BUDGET.epochs,
        steps_per_epoch=setting.steps(),
        shuffle=False,
        verbose=0,
        callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=_tell)],
        directory=setting.path(f"born-again-{seed}"),
        data_key=f"CIFAR-10 views, seed {seed}",
        seed=10_000 + 10 * seed,
    )
    accuracies = [setting.judged(model) for model in born_again.generations]
    found = {f"generation_{k}": value for k, value in enumerate(accuracies, start=1)}
    ensemble = setting.judged(born_again.ensemble)
    return {**found, "student": accuracies[-1], "ensemble": ensemble}


RUNS: dict[str, Callable[[Setting, int], Found]] = {
    "alone": run_alone,
    "mutual-2": run_mutual(2),
    "ensemble-1": run_ensemble(1),
    "ensemble-3": run_ensemble(3),
    "members": run_members,
    "born-again": run_born_again,
    "assistant": run_assistant,
    "mutual-3": run_mutual(3),
}
NEED_TEACHER = ("assistant",)
# The student that the large teacher teaches itself: `representation` makes just this run.
DIRECT = "kd"


def stored(run: str, seed: int) -> dict[str, Any] | None:
    """What a finished run with this budget has found."""
    if run == DIRECT:
        found = representation.stored(run, seed) or {}
        return {"student": found["test_accuracy"]} if "test_accuracy" in found else None
    saved = results.load(f"{NAME}/{run}-{seed}")
    same = saved is not None and saved["budget"] == dataclasses.asdict(BUDGET)
    return saved["results"] if saved and same else None


def perform(run: str, seed: int, setting: Setting) -> None:
    """Makes a run and keeps what it has found."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = RUNS[run](setting, seed)
    spent = {"seconds": time.perf_counter() - wall, "core_seconds": time.process_time() - cpu}
    budget = dataclasses.asdict(BUDGET)
    results.save(f"{NAME}/{run}-{seed}", seed=seed, budget=budget, results={**found, **spent})
    print(f"{run}:{seed} {found}", flush=True)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One accuracy of a run less one of another, paired by seed.

    Attributes:
        title: What a table calls it.
        run: The run and which of its accuracies.
        baseline: Likewise.
    """

    title: str
    run: tuple[str, str]
    baseline: tuple[str, str]


STUDENT_ALONE = ("alone", "student")
COMPARISONS = [
    Comparison("2 peers, the first", ("mutual-2", "student"), STUDENT_ALONE),
    Comparison("2 peers, their mean", ("mutual-2", "peers"), STUDENT_ALONE),
    Comparison("2 peers, ensemble", ("mutual-2", "ensemble"), ("members", "ensemble_2")),
    Comparison("3 peers, the first", ("mutual-3", "student"), STUDENT_ALONE),
    Comparison("3 peers, their mean", ("mutual-3", "peers"), STUDENT_ALONE),
    Comparison("3 peers, ensemble", ("mutual-3", "ensemble"), ("members", "ensemble_3")),
    Comparison("1 teacher of the same size", ("ensemble-1", "student"), STUDENT_ALONE),
    Comparison("3 teachers of the same size", ("ensemble-3", "student"), STUDENT_ALONE),
    Comparison("3 teachers against 1", ("ensemble-3", "student"), ("ensemble-1", "student")),
    Comparison("born again, generation 1", ("born-again", "generation_1"), STUDENT_ALONE),
    Comparison("born again, generation 2", ("born-again", "generation_2"), STUDENT_ALONE),
    Comparison("born again, ensemble of 2", ("born-again", "ensemble"), ("members", "ensemble_2")),
    Comparison("large teacher", (DIRECT, "student"), STUDENT_ALONE),
    Comparison("large teacher, assistant", ("assistant", "student"), STUDENT_ALONE),
    Comparison("with against without assistant", ("assistant", "student"), (DIRECT, "student")),
]


def paired(comparison: Comparison, seeds: Sequence[int]) -> list[tuple[float, float]]:
    """Accuracies of run and baseline in percent, for the seeds that have both."""
    pairs = []
    for seed in seeds:
        ends = [(stored(run, seed), key) for run, key in (comparison.run, comparison.baseline)]
        if all(found is not None for found, _ in ends):
            ours, theirs = (100 * found[key] for found, key in ends if found is not None)
            pairs.append((ours, theirs))
    return pairs


def show(seeds: Sequence[int]) -> None:
    """Prints a row for each comparison."""
    table = Table(title="Accuracy on the 10,000 test images of CIFAR-10, %")
    for name in ("what", "accuracy", "baseline", "difference", "seeds"):
        table.add_column(name, justify="left" if name == "what" else "right")
    for comparison in COMPARISONS:
        pairs = paired(comparison, seeds)
        if not pairs:
            table.add_row(comparison.title, "–", "–", "–", "0")
            continue
        gaps = [ours - theirs for ours, theirs in pairs]
        error = f" ± {statistics.stdev(gaps) / len(gaps) ** 0.5:.2f}" if len(gaps) > 1 else ""
        ours, theirs = (statistics.mean(side) for side in zip(*pairs, strict=True))
        difference = f"{statistics.mean(gaps):+.2f}{error}"
        table.add_row(comparison.title, f"{ours:.2f}", f"{theirs:.2f}", difference, str(len(gaps)))
    Console().print(table)


def teacher_is_ready() -> bool:
    """Whether `representation` has trained the teacher and kept what it says."""
    found = representation.stored(representation.TEACHER, 0)
    return found is not None and "error" not in found


def main(_: list[str]) -> None:
    """Makes the runs that are missing, each in a process of its own, and prints the table."""
    work = pathlib.Path(FLAGS.work)
    if FLAGS.run:
        run, seed = FLAGS.run.split(":")
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        perform(run, int(seed), Setting(cifar.load(), work))
        return
    seeds = range(FLAGS.seeds)
    for seed, run in itertools.product(seeds, FLAGS.methods or RUNS):
        if stored(run, seed) is not None:
            continue
        if run in NEED_TEACHER and not teacher_is_ready():
            print(f"{run}:{seed} waits for the teacher of benchmarks.distillation.representation")
            continue
        command = [sys.executable, "-m", "benchmarks.distillation.peers"]
        subprocess.run([*command, f"--work={work}", f"--run={run}:{seed}"], check=False)
    show(seeds)


if __name__ == "__main__":
    app.run(main)
