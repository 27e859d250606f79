"""What must hold for every loss, in a Distiller: saving, half precision, replicas, mixing."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcomp import distillation
from tfcomp.distillation import Distiller, PerSampleLoss, with_indices
from tfcomp.distillation.losses.feature_loss import EmbeddingLoss, FeatureLoss
from tfcomp.distillation.losses.response_loss import ResponseLoss

CE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
BASES = {PerSampleLoss, FeatureLoss, EmbeddingLoss, ResponseLoss}
# Loss by name; the arguments that it cannot do without.
ARGUMENTS = {
    "ActivationBoundaries": {},
    "AttentionJacobianMatching": {},
    "AttentionTransfer": {},
    "ContrastiveRepresentationDistillation": {"samples": 16, "negatives": 8, "seed": 1},
    "CorrelationCongruence": {},
    "DIST": {},
    "DecoupledKD": {},
    "FactorTransfer": {},
    "FitNetsHint": {},
    "FlowOfSolutionProcedure": {},
    "GradientAttentionTransfer": {},
    "JacobianMatching": {},
    "KnowledgeDistillation": {"temperature": 2.0},
    "LogitL1": {},
    "LogitRegression": {},
    "NeuronSelectivityTransfer": {},
    "NoisyInputMatching": {},
    "NoisyTeacher": {},
    "ProbabilisticKnowledgeTransfer": {},
    "RelationalKD": {},
    "SimilarityPreserving": {},
    "VariationalInformationDistillation": {},
}
RNG = np.random.default_rng(0)
# Left by one test for the next, which else has to train once more.
LOSS_OF_FIRST_EPOCH: dict[str, float] = {}
X, Y = RNG.random((16, 8, 8, 1)).astype("float32"), RNG.integers(0, 3, 16)


def net(width: int) -> keras.Model:
    x = inputs = keras.Input((8, 8, 1))
    for stage in (1, 2):
        x = keras.layers.Conv2D(width * stage, 3, 2, "same", activation="tanh", name=f"c{stage}")(x)
        x = keras.layers.Conv2D(width * stage, 3, 1, "same", activation="relu", name=f"d{stage}")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, keras.layers.Dense(3, name="head")(x))


def make(name: str, optimizer: str = "adam") -> Distiller:
    """A distiller with this loss and labels, the same each time."""
    keras.utils.set_random_seed(5)
    teacher, student = net(6), net(4)
    loss = getattr(distillation, name)(**ARGUMENTS[name])
    distiller = Distiller(teacher, student, loss, student_loss_weight=0.5)
    if name == "FactorTransfer":
        loss.fit_paraphraser(teacher, X, epochs=1, verbose=0)
    distiller.compile(optimizer, loss=CE)
    return distiller


def data() -> tf.data.Dataset:
    return with_indices(tf.data.Dataset.from_tensor_slices((X, Y)).batch(8))


def fit(distiller: Distiller, epochs: int, initial_epoch: int = 0) -> dict[str, list[float]]:
    history = distiller.fit(
        data(), epochs=epochs, initial_epoch=initial_epoch, verbose=0, shuffle=False
    )
    return history.history


def test_every_public_loss_is_tried():
    public = {
        name
        for name in distillation.__all__
        if isinstance(getattr(distillation, name), type)
        and issubclass(getattr(distillation, name), PerSampleLoss)
        and getattr(distillation, name) not in BASES
    }
    assert public == set(ARGUMENTS)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_saved_in_the_middle_it_goes_on_to_the_same_weights(name: str, tmp_path: pathlib.Path):
    whole = make(name)
    logs = fit(whole, 1)
    LOSS_OF_FIRST_EPOCH[name] = logs["loss"][0]
    assert all(np.isfinite(values).all() for values in logs.values())
    whole.save(tmp_path / "middle.keras")
    loaded = keras.saving.load_model(tmp_path / "middle.keras")
    assert loaded.distillation_losses[0].get_config() == (whole.distillation_losses[0].get_config())
    fit(whole, 2, initial_epoch=1)
    fit(loaded, 2, initial_epoch=1)
    for expected, received in zip(whole.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(received, expected)
    # What is shipped is the student alone.
    assert len(whole.student.weights) == len(net(4).weights)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_half_precision_trains_to_nearly_the_same(name: str):
    expected = LOSS_OF_FIRST_EPOCH.get(name) or fit(make(name), 1)["loss"][0]
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        half = make(name)
        start = half.student.get_weights()[0]
        received = fit(half, 1)["loss"][0]
    finally:
        keras.config.set_dtype_policy(before)
    assert half.student.get_layer("d2").compute_dtype == "bfloat16"
    # A loss's layers stay in full precision, or a distiller loaded under another policy would
    # go on differently.
    for layer in half.loss_layers:
        # A model of several casts nothing by itself.
        for part in getattr(layer, "layers", [layer]):
            assert not part.weights or part.compute_dtype == "float32", part.name
    assert received == pytest.approx(expected, rel=0.15, abs=0.02)
    assert np.abs(half.student.get_weights()[0] - start).max() > 0


def test_all_losses_together_share_the_passes():
    """One student, one teacher, every loss: the total is the weighted sum of them all."""
    keras.utils.set_random_seed(5)
    teacher, student = net(6), net(4)
    losses = [getattr(distillation, name)(**ARGUMENTS[name]) for name in ARGUMENTS]
    weights = [1.0 + index for index in range(len(losses))]
    distiller = Distiller(teacher, student, losses, weights, student_loss_weight=0.0)
    factor = losses[list(ARGUMENTS).index("FactorTransfer")]
    factor.fit_paraphraser(teacher, X, epochs=1, verbose=0)
    distiller.compile("sgd", loss=CE)
    logs = {name: values[0] for name, values in fit(distiller, 1).items()}
    total = sum(w * logs[name] for name, w in zip(distiller.loss_names, weights, strict=True))
    assert logs["distillation_loss"] == pytest.approx(total, rel=1e-5)
    assert logs["loss"] == pytest.approx(total, rel=1e-5)


SCRIPT = """
    import sys, numpy as np, tensorflow as tf, keras
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
    )
    sys.path.insert(0, FOLDER)
    import test_every_loss as cases
    from tfcomp import distillation

    def train(strategy, name):
        with strategy.scope():
            distiller = cases.make(name, "sgd")
            before = distiller.student.get_weights()
        cases.fit(distiller, 1)
        after = distiller.student.get_weights()
        assert max(np.abs(a - b).max() for a, b in zip(after, before)) > 1e-4, name
        return after

    # One strategy for all: the collectives of several in one process get into each other's way.
    mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    for name in cases.ARGUMENTS:
        kind = getattr(distillation, name)
        if kind.batch_relational:
            assert "replica" in kind.__doc__, name
            train(mirrored, name)
            print("per replica:", name)
        elif name in cases.RANDOM:
            train(mirrored, name)
            print("random:", name)
        else:
            one, two = train(tf.distribute.get_strategy(), name), train(mirrored, name)
            worst = max(np.abs(a - b).max() for a, b in zip(one, two))
            assert worst < 1e-5, (name, worst)
            print("equal:", name)
"""
# What they draw is drawn for each replica.
RANDOM = {"NoisyTeacher", "NoisyInputMatching", "ContrastiveRepresentationDistillation"}


@pytest.mark.long
def test_two_replicas_make_the_update_of_one():
    script = f"FOLDER = {str(pathlib.Path(__file__).parent)!r}\n" + textwrap.dedent(SCRIPT)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(done.stdout.splitlines()) == len(ARGUMENTS)
    assert sum(line.startswith("equal:") for line in done.stdout.splitlines()) >= 13
