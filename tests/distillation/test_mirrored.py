"""Two replicas make the update that one makes. In a process of its own: devices are set first."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

SCRIPT = """
    import keras, numpy as np, tensorflow as tf
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
    )
    from tfcomp.distillation import Distiller, FitNetsHint, KnowledgeDistillation, cache_teacher

    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((24, 6)).astype("float32"), rng.integers(0, 3, 24)
    weights = rng.random(24).astype("float32")
    CE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    feature = keras.distillation.FeatureDistillation

    class Scalar(keras.distillation.DistillationLoss):
        def compute_loss(self, teacher_outputs, student_outputs, **kwargs):
            return keras.ops.mean((teacher_outputs - student_outputs) ** 2)

    def net(width):
        decay = keras.regularizers.L2(0.01)
        layers = [
            keras.layers.Dense(width, "tanh", kernel_regularizer=decay, name="h"),
            keras.layers.Dense(3),
        ]
        return keras.Sequential([keras.Input((6,)), *layers])

    LOSSES = {
        "response": lambda: KnowledgeDistillation(2.0),
        "weighted": lambda: KnowledgeDistillation(2.0),
        "cached": lambda: KnowledgeDistillation(2.0),
        "hint": lambda: FitNetsHint("h", "h"),
        "scalar": lambda: [Scalar(), KnowledgeDistillation(2.0)],
        "keras": lambda: [
            feature("mse", "h", "h"),
            feature(keras.losses.MeanSquaredError(), "h", "h"),
            keras.distillation.LogitsDistillation(loss=keras.losses.KLDivergence()),
        ],
    }

    def train(strategy, case):
        keras.utils.set_random_seed(1)
        with strategy.scope():
            same = case == "keras"
            teacher, student = net(4 if same else 8), net(4)
            before = student.get_weights()
            distiller = Distiller(teacher, student, LOSSES[case](), student_loss_weight=0.3)
            distiller.compile(keras.optimizers.SGD(0.1), loss=CE, metrics=["accuracy"])
        parts = (x, y, weights) if case == "weighted" else (x, y)
        data = tf.data.Dataset.from_tensor_slices(parts).batch(8)
        if case == "cached":
            data = cache_teacher(data, teacher)
        if case == "response":
            distiller.distillation_losses[0].temperature = 3.0
            assert distiller.distillation_losses[0].get_config()["temperature"] == 3.0
        logs = distiller.fit(data, verbose=0, shuffle=False).history
        moved = np.abs(student.get_weights()[0] - before[0]).max()
        assert moved > 1e-3, moved
        return student.get_weights(), logs

    # One strategy for all: the collectives of several in one process get into each other's way.
    mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    for case in LOSSES:
        one = train(tf.distribute.get_strategy(), case)
        two = train(mirrored, case)
        for a, b in zip(one[0], two[0]):
            assert np.abs(a - b).max() < 1e-5, (case, np.abs(a - b).max())
        for name, value in one[1].items():
            assert np.allclose(value, two[1][name], rtol=1e-4), (case, name, value, two[1][name])
        print("equal:", case)
"""


@pytest.mark.long
def test_two_replicas_make_the_update_of_one() -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    equal = [line for line in done.stdout.splitlines() if line.startswith("equal:")]
    assert len(equal) == 6
