"""PruneWeights over two replicas, in a process that lacks tfcomp, and with other rooms."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import textwrap
from typing import Any

import keras
import numpy as np
import pytest

from tfcomp.callbacks import PruneWeights
from tfcomp.pruning import ConstantSparsity, PolynomialDecay

rng = np.random.default_rng(1)


def run(code: str, *arguments: object) -> str:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def zero_count(model: Any) -> int:
    return sum(int((w == 0).sum()) for w in model.get_weights() if w.ndim > 1)


def test_two_replicas_hold_the_same_masks() -> None:
    output = run("""
        import numpy as np, tensorflow as tf, keras
        from tfcomp.callbacks import PruneWeights
        from tfcomp.pruning import PolynomialDecay

        cpu = tf.config.list_physical_devices("CPU")[0]
        two = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(cpu, two)
        strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
        assert strategy.num_replicas_in_sync == 2
        keras.utils.set_random_seed(0)
        with strategy.scope():
            layers = [keras.Input((8,)), keras.layers.Dense(10, name="a"), keras.layers.Dense(3)]
            model = keras.Sequential(layers)
            model.compile(keras.optimizers.Adam(0.01), "mse", jit_compile=False)
        x, y = np.random.randn(64, 8), np.random.randn(64, 3)
        model.fit(x, y, batch_size=16, verbose=0)  # traced before
        prune = PruneWeights(PolynomialDecay(0.0, 0.75, 0, 10, frequency=2), scope="global")

        class Watch(keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                for constraint in prune._session.constraints:
                    self.compare(constraint.mask.value)
                for kernel in prune._session.kernels:
                    self.compare(kernel.variable.value)

            def compare(self, mirrored):
                one, two = strategy.experimental_local_results(mirrored)
                assert one.device != two.device
                assert np.array_equal(one.numpy(), two.numpy())

        model.fit(x, y, batch_size=16, epochs=3, verbose=0, callbacks=[prune, Watch()])
        for kernel in prune._session.kernels:
            Watch().compare(kernel.variable.value)
        zeros = sum(int((w == 0).sum()) for w in model.get_weights() if w.ndim > 1)
        assert model.layers[0].kernel.constraint is None
        print(zeros, prune.report.finished)
    """)
    assert output.split()[-2:] == ["83", "True"]  # 0.75 * 110 = 82.5


def test_a_saved_model_is_plain_keras(tmp_path: pathlib.Path) -> None:
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(10), keras.layers.Dense(3)])
    model.compile("adam", "mse", jit_compile=False)
    x, y = rng.normal(size=(32, 8)), rng.normal(size=(32, 3))
    inside = keras.callbacks.ModelCheckpoint(tmp_path / "inside.keras")
    prune = PruneWeights(ConstantSparsity(0.8))
    model.fit(x, y, verbose=0, callbacks=[prune, inside])
    model.save(tmp_path / "after.keras")
    code = """
        import sys
        sys.modules["tfcomp"] = None  # importing it is an error from here on
        import keras
        for path in sys.argv[1:]:
            model = keras.saving.load_model(path)
            assert all(v.constraint is None for v in model.weights)
            print(sum(int((w == 0).sum()) for w in model.get_weights() if w.ndim > 1))
        assert not [name for name in sys.modules if name.startswith("tfcomp.")]
    """
    output = run(code, tmp_path / "inside.keras", tmp_path / "after.keras")
    assert output.split() == ["88", "88"]  # 0.8 * 110


def conv_net() -> keras.Model:
    x = keras.Input((8, 8, 2))
    y = keras.layers.Conv2D(4, 3, padding="same", use_bias=False)(x)
    y = keras.layers.ReLU()(keras.layers.BatchNormalization()(y))
    y = keras.layers.ReLU()(keras.layers.DepthwiseConv2D(3, padding="same")(y))
    y = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(6, 1)(y))
    return keras.Model(x, keras.layers.Dense(3)(y))


def test_the_student_in_our_distiller() -> None:
    distillation = pytest.importorskip("tfcomp.distillation")
    teacher, student = conv_net(), conv_net()
    before = teacher.get_weights()
    distiller = distillation.Distiller(
        teacher,
        student,
        [distillation.KnowledgeDistillation(temperature=2.0), distillation.FitNetsHint()],
    )
    distiller.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x, y = rng.normal(size=(32, 8, 8, 2)), rng.integers(0, 3, 32)
    prune = PruneWeights(PolynomialDecay(0.0, 0.5, 0, 4), first=True, last=True)
    distiller.fit(x, y, batch_size=8, verbose=0, callbacks=[prune])
    # 72, 24 and 18 weights; the depthwise kernel is spared, and the helper of the hint.
    assert zero_count(student) == 36 + 12 + 9
    for old, new in zip(before, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_zeros_survive_quantisation_aware_training() -> None:
    quantization = pytest.importorskip("tfcomp.quantization")
    x, y = rng.normal(size=(32, 8, 8, 2)), rng.normal(size=(32, 3))
    model = conv_net()
    model.compile("adam", "mse", jit_compile=False)
    model.fit(
        x,
        y,
        batch_size=8,
        verbose=0,
        callbacks=[PruneWeights(ConstantSparsity(0.5), first=True, last=True)],
    )
    gone = {v.path: v.numpy() == 0 for v in model.weights if v.name == "kernel"}
    aware = quantization.quantize_aware(model)
    aware.compile("adam", "mse", jit_compile=False)
    prune = PruneWeights.from_zeros()
    aware.fit(x, y, batch_size=8, verbose=0, callbacks=[prune])
    assert prune.report is not None
    assert sorted(row.zeros for row in prune.report.kernels) == sorted(
        int(mask.sum()) for mask in gone.values()
    )
    assert sum(row.zeros for row in prune.report.kernels) == 36 + 12 + 9
    spared = PruneWeights(ConstantSparsity(0.6))
    aware.fit(x, y, batch_size=8, verbose=0, callbacks=[spared])
    assert spared.report is not None
    assert any("depthwise" in reason for reason in spared.report.skipped.values())
