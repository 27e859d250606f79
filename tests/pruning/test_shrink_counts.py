"""shrink: how many channels go, how ordinary a model is left, and what is refused."""

import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tests.pruning.comparison import check
from tests.pruning.networks import (
    head,
    inverted_residual,
    nested,
    residual,
    squeeze_excite,
    two_in_two_out,
)
from tests.pruning.oracle import (
    kept_channels,
    random_inputs,
    randomize,
)
from tfcomp.errors import TfcompError, UnsupportedModelError
from tfcomp.graph import dependencies, rebuild, removal
from tfcomp.pruning import Budget, Criterion, L2Norm, Random, shrink

# --- How many ---------------------------------------------------------------------------------


def chain(*widths, classes=3):
    x = y = keras.Input((4, 4, 3))
    for index, width in enumerate(widths):
        y = layers.Conv2D(width, 1, name=f"c{index}")(y)
    return randomize(keras.Model(x, head(y, classes)))


def widths(report):
    return [layer.after for layer in report.layers if layer.name != "logits"]


@pytest.mark.parametrize(
    "ratio, round_to, expected",
    [
        (0.0, None, [10, 16, 100]),
        (0.5, None, [5, 8, 50]),
        (0.29, None, [8, 12, 71]),
        (0.99, None, [1, 1, 1]),
        (0.5, 8, [8, 8, 56]),
        (0.9, 8, [8, 8, 16]),
        (0.2, 8, [8, 16, 80]),
        (0.01, 8, [10, 16, 100]),
        (0.5, 64, [10, 16, 64]),
        (0.5, 1, [5, 8, 50]),
    ],
)
def test_counts_of_local_scope(ratio, round_to, expected):
    _, report = shrink(chain(10, 16, 100), ratio, round_to=round_to)
    assert widths(report) == expected
    assert report.prunable == 126
    assert report.removed == 126 - sum(expected)
    assert report.asked == ratio
    assert report.got == pytest.approx(report.removed / 126)
    assert report.got <= ratio


@pytest.mark.parametrize("criterion", ["l1", "l2", "random"])
@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.77])
def test_counts_of_global_scope(criterion, ratio):
    _, report = shrink(chain(10, 16, 100), ratio, criterion, scope="global")
    assert report.removed == int(ratio * 126)
    assert sum(widths(report)) == 126 - report.removed
    _, rounded = shrink(chain(10, 16, 100), ratio, criterion, scope="global", round_to=8)
    for exact, kept, total in zip(widths(report), widths(rounded), (10, 16, 100), strict=True):
        assert kept == min(total, -(-exact // 8) * 8)


def test_coupled_channels_count_once():
    _, report = shrink(randomize(residual()), 0.5)
    before = {layer.name: layer.before for layer in report.layers}
    after = {layer.name: layer.after for layer in report.layers}
    assert report.prunable == 6 + 5 + 7 + 9
    assert report.removed == 3 + 2 + 3 + 4
    assert after["stem"] == after["i2"] == 3
    assert after["p2"] == after["short"] == after["last"] == 5
    assert before["logits"] == after["logits"]


def test_global_scope_keeps_a_channel_of_each_layer():
    class FirstLayers(Criterion):
        comparable = True

        def scores(self, candidates):
            return {
                name: np.full(kernel.channels, float(index))
                for index, (name, kernel) in enumerate(candidates.items())
            }

    _, report = shrink(chain(4, 4, 4), 0.6, FirstLayers(), "global")
    assert widths(report) == [1, 1, 3]
    # What cannot be taken of the last layer is not there at all: the report says so.
    _, report = shrink(chain(4, 4, 4), 0.95, FirstLayers(), "global")
    assert widths(report) == [1, 1, 1]
    assert report.got == 9 / 12 < report.asked


def test_global_scope_is_fair_to_layers_of_any_scale():
    model = chain(20, 20)
    layer = model.get_layer("c0")
    layer.kernel.assign(np.array(layer.kernel) * 1e-3)
    _, report = shrink(model, 0.5, "l1", "global")
    assert min(widths(report)) >= 5


def test_rounding_where_layers_of_a_group_differ_in_width():
    x = keras.Input((4, 4, 3))
    joined = layers.Concatenate()(
        [layers.Conv2D(12, 1, name="a")(x), layers.Conv2D(20, 1, name="b")(x)]
    )
    y = layers.Add()([layers.Conv2D(32, 1, name="c")(x), joined])
    _, report = check(keras.Model(x, head(y)), ratio=0.6, round_to=8)
    for layer in report.layers[:3]:
        assert layer.after % 8 == 0 or layer.after == layer.before
    assert 0 < report.removed <= 0.6 * 32


def test_spare_and_importance_of_coupled_layers():
    model = randomize(residual())
    small, report = shrink(model, 0.5, spare=["short", "i1"])
    after = {layer.name: layer.after for layer in report.layers}
    assert after["p2"] == after["short"] == after["last"] == 9
    assert after["i1"] == 5
    assert report.skipped["i1"] == "is to be spared"
    # Stem and i2 are added up: what goes is what is small in the sum of both.
    norms = sum(
        np.abs(np.asarray(model.get_layer(n).kernel)).sum((0, 1, 2)) for n in ("stem", "i2")
    )
    for name in ("stem", "i2"):
        kept = kept_channels(model.get_layer(name), small.get_layer(name), "Conv2D")
        assert kept == sorted(np.argsort(norms, kind="stable")[3:].tolist())


def test_ties_go_by_index_and_a_seed_gives_the_same_model():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(6, name="h"), layers.Dense(2)])
    model.layers[0].set_weights([np.ones((3, 6)), np.arange(6.0)])
    small, _ = shrink(model, 0.5)
    assert small.get_layer("h").get_weights()[1].tolist() == [3.0, 4.0, 5.0]
    first, second = (shrink(model, 0.5, Random(4))[0] for _ in range(2))
    for a, b in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


# --- An ordinary Keras model ------------------------------------------------------------------


def test_flags_names_and_structure_stay():
    model = two_in_two_out()
    model.get_layer("conv").trainable = False
    model.get_layer("joined").kernel_regularizer = keras.regularizers.L2(1e-3)
    small, _ = check(model)
    assert small.name == model.name
    assert small.get_layer("conv").trainable is False
    assert small.get_layer("joined").trainable is True
    assert [layer.name for layer in small.layers] == [layer.name for layer in model.layers]
    assert set(small.input) == {"image", "facts"}
    assert set(small.output) == {"heat", "score"}
    assert {key: value.shape for key, value in small.output.items()} == {
        key: value.shape for key, value in model.output.items()
    }
    frozen = nested()
    next(layer for layer in frozen.layers if isinstance(layer, keras.Sequential)).trainable = False
    small, _ = shrink(randomize(frozen))
    assert small.get_layer("tail").trainable is False
    assert small.get_layer("outer").trainable is True


def test_initializers_that_hold_an_array_do_not_hinder():
    rng = np.random.default_rng(0)
    constant = keras.initializers.Constant
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(6, kernel_initializer=constant(rng.normal(size=(4, 6)))),
            layers.Dense(2, kernel_initializer=constant(rng.normal(size=(6, 2)))),
        ]
    )
    small, report = check(model, round_to=np.int64(3))
    assert report.round_to == 3
    assert keras.models.clone_model(small).count_params() == small.count_params()


def test_smaller_model_trains():
    small, _ = shrink(randomize(residual()))
    small.compile("adam", "mse")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(8, 8, 8, 3)), rng.normal(size=(8, 3))
    losses = small.fit(x, y, epochs=3, verbose=0).history["loss"]
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]


_LOAD = """
import sys
sys.modules["tfcomp"] = None
import keras, numpy as np
model = keras.models.load_model(sys.argv[1])
data = np.load(sys.argv[2])
np.testing.assert_allclose(np.asarray(model(data["x"])), data["y"], rtol=1e-6, atol=1e-6)
"""


def test_loads_where_the_library_is_absent(tmp_path):
    small, _ = shrink(randomize(inverted_residual()))
    path = tmp_path / "small.keras"
    small.save(path)
    x = random_inputs(small)[0]
    np.savez(tmp_path / "data.npz", x=x, y=np.asarray(small(x)))
    script = tmp_path / "load.py"
    script.write_text(_LOAD)
    done = subprocess.run(
        [sys.executable, script, path, tmp_path / "data.npz"],
        capture_output=True, text=True, cwd=pathlib.Path(tmp_path), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_litert_runs_the_smaller_model():
    from ai_edge_litert.interpreter import Interpreter

    small, _ = shrink(randomize(squeeze_excite()))
    fixed = rebuild(small, batch_size=1)
    converted = tf.lite.TFLiteConverter.from_keras_model(fixed).convert()
    interpreter = Interpreter(model_content=converted)
    interpreter.allocate_tensors()
    x = random_inputs(small, batch=1)[0]
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    received = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    expected = np.asarray(small(x))
    np.testing.assert_allclose(received, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


# --- Bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"ratio": 50}, r"Received: ratio=50. Did you mean 0.5\?"),
        ({"ratio": 1.0}, r"in \[0, 1\)"),
        ({"ratio": -0.1}, r"in \[0, 1\)"),
        ({"ratio": float("nan")}, "Received: ratio=nan"),
        ({"ratio": "half"}, "Received: ratio='half'"),
        ({"ratio": True}, "Received: ratio=True"),
        ({"scope": "Globl"}, r"Did you mean 'global'\?"),
        ({"criterion": "L1"}, r"Did you mean 'l1'\?"),
        ({"criterion": L2Norm}, r"Write L2Norm\(\)"),
        ({"criterion": 7}, "Received: criterion=7"),
        ({"round_to": 0}, "at least 1"),
        ({"round_to": 8.0}, "at least 1"),
        ({"spare": ["c00"]}, r"Did you mean 'c0'\?"),
    ],
)
def test_bad_arguments_are_told_in_one_line(arguments, words):
    with pytest.raises(TfcompError, match=words) as caught:
        shrink(chain(4), **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("scores", [np.ones(3), np.full(4, np.nan), None])
def test_bad_scores_are_refused(scores):
    class Bad(Criterion):
        def scores(self, candidates):
            return {} if scores is None else dict.fromkeys(candidates, scores)

    with pytest.raises(TfcompError, match=r"scores of shape .* or \(4,\) for its channels"):
        shrink(chain(4, classes=4), criterion=Bad())


def test_scores_that_are_no_dict_are_refused():
    class Nothing(Criterion):
        def scores(self, candidates):
            return None

    with pytest.raises(TfcompError, match="as a dict from names of kernels or layers") as caught:
        shrink(chain(4), criterion=Nothing())
    assert "\n" not in str(caught.value)


def test_a_model_without_anything_to_cut_is_refused_with_the_reasons():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2, name="only")])
    with pytest.raises(TfcompError, match="only: is an output of the model"):
        shrink(model)
    copy, report = shrink(model, 0.0)
    assert report.removed == report.prunable == 0
    np.testing.assert_array_equal(copy.get_weights()[0], model.get_weights()[0])
    with pytest.raises(UnsupportedModelError, match="at least one"):
        removal.remove_units(dependencies(chain(4)), range(4))


@pytest.mark.parametrize(
    ("asked", "name", "reason"),
    [
        ({"ratio": 0.3}, "tiny", "0.3 of 2 is less than one channel"),
        ({"ratio": 0.3, "round_to": 16}, "mid", "counts are brought up to multiples of 16"),
        ({"ratio": {"mid": 0.5}}, "tiny", "none of its channels was to be removed"),
        ({"ratio": {"mid": 0.5, "tiny": 0.0}}, "tiny", "none of its channels was to be removed"),
        ({"ratio": 0.0}, "mid", "none of its channels was to be removed"),
        ({"budget": Budget(macs=10**9)}, "mid", "none of its channels was to be removed"),
        ({"ratio": 0.1, "scope": "global"}, "mid", "of more importance than those removed"),
        ({"ratio": 0.01, "scope": "global"}, "mid", "0.01 of all 22 channels is less than one"),
    ],
)
def test_what_loses_nothing_is_listed_with_the_reason(asked, name, reason):
    layers = [
        keras.layers.Dense(2, name="tiny"),
        keras.layers.Dense(16, name="mid"),
        keras.layers.Dense(4, name="wide"),
        keras.layers.Dense(3, name="logits"),
    ]
    model = keras.Sequential([keras.Input((5,)), *layers])
    if asked.get("scope") == "global":  # of which all filters are alike, and those of others not
        layers[1].kernel.assign(keras.ops.ones((2, 16)))
        for layer in (layers[0], layers[2]):
            shape = layer.kernel.shape
            layer.kernel.assign(keras.ops.broadcast_to(np.arange(shape[1]) ** 3.0, shape))
    _, report = shrink(model, **asked)
    assert report.skipped[name].startswith("loses nothing: ")
    assert report.skipped[name].endswith(reason)
    counts = {layer.name: (layer.before, layer.after) for layer in report.layers}
    assert counts[name][0] == counts[name][1]
    listed = {each for each, (before, after) in counts.items() if before == after}
    assert listed <= set(report.skipped)


@pytest.mark.parametrize("least", [0.0, 0.1])
def test_what_goes_with_a_layer_that_keeps_its_channels_is_told_so(least):
    x = keras.Input((5,))
    y = layers.Dense(8, name="stem")(x)
    y = layers.Add()([y, layers.Dense(8, name="branch")(y)])
    model = keras.Model(x, layers.Dense(3, name="logits")(y))
    _, report = shrink(model, {"stem": 0.5, "branch": least})
    assert report.skipped["stem"].endswith(f"goes with branch, for which `ratio` says {least:g}")


def test_channels_that_go_together_are_counted_as_such():
    x = keras.Input((8, 8, 4))
    y = layers.Conv2D(8, 3, groups=2, name="g")(x)
    model = keras.Model(x, layers.Dense(3, name="logits")(layers.Flatten()(y)))
    _, report = shrink(model, 0.2)
    assert report.skipped["g"].endswith(
        "0.2 of 4 sets of 2 channels that go together is less than one set"
    )
