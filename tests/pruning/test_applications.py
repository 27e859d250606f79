"""shrink on keras.applications: the smallest model of each family, cut by 30 % and by 50 %.

Equality is told in float64, to nine digits; the files of LiteRT are compared in float32.
`benchmarks.pruning.applications` does the same for all models.
"""

import keras
import numpy as np
import pytest

from tests.pruning.oracle import (
    compare,
    double_precision,
    is_caught,
    outputs,
    pictures,
    settle_for,
    take_weights,
    victims,
)
from tfcomp.conversion import convert
from tfcomp.pruning import Random, shrink

SEED = 0
OPTIONS = {
    "MobileNet": {"alpha": 0.25},
    "MobileNetV2": {"alpha": 0.35},
    "MobileNetV3Small": {"alpha": 0.5},
    "InceptionV3": {"input_shape": (75, 75, 3)},
    "InceptionResNetV2": {"input_shape": (75, 75, 3)},
    "Xception": {"input_shape": (71, 71, 3)},
}
QUICK = ["MobileNet", "MobileNetV3Small"]
LONG = [
    "ConvNeXtTiny", "DenseNet121", "EfficientNetB0", "EfficientNetV2B0", "InceptionResNetV2",
    "InceptionV3", "MobileNetV2", "NASNetMobile", "ResNet50", "ResNet50V2", "VGG16", "Xception",
]  # fmt: skip
OUTPUT = "is an output of the model"
LAYER_NORM = "normalises over channels: without one of them the others would change"
BEHIND_ONE = "channels that cannot be cut"


def also_long(quick):
    slow = [name for name in [*QUICK, *LONG] if name not in quick]
    return [*quick, *(pytest.param(name, marks=pytest.mark.long) for name in slow)]


def application(name):
    keras.utils.clear_session()
    options = {"input_shape": (32, 32, 3), **OPTIONS.get(name, {})}
    make = getattr(keras.applications, name)
    return make(weights=None, classes=10, classifier_activation=None, **options)


@pytest.mark.parametrize("name", also_long(QUICK))
@pytest.mark.parametrize("ratio", [0.3, 0.5])
def test_smaller_model_equals_masked_model(name, ratio):
    with double_precision():
        model = settle_for(application(name), ratio, SEED)
        before = model.get_weights()
        small, report = shrink(model, ratio, Random(SEED))
        found = compare(model, small, pictures(model))
    assert found.difference <= 1e-9
    assert found.alive
    assert all((a == b).all() for a, b in zip(before, model.get_weights(), strict=True))
    assert report.parameters_after == small.count_params() < model.count_params()
    # Of each group of coupled layers a share, rounded down.
    assert ratio - 0.05 < report.got <= ratio
    left_alone = [reason for reason in report.skipped.values() if reason != OUTPUT]
    assert len(report.skipped) - len(left_alone) == 1
    # Only ConvNeXt has layers that need every channel, and sums with what they give.
    assert all(reason.endswith((LAYER_NORM, BEHIND_ONE)) for reason in left_alone)
    assert bool(left_alone) == (name == "ConvNeXtTiny")


@pytest.mark.parametrize("name", also_long(["MobileNet"]))
def test_wrong_indices_are_caught(name):
    with double_precision():
        model = settle_for(application(name), 0.5, SEED)
        small, _ = shrink(model, 0.5, Random(SEED))
        for layer in victims(model, small):
            for fault in ("shifted", "permuted"):
                assert is_caught(model, 0.5, SEED, layer, fault), (layer, fault)


@pytest.mark.parametrize("name", also_long(["MobileNetV2"]))
def test_litert_runs_the_smaller_model(name, tmp_path):
    with double_precision():
        model = settle_for(application(name), 0.5, SEED)
    small, _ = shrink(take_weights(application(name), model), 0.5, Random(SEED))
    artifact = convert(small, tmp_path / "small.tflite")
    images = pictures(small)[0]
    (expected,) = outputs(small, [images])
    received = np.concatenate([artifact.run(image[None]) for image in images])
    assert np.abs(received - expected).max() <= 2e-4 * np.abs(expected).max()
