"""Zeros of every unit outlive quantisation-aware training, and are zeros of the int8 file."""

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from keras import layers

from tfcomp.callbacks import PruneWeights
from tfcomp.conversion import convert
from tfcomp.pruning import NM, Blocks, ConstantSparsity, Kernels, Weights
from tfcomp.quantization import quantize_aware, strip_quantization

NAMES = ("first", "second", "hidden", "logits")
EXAMPLES = np.random.default_rng(0).normal(size=(32, 6, 6, 4)).astype("float32")
LABELS = np.random.default_rng(1).integers(0, 4, 32)


def network():
    keras.utils.set_random_seed(0)
    x = keras.Input((6, 6, 4))
    y = layers.Conv2D(8, 3, padding="same", use_bias=False, name="first")(x)
    y = layers.ReLU()(layers.BatchNormalization()(y))
    y = layers.Conv2D(8, 3, activation="relu", name="second")(y)
    y = layers.Dense(12, activation="relu", name="hidden")(layers.Flatten()(y))
    return keras.Model(x, layers.Dense(4, name="logits")(y))


def train(model, *callbacks):
    model.compile(
        keras.optimizers.Adam(1e-2), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    model.fit(EXAMPLES, LABELS, epochs=3, batch_size=8, verbose=0, callbacks=list(callbacks))


def kernel(model, name):
    return np.asarray(model.get_layer(name).kernel)


def pruned(unit, **options):
    model = network()
    prune = PruneWeights(ConstantSparsity(0.5), unit=unit, first=True, last=True, **options)
    train(model, prune)
    zeros = {name: kernel(model, name) == 0 for name in NAMES}
    assert prune.report.sparsity == pytest.approx(0.5, abs=0.03)
    assert sum(mask.sum() for mask in zeros.values()) > 0.4 * sum(m.size for m in zeros.values())
    return model, zeros


def tensors(path, shapes):
    """The integer weights of a file, in the order of `shapes`, found by shape."""
    interpreter = Interpreter(model_path=str(path))
    interpreter.allocate_tensors()
    of_shape = {}
    for detail in interpreter.get_tensor_details():
        if detail["dtype"] is np.int8:
            of_shape.setdefault(tuple(detail["shape"].tolist()), []).append(detail["index"])
    assert all(len(of_shape[shape]) == 1 for shape in shapes)
    return [interpreter.get_tensor(of_shape[shape][0]) for shape in shapes]


def in_file(values):
    """A Keras kernel in the order of the file: outputs in front, inputs at the end."""
    return np.moveaxis(values, -1, 0)


def weights_in_file(path, zeros):
    shapes = [in_file(zeros[name]).shape for name in NAMES]
    assert len(set(shapes)) == len(shapes)
    return dict(zip(NAMES, tensors(path, shapes), strict=True))


def obeys(values):
    """Whether of each 4 weights that follow each other on the input axis 2 are zero."""
    return (np.count_nonzero(values.reshape(-1, 4), axis=1) <= 2).all()


def lost(weights, zeros):
    return sum(int((weights[name][in_file(zeros[name])] != 0).sum()) for name in NAMES)


def converted(model, zeros, path, **options):
    convert(model, path, dtype="int8", **options)
    weights = weights_in_file(path, zeros)
    assert all(values.dtype == np.int8 for values in weights.values())
    return weights


def check(unit, path, **options):
    model, zeros = pruned(unit)
    aware = quantize_aware(model, **options)
    before = kernel(aware, "second").copy()
    train(aware, PruneWeights.from_zeros())
    assert np.abs(kernel(aware, "second") - before).max() > 1e-3, "nothing was trained"
    for name in NAMES:
        np.testing.assert_array_equal(kernel(aware, name) == 0, zeros[name])
    stripped = strip_quantization(aware)
    assert all((kernel(stripped, name)[zeros[name]] == 0).all() for name in NAMES)
    weights = converted(aware, zeros, path)
    assert lost(weights, zeros) == 0
    # And the file has other values than zeros.
    for name, values in weights.items():
        assert np.count_nonzero(values) >= 0.9 * np.count_nonzero(~zeros[name])
    return weights


def test_two_of_four(tmp_path):
    weights = check(NM(2, 4), tmp_path / "m.tflite")
    assert all(obeys(values) for values in weights.values())


@pytest.mark.long
@pytest.mark.parametrize("unit", [Weights(), Blocks(4, 4), Kernels()], ids=repr)
def test_other_units(unit, tmp_path):
    if isinstance(unit, Kernels):
        _check_kernels(unit, tmp_path / "m.tflite")
    else:
        check(unit, tmp_path / "m.tflite")


def _check_kernels(unit, path):
    """Only convolutions have kernels: dense layers keep all."""
    model, zeros = network(), {}
    convolutions = {"skip": ["hidden", "logits"], "first": True}
    train(model, PruneWeights(ConstantSparsity(0.5), unit=unit, **convolutions))
    zeros = {name: kernel(model, name) == 0 for name in NAMES}
    assert zeros["second"].all(axis=(0, 1)).sum() == 32
    aware = quantize_aware(model)
    train(aware, PruneWeights.from_zeros())
    weights = converted(aware, zeros, path)
    assert lost(weights, zeros) == 0
    assert (weights["second"] == 0).all(axis=(1, 2)).sum() >= 32


@pytest.mark.long
def test_folded_batch_normalization(tmp_path):
    weights = check(NM(2, 4), tmp_path / "m.tflite", fold_batch_norm=True)
    assert all(obeys(values) for values in weights.values())


@pytest.mark.long
def test_without_training_for_it(tmp_path):
    model, zeros = pruned(NM(2, 4))
    weights = converted(model, zeros, tmp_path / "m.tflite", calibration=EXAMPLES)
    assert lost(weights, zeros) == 0
    assert all(obeys(values) for values in weights.values())


@pytest.mark.long
def test_the_zeros_are_lost_where_nothing_keeps_them(tmp_path):
    """What the other tests would see if the callback did nothing."""
    model, zeros = pruned(NM(2, 4))
    aware = quantize_aware(model)
    train(aware)
    weights = converted(aware, zeros, tmp_path / "m.tflite")
    assert lost(weights, zeros) > 100
    assert not obeys(weights["second"])
