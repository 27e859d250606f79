"""Which distillation method helps a small network on CIFAR-10, with the weights published for it?

Teacher and students learn from the same 10,000 training images and are judged on all 10,000 test
images, with their last weights. A seed is the student's first weights and the order of its
batches: they are the same for every method, so that differences to the student trained alone are
paired. The teacher is trained once; what it says of five augmented views of every image is kept
by `cache_teacher`, and students see these views in turn. Learning rate and epochs are the same
for all, chosen for the student alone on held-out training images (`--validate`).

Each run is a process of its own on one core, and its result one file in
benchmarks/results/distillation_representation: finished runs are not repeated, a run that failed
is recorded and tried again the next time.

    TFCOMP_DATA=DIR python -m benchmarks.distillation.representation [--work=DIR] [--seeds=3]
        [--methods=alone,kd,at+kd] [--jobs=2]
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import os
import pathlib
import queue
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf
from absl import app, flags

from benchmarks import results
from benchmarks.distillation import cifar, methods
from tfcomp.distillation import (
    DistillationInputs,
    Distiller,
    KnowledgeDistillation,
    MutualLearning,
    cache_teacher,
)

_WORK = flags.DEFINE_string("work", "build/representation", "folder for teacher and cache")
_SEEDS = flags.DEFINE_integer("seeds", 3, "how many students for each method", 1)
_METHODS = flags.DEFINE_list("methods", None, "runs by name; all by default")
_JOBS = flags.DEFINE_integer("jobs", 1, "runs at a time, each on a core of its own", 1)
_VALIDATE = flags.DEFINE_list("validate", None, "learning rates to try for the student alone")
_RUN = flags.DEFINE_string("run", None, "one run here and now, such as at+kd:0; internal")
_CORE = flags.DEFINE_integer("core", None, "the core for it; internal")

NAME = "distillation_representation"
# The run that all others need: the teacher, and what it says.
TEACHER = "teacher"
LAYERS = {"embedding": [methods.POOL], "maps": [methods.POOL, *methods.TEACHER_MAPS]}
Progress = Callable[[int, dict[str, float]], None]
Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True)
class Budget:
    """How every student is trained: AdamW, whose steps do not depend on the loss's scale.

    Attributes:
        epochs: All stages together; an epoch is one view of every image.
        views: Augmented views of each image, which epochs take in turn.
        batch: As in the RepDistiller benchmark; what does not fill a batch is left out.
        learning_rate: At the start of a cosine that ends at 0. The student alone reached 67.3, 69.1
            and 70.0 % of the held-out images with 0.003, 0.01 and 0.02.
        weight_decay: Decoupled.
    """

    epochs: int = 30
    views: int = 5
    batch: int = 64
    learning_rate: float = 2e-2
    weight_decay: float = 0.05


BUDGET = Budget()


def order(seed: int, epoch: int, count: int) -> Array:
    """Which images an epoch shows, in whole batches."""
    shuffled = np.random.default_rng((seed, epoch)).permutation(count)
    return shuffled[: count - count % BUDGET.batch]


def view(images: Array, number: int) -> Array:
    """The same augmented view for teacher and students."""
    return cifar.augmented(images, 2, number)


def batches(data: cifar.Cifar, rows_of_view: list[tuple[int, Array]]) -> tf.data.Dataset:
    """A dataset of (DistillationInputs, label) in batches, for rows of numbered views."""
    views = {number: view(data.x, number) for number, _ in rows_of_view}

    def examples() -> Iterator[Any]:
        for number, rows in rows_of_view:
            for start in range(0, len(rows), BUDGET.batch):
                chosen = rows[start : start + BUDGET.batch]
                yield views[number][chosen], chosen, data.y[chosen]

    shapes = ((None, *data.x.shape[1:]), "uint8"), ((None,), "int64"), ((None,), "int64")
    signature = tuple(tf.TensorSpec(shape, kind) for shape, kind in shapes)
    dataset = tf.data.Dataset.from_generator(examples, output_signature=signature)
    dataset = dataset.map(lambda x, index, y: (DistillationInputs(x, index=index), y))
    count = sum(-(-len(rows) // BUDGET.batch) for _, rows in rows_of_view)
    return dataset.apply(tf.data.experimental.assert_cardinality(count))


@dataclasses.dataclass(frozen=True, eq=False)
class Bench:
    """What all runs share: data, teacher, and the folder of its cache."""

    data: cifar.Cifar
    teacher: keras.Model | None
    work: pathlib.Path

    def schedule(self, seed: int, epochs: range) -> Any:
        """The batches of these epochs."""
        rows = [(e % BUDGET.views, order(seed, e, len(self.data.x))) for e in epochs]
        return batches(self.data, rows)

    def cached(self, dataset: Any, reads: str) -> Any:
        """The dataset with what the teacher says, from `ask`."""
        path = self.work / f"{reads}.cache"
        return cache_teacher(dataset, self.teacher, path, layers=LAYERS[reads])

    def ask(self) -> None:
        """Asks the teacher for all views of all images, unless this has been done."""
        every = [(number, np.arange(len(self.data.x))) for number in range(BUDGET.views)]
        for reads in LAYERS:
            self.cached(batches(self.data, every), reads)


def optimizer(epochs: int, steps: int, learning_rate: float = BUDGET.learning_rate) -> Any:
    """The one of every student."""
    schedule = keras.optimizers.schedules.CosineDecay(learning_rate, epochs * steps)
    return keras.optimizers.AdamW(schedule, weight_decay=BUDGET.weight_decay)


def labels_loss() -> Any:
    """Cross-entropy of logits."""
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def train(bench: Bench, run: str, seed: int, learning_rate: float, report: Progress) -> Any:
    """The student of a run, trained."""
    method, kd = methods.find(run)
    student = cifar.STUDENT.build(seed, "student")
    if method.kind == "mutual":
        return _with_peer(bench, student, seed, kd, report)
    first = round(BUDGET.epochs * methods.FIRST_STAGE)
    first = first if method.kind in ("initialise", "paraphrase") else 0
    epochs = range(first, BUDGET.epochs)
    losses, weights, gamma = _losses(bench, run)
    if method.kind == "initialise":
        _initialise(bench, losses[0], student, seed, range(first), report)
        losses, weights = losses[1:], weights[1:]
    if method.kind == "paraphrase":
        stage = bench.cached(bench.schedule(seed, range(first)), method.reads)
        losses[0].fit_paraphraser(
            bench.teacher, stage, first, steps_per_epoch=_steps(bench), verbose=0
        )
    dataset = bench.schedule(seed, epochs)
    if losses:
        dataset = bench.cached(
            dataset, method.reads if method.kind != "initialise" else "embedding"
        )
        share = gamma / (1.0 + gamma)
        model = Distiller(bench.teacher, student, losses, weights, student_loss_weight=share)
    else:
        dataset, model = dataset.map(lambda x, y: (x.inputs, y)), student
    steps = _steps(bench)
    model.compile(optimizer(len(epochs), steps, learning_rate), loss=labels_loss())
    _fit(model, dataset, epochs, steps, report)
    return student


def _steps(bench: Bench) -> int:
    return len(bench.data.x) // BUDGET.batch


def _losses(bench: Bench, run: str) -> tuple[list[Any], list[float], float]:
    """The method's loss first, then Hinton's; their weights, and that of the labels."""
    method, _ = methods.find(run)
    gamma, alpha, beta = methods.weights(run)
    losses, weights = [], []
    if method.loss is not None:
        losses.append(method.loss(bench.data.y))
        weights.append(beta)
    if alpha:
        losses.append(KnowledgeDistillation(methods.TEMPERATURE))
        weights.append(alpha)
    return losses, weights, gamma


def _fit(model: Any, dataset: Any, epochs: range, steps: int, report: Progress) -> None:

    lines = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: report(epoch + 1, dict(logs))
    )
    model.fit(
        dataset,
        initial_epoch=epochs.start,
        epochs=epochs.stop,
        steps_per_epoch=steps,
        shuffle=False,
        verbose=0,
        callbacks=[lines],
    )


def _initialise(
    bench: Bench, loss: Any, student: Any, seed: int, epochs: range, report: Progress
) -> None:
    """Trains the student by the loss alone; the teacher runs along, once for each view."""
    distiller = Distiller(bench.teacher, student, [loss], student_loss_weight=0.0)
    steps = _steps(bench)
    distiller.compile(optimizer(len(epochs), steps))
    _fit(distiller, bench.schedule(seed, epochs), epochs, steps, report)


def _with_peer(bench: Bench, student: Any, seed: int, kd: bool, report: Progress) -> Any:
    """The student, trained beside a peer of its kind; with the teacher's help as well if asked."""
    peer = cifar.STUDENT.build(1000 + seed, "peer")
    mutual = MutualLearning([student, peer])
    epochs = range(BUDGET.epochs)
    dataset = bench.schedule(seed, epochs)
    loss: Any = labels_loss()
    if kd:
        # The teacher's logits travel beside the labels.
        divergence = KnowledgeDistillation(
            methods.TEMPERATURE, teacher_from_logits=True, student_from_logits=True
        )
        ce = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=None)

        def loss(y: Any, logits: Any) -> Any:
            return ce(y[:, 0], logits) + divergence.per_sample(y[:, 1:], logits)

        def pack(x: Any, y: Any) -> Any:
            label = tf.cast(y[:, None], "float32")
            return x.inputs, tf.concat([label, x.teacher_outputs], axis=1)

        dataset = bench.cached(dataset, "embedding").map(pack)
    else:
        dataset = dataset.map(lambda x, y: (x.inputs, y))
    steps = _steps(bench)
    mutual.compile(optimizer(BUDGET.epochs, steps), loss=loss)
    _fit(mutual, dataset, epochs, steps, report)
    return student


def perform(run: str, seed: int, work: pathlib.Path) -> dict[str, Any]:
    """Trains and judges; the figures that are kept."""
    data = cifar.load()
    asks = run == TEACHER or methods.asks_teacher(run)
    bench = Bench(data, cifar.trained_teacher(work, data) if asks else None, work)
    if run == TEACHER:
        return _teacher(bench)
    history: list[float] = []

    def report(epoch: int, logs: dict[str, float]) -> None:
        history.append(float(logs["loss"]))
        print(f"{run}:{seed} epoch {epoch}/{BUDGET.epochs} loss {logs['loss']:.4f}", flush=True)

    wall, cpu = time.perf_counter(), time.process_time()
    student = train(bench, run, seed, BUDGET.learning_rate, report)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    losses = _losses(bench, run)[0]
    return {
        **judged(student, data),
        "loss": history,
        "seconds": wall,
        "core_seconds": cpu,
        "weights": dict(zip(("gamma", "alpha", "beta"), methods.weights(run), strict=True)),
        "losses": {type(loss).__name__: _plain(loss.get_config()) for loss in losses},
    }


def _teacher(bench: Bench) -> dict[str, Any]:
    """Has the teacher ready; stops if earlier results are of another one."""
    teacher = bench.teacher
    assert teacher is not None
    digest = hashlib.blake2b(digest_size=16)
    for weights in teacher.get_weights():
        digest.update(weights.tobytes())
    known = (stored(TEACHER, 0) or {}).get("digest")
    if known not in (None, digest.hexdigest()):
        sys.exit("The results are of another teacher. Put it into --work, or remove the results.")
    bench.ask()
    budget = dataclasses.asdict(cifar.TeacherBudget())
    return {**judged(teacher, bench.data), "digest": digest.hexdigest(), **budget}


def judged(model: keras.Model, data: cifar.Cifar) -> dict[str, float]:
    """Accuracies on the test images, and on those that the budget was chosen on."""
    return {
        "test_accuracy": cifar.accuracy(model, data.x_test, data.y_test),
        "held_out_accuracy": cifar.accuracy(model, data.x_held_out, data.y_held_out),
    }


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """A loss's arguments without the labels of all samples."""
    return {key: value for key, value in config.items() if key != "labels"}


def stored(run: str, seed: int) -> dict[str, Any] | None:
    """What a finished run with this budget has found."""
    saved = results.load(f"{NAME}/{run}-{seed}")
    same = saved is not None and saved["budget"] == dataclasses.asdict(BUDGET)
    return saved["results"] if saved and same else None


def finished(run: str, seed: int) -> bool:
    """Whether there is a result that is no error."""
    return "test_accuracy" in (stored(run, seed) or {})


def keep(run: str, seed: int, found: dict[str, Any]) -> None:
    """Writes the file of a run."""
    budget = dataclasses.asdict(BUDGET)
    results.save(f"{NAME}/{run}-{seed}", seed=seed, budget=budget, results=found)


def _single(core: int | None) -> None:
    """This process on one core and one thread."""
    if core is not None:
        os.sched_setaffinity(0, {core})
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def run_here(run: str, seed: int, work: pathlib.Path) -> None:
    """One run in this process; an error is its result."""
    try:
        found = perform(run, seed, work)
    except Exception as error:
        if run == TEACHER:
            raise
        traceback.print_exc()
        found = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
    keep(run, seed, found)
    print(f"{run}:{seed} done: {found.get('test_accuracy', found.get('error'))}", flush=True)


def run_elsewhere(run: str, seed: int, cores: queue.Queue[int]) -> int:
    """One run in a process of its own, on a core that is free; gives its exit code."""
    core = cores.get()
    try:
        if run != TEACHER and finished(run, seed):
            # By another process, since this one was started.
            return 0
        command = [sys.executable, "-m", "benchmarks.distillation.representation"]
        command += [f"--work={_WORK.value}", f"--run={run}:{seed}", f"--core={core}"]
        code = subprocess.run(command, check=False).returncode
        if code and run != TEACHER:
            keep(run, seed, {"error": f"the process ended with {code}"})
        return code
    finally:
        cores.put(core)


def validate(rates: list[float], work: pathlib.Path) -> None:
    """The student alone on the held-out images, for each learning rate."""
    data = cifar.load()
    bench = Bench(data, None, work)
    for rate in rates:
        start = time.process_time()
        student = train(bench, "alone", 0, rate, lambda epoch, logs: None)
        spent = time.process_time() - start
        found = cifar.accuracy(student, data.x_held_out, data.y_held_out)
        print(f"learning rate {rate}: {found:.4f} on held-out images, {spent:.0f} s", flush=True)


def main(_: list[str]) -> None:
    """Prepares teacher and cache, then makes the runs that are missing."""
    work = pathlib.Path(_WORK.value)
    if _VALIDATE.value:
        _single(None)
        validate([float(rate) for rate in _VALIDATE.value], work)
        return
    if _RUN.value:
        run, seed = _RUN.value.split(":")
        _single(_CORE.value)
        run_here(run, int(seed), work)
        return
    wanted = _METHODS.value or methods.RUNS
    missing = [
        (run, seed) for seed in range(_SEEDS.value) for run in wanted if not finished(run, seed)
    ]
    cores: queue.Queue[int] = queue.Queue()
    for core in sorted(os.sched_getaffinity(0))[: _JOBS.value]:
        cores.put(core)
    if any(methods.asks_teacher(run) for run, _ in missing):
        code = run_elsewhere(TEACHER, 0, cores)
        if code:
            sys.exit(code)
    with concurrent.futures.ThreadPoolExecutor(_JOBS.value) as pool:
        list(pool.map(lambda job: run_elsewhere(job[0], job[1], cores), missing))


if __name__ == "__main__":
    app.run(main)
