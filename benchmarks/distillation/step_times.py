"""What a step of every distillation method costs beside the work that it cannot do without.

On one core, batches of 64 images of 32×32×3, teacher and student of the comparison on CIFAR-10:

- with the teacher running, against one compiled function that runs the student's plain training
  step and the teacher forward;
- with what the teacher says from `cache_teacher`, against the student's plain training step;
- mutual learning of two students against two plain steps.

Methods are timed in groups, each with its own baseline and A/A control, and saved group by group:
what is there with the same budget is not timed again.

    python -m benchmarks.distillation.step_times [--rounds=10] [--steps=3] [--methods=at,kd]
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

# Pins the process to one core, hence before TensorFlow.
from benchmarks.distiller_step import WithTeacher, stepper  # isort: skip

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

from benchmarks import results
from benchmarks.distillation import cifar, methods
from benchmarks.timing import Step, interleaved
from tfcomp import distillation
from tfcomp.distillation import DistillationInputs, Distiller, KnowledgeDistillation, MutualLearning
from tfcomp.distillation.extractor import PRE_ACTIVATION
from tfcomp.runtime.machine import hardware

_METHODS = flags.DEFINE_list("methods", None, "by name; all by default")
flags.FLAGS.set_default("rounds", 10)
flags.FLAGS.set_default("steps", 3)

BATCH = 64
BATCHES = 4
# As many as in the comparison: the size of memory banks.
SAMPLES = 10 * cifar.IMAGES_PER_CLASS
GROUP = 6

# Beyond the comparison: methods that match derivatives with respect to the image.
OTHERS: dict[str, Callable[[Any], Any]] = {
    "gradient_at": lambda _: distillation.GradientAttentionTransfer(),
    "jacobian": lambda _: distillation.JacobianMatching(),
    "attention_jacobian": lambda _: distillation.AttentionJacobianMatching(),
    "jacobian_noise": lambda _: distillation.NoisyInputMatching(),
    "logit_l1": lambda _: distillation.LogitL1(),
}
# Trainers in place of a Distiller; of projection with all its routes, before any is pruned.
TRAINERS: dict[str, Callable[[], Distiller]] = {
    "adversarial": lambda: distillation.AdversarialDistiller(teacher(), student()),
    "projection": lambda: distillation.KnowledgeProjection(teacher(), student()),
}
# What the teacher says of these is not cached: it depends on the step.
NOT_CACHED = ("gradient_at", "jacobian", "attention_jacobian", "jacobian_noise")


def student() -> keras.Model:
    return cifar.STUDENT.build(0, "student")


def teacher() -> keras.Model:
    return cifar.TEACHER.build(0, "teacher")


def data() -> tf.data.Dataset:
    """Batches of (DistillationInputs, label); which images does not matter for time."""
    rng = np.random.default_rng(0)
    count = BATCH * BATCHES
    images = rng.integers(0, 256, (count, 32, 32, 3)).astype("uint8")
    parts = (images, np.arange(count), rng.integers(0, 10, count))
    dataset = tf.data.Dataset.from_tensor_slices(parts).batch(BATCH, drop_remainder=True).cache()
    return dataset.map(lambda x, index, y: (DistillationInputs(x, index=index), y))


def plain() -> tf.data.Dataset:
    """The same without what only a distiller reads."""
    return data().map(lambda x, y: (x.inputs, y))


def names() -> list[str]:
    """The methods that were asked for, but mutual learning, which has no teacher."""
    known = [n for n, m in methods.METHODS.items() if m.loss is not None or n == "kd"]
    known += [*TRAINERS, *OTHERS]
    return [name for name in _METHODS.value or known if name in known]


def loss_of(name: str) -> Any:
    """The loss of a method, ready for training."""
    if name == "kd":
        return KnowledgeDistillation(methods.TEMPERATURE)
    make = OTHERS.get(name) or methods.METHODS[name].loss
    assert make is not None
    loss = make(np.arange(SAMPLES) % 10)
    if name == "ft":
        loss.fit_paraphraser(teacher(), data().take(1), epochs=1, verbose=0)
    return loss


def cached(model: Distiller) -> tf.data.Dataset:
    """The data with all that the distiller's losses want of the teacher."""
    routes = model.routes if isinstance(model, distillation.KnowledgeProjection) else ()
    wanted = [of_teacher for of_teacher, _ in routes]
    for loss in model.distillation_losses:
        layers = keras.tree.flatten(getattr(loss, "teacher_layer_name", None))
        end = PRE_ACTIVATION if getattr(loss, "pre_activation", False) else ""
        wanted += [layer + end for layer in layers if layer is not None]
    return distillation.cache_teacher(data(), model.teacher, layers=wanted)


def distiller(name: str) -> Distiller:
    if name in TRAINERS:
        return TRAINERS[name]()
    return Distiller(teacher(), student(), [loss_of(name)])


def running_steps(group: list[str]) -> dict[str, Step]:
    """A step of each method with the teacher running."""
    return {name: stepper(distiller(name), data()) for name in group}


def cached_steps(group: list[str]) -> dict[str, Step]:
    """A step of each method with the teacher's answers from memory."""
    models = {name: distiller(name) for name in group}
    return {name: stepper(model, cached(model)) for name, model in models.items()}


def in_groups(
    part: str,
    wanted: list[str],
    baseline: Callable[[], Step],
    make: Callable[[list[str]], dict[str, Step]],
    budget: dict[str, Any],
) -> None:
    """Ratios of those that are not there yet; of the groups' controls the worst is kept."""
    wanted = [name for name in wanted if name not in stored(budget)[part]]
    for start in range(0, len(wanted), GROUP):
        ratios = interleaved(
            baseline(),
            make(wanted[start : start + GROUP]),
            rounds=budget["rounds"],
            steps=budget["steps"],
        )
        results.print_ratios(part, ratios, {})
        control = dataclasses.asdict(ratios.pop("A/A control"))
        every = stored(budget)
        worst = every[part].setdefault("A/A control", control)
        if abs(control["ratio"] - 1) > abs(worst["ratio"] - 1):
            every[part]["A/A control"] = control
        every[part] |= {name: dataclasses.asdict(ratio) for name, ratio in ratios.items()}
        results.save(methods.STEP_TIMES, seed=0, budget=budget, results=every)
        keras.backend.clear_session()


def stored(budget: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What has been measured with this budget."""
    saved = results.load(methods.STEP_TIMES)
    found: dict[str, dict[str, Any]] = {"running": {}, "cached": {}, "peers": {}}
    return found if saved is None or saved["budget"] != budget else saved["results"]


def floor() -> Step:
    """The student's plain step and the teacher forward."""
    return stepper(WithTeacher(teacher(), student()), plain())


def two_students() -> Step:
    """A step of each of two students that do not know of each other."""
    one, other = (stepper(student(), plain()) for _ in range(2))
    return lambda: (one(), other())


def peers(_: list[str]) -> dict[str, Step]:
    """A step of two peers."""
    both = MutualLearning([student(), cifar.STUDENT.build(1, "peer")])
    return {"mutual": stepper(both, plain())}


def main(_: list[str]) -> None:
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    rounds, steps = flags.FLAGS.rounds, flags.FLAGS.steps
    budget: dict[str, Any] = {"rounds": rounds, "steps": steps, "batch": BATCH, "cores": 1}
    # Times of several machines are not put into one table.
    budget |= {"group": GROUP, "cpu": hardware()["cpu"]}
    in_groups("running", names(), floor, running_steps, budget)
    cacheable = [name for name in names() if name not in NOT_CACHED]
    in_groups("cached", cacheable, lambda: stepper(student(), plain()), cached_steps, budget)
    in_groups("peers", ["mutual"], two_students, peers, budget)


if __name__ == "__main__":
    app.run(main)
