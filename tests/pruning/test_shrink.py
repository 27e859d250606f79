"""shrink: the smaller model computes what the masked model of full size computes.

The masked model is made without the code under test, see `oracle`.
"""

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keras import layers

from tests.pruning.comparison import check
from tests.pruning.networks import (
    conv_bn,
    dense_net,
    dynamic_size,
    flattened,
    head,
    inception,
    inverted_residual,
    multi_consumer,
    nested,
    operators,
    plain,
    rearranged,
    residual,
    shared,
    squeeze_excite,
    two_in_two_out,
    volumes,
)
from tests.pruning.oracle import (
    assert_equal_to_masked,
    kept_channels,
    randomize,
    wrong_index,
)
from tfcomp.errors import TfcompError, UnsupportedModelError
from tfcomp.graph import dependencies, removal, trace
from tfcomp.pruning import L1Norm, Random, sensitivity, shrink
from tfcomp.quantization import quantize_aware

MODELS = [
    plain, flattened, residual, dense_net, inception, inverted_residual, squeeze_excite,
    two_in_two_out, shared, nested, operators, multi_consumer, rearranged, volumes, dynamic_size,
]  # fmt: skip


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("make", MODELS)
def test_smaller_model_equals_masked_model(make, scope):
    check(make(), seed=3, scope=scope)


def test_barrier_in_the_middle_is_left_alone_and_listed():
    x = keras.Input((8, 8, 3))
    y = conv_bn(x, 6, name="cut")
    y = layers.Conv2D(5, 1, name="before")(y)
    y = layers.Lambda(lambda t: t - keras.ops.mean(t, axis=-1, keepdims=True), name="strange")(y)
    y = layers.Conv2D(6, 1, name="after")(y)
    _, report = check(keras.Model(x, head(y)))
    assert "Lambda" in report.skipped["strange"]
    assert "flows into 'strange' (Lambda)" in report.skipped["before"]
    assert report.skipped["logits"] == "is an output of the model"
    counts = {layer.name: (layer.before, layer.after) for layer in report.layers}
    assert counts == {"cut": (6, 3), "before": (5, 5), "after": (6, 3), "logits": (3, 3)}
    assert "strange" in str(report)


@pytest.mark.parametrize("make", [
    lambda x: layers.LayerNormalization(name="odd")(x),
    lambda x: layers.GroupNormalization(1, name="odd")(x),
    lambda x: layers.Softmax(name="odd")(x),
    lambda x: x[..., ::2],
    lambda x: x[..., 2],
    lambda x: layers.Activation("softmax", name="odd")(x),
    lambda x: layers.Rescaling([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], name="odd")(x),
    lambda x: x * np.arange(1.0, 7.0, dtype="float32"),
    lambda x: keras.ops.softmax(x),
    lambda x: keras.ops.sum(x, axis=-1, keepdims=True),
    lambda x: layers.Conv2D(6, 1)(layers.Permute((1, 3, 2))(x)),
    lambda x: layers.BatchNormalization(axis=1)(x),
])  # fmt: skip
def test_what_mixes_channels_stops_the_cut_but_not_the_model(make):
    x = keras.Input((8, 8, 3))
    y = layers.Conv2D(6, 1, name="free")(x)
    y = layers.Conv2D(6, 1, name="into")(layers.ReLU()(y))
    y = layers.Flatten()(make(y))
    _, report = check(keras.Model(x, layers.Dense(3, name="logits")(y)))
    assert "flows into" in report.skipped["into"] or "activation" in report.skipped["into"]
    assert {x.name: x.after for x in report.layers}["into"] == 6
    assert {x.name: x.after for x in report.layers}["free"] == 3


def test_shared_layer_also_called_on_the_input_is_not_cut_where_it_reads():
    x = keras.Input((8, 8, 4))
    conv = layers.Conv2D(4, 3, padding="same", name="shared")
    norm = layers.BatchNormalization()
    alpha = layers.PReLU(name="alpha")
    y = conv(alpha(norm(x))) + layers.Conv2D(4, 1, name="b")(x)
    z = layers.Conv2D(6, 1, name="free")(norm(alpha(layers.Conv2D(4, 1, name="c")(y))))
    _, report = check(keras.Model(x, head(conv(layers.Conv2D(4, 1, name="d")(z)))))
    after = {layer.name: layer.after for layer in report.layers}
    assert after["c"] == after["d"] == 4
    assert after["shared"] == after["b"] == 2
    assert after["free"] == 3


def channels_first():
    def of(kind, *args, **kwargs):
        return kind(*args, data_format="channels_first", **kwargs)

    def conv(x, filters, name, **kwargs):
        x = of(layers.Conv2D, filters, 3, padding="same", name=name, **kwargs)(x)
        return layers.ReLU()(layers.BatchNormalization(axis=1)(x))

    x = keras.Input((3, 12, 10))
    y = conv(x, 6, "stem")
    gate = of(layers.GlobalAveragePooling2D, keepdims=True)(y)
    gate = of(layers.Conv2D, 6, 1, activation="sigmoid", name="gate")(gate)
    y = layers.Concatenate(axis=1)([layers.Multiply()([y, gate]), conv(y, 4, "beside")])
    y = layers.Add()([y, of(layers.Conv2D, 10, 1, use_bias=False, name="ten")(y)])
    y = of(layers.DepthwiseConv2D, 3, use_bias=False, padding="same", depth_multiplier=2)(y)
    y = of(layers.MaxPooling2D, 2)(layers.PReLU(shared_axes=[2, 3])(y))
    y = of(layers.Conv2DTranspose, 8, 2, 2, name="up")(of(layers.ZeroPadding2D, 1)(y))
    y = of(layers.SeparableConv2D, 8, 3, name="separable")(y)
    y = of(layers.SpatialDropout2D, 0.1)(of(layers.UpSampling2D, 2)(y))
    y = conv(conv(y, 8, "grouped", groups=2), 5, "last")
    pooled = layers.Dense(6, activation="tanh", name="pooled")(of(layers.GlobalMaxPooling2D)(y))
    flat = layers.Dense(6, name="flat")(of(layers.Flatten)(of(layers.AveragePooling2D, 4)(y)))
    plain = layers.Dense(6, name="plain")(layers.Flatten()(of(layers.AveragePooling2D, 8)(y)))
    return keras.Model(x, layers.Dense(3, name="logits")(pooled + flat + plain))


def test_channels_first():
    _, report = check(channels_first())
    assert list(report.skipped) == ["logits"]
    assert {layer.name: layer.after for layer in report.layers} == {
        "stem": 3, "gate": 3, "beside": 2, "ten": 5, "up": 4, "separable": 4, "grouped": 4,
        "last": 3, "pooled": 3, "flat": 3, "plain": 3, "logits": 3,
    }  # fmt: skip


def test_a_bias_that_keras_adds_along_the_width_is_not_cut():
    def model(width, use_bias=True):
        x = keras.Input((3, 5, width))
        y = layers.Conv2D(6, 1, data_format="channels_first", use_bias=use_bias, name="first")(x)
        y = layers.Flatten(data_format="channels_first")(layers.BatchNormalization(axis=1)(y))
        y = layers.Dense(8, activation="relu", name="hidden")(y)
        return keras.Model(x, layers.Dense(3, name="logits")(y))

    # Where half of them would be the width, one more is left.
    cases = [(6, True, 6), (7, True, 3), (2, True, 3), (3, True, 4), (3, False, 3)]
    for width, use_bias, after in cases:
        small, report = check(model(width, use_bias))
        found = {layer.name: layer.after for layer in report.layers}
        assert found.get("first", 6) == after
        assert found["hidden"] == 4
        if after == 6:
            assert f"a bias for 6 channels and a width of {width}" in report.skipped["first"]
        assert small.get_layer("first").filters == after
    found = dependencies(model(3))
    with pytest.raises(UnsupportedModelError, match="biased channels-first layer of width 3"):
        removal.remove_units(found, found.producers["first"].units[:3].tolist())


def test_what_is_added_to_a_concatenation_loses_the_same_share_of_each_part():
    x = keras.Input((6, 6, 3))
    a, b = (layers.Conv2D(8, 3, padding="same", name=name)(x) for name in "ab")
    y = layers.Concatenate(name="cat")([a, b])
    for index in range(4):
        y = layers.Add()([y, layers.Conv2D(16, 1, activation="relu", name=f"block{index}")(y)])
    y = layers.Dense(3, name="logits")(layers.GlobalAveragePooling2D()(y))
    model = keras.Model(x, y)
    _, report = check(model)
    after = {layer.name: layer.after for layer in report.layers}
    assert after == {"a": 4, "b": 4, **{f"block{i}": 8 for i in range(4)}, "logits": 3}
    table = sensitivity(model, lambda m: -m.count_params(), unit="channels", sparsities=[0.25, 0.5])
    blocks = " + ".join(f"block{index}" for index in range(4))
    assert list(table.scores) == [f"a + {blocks}", f"b + {blocks}"]
    ratios = {f"a + {blocks}": 0.5, f"b + {blocks}": 0.25}
    after = {layer.name: layer.after for layer in shrink(model, ratios)[1].layers}
    assert (after["a"], after["b"], after["block0"]) == (4, 6, 10)
    # One of them by name: the groups that it is in.
    after = {layer.name: layer.after for layer in shrink(model, {"a": 0.5})[1].layers}
    assert (after["a"], after["b"], after["block0"]) == (4, 8, 12)


def test_a_quantisation_aware_model_is_to_be_cut_before():
    with pytest.raises(TfcompError, match="quantisation-aware training, before which channels"):
        shrink(quantize_aware(plain()), 0.5)


def test_zero_channels_go_first():
    model = randomize(plain())
    kernel = np.array(model.get_layer("b").kernel)
    kernel[..., [1, 4, 7]] = 0.0
    model.get_layer("b").kernel.assign(kernel)
    small, _ = shrink(model, 0.3, L1Norm(), spare=["a", "c"])
    gone = np.setdiff1d(
        np.arange(10), kept_channels(model.get_layer("b"), small.get_layer("b"), "Conv2D")
    )
    assert gone.tolist() == [1, 4, 7]


# --- The comparison can fail ------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["shifted", "permuted"])
@pytest.mark.parametrize("layer", ["i2", "p1", "last", "short", "logits", "batch_normalization"])
def test_a_planted_wrong_index_is_caught(fault, layer):
    model = randomize(residual())
    victim = layer
    if layer == "batch_normalization":
        victim = next(
            n for n, o in trace(model).ops.items() if isinstance(o, layers.BatchNormalization)
        )
    small, _ = shrink(model, criterion=Random(1))
    assert_equal_to_masked(model, small)
    with wrong_index(model.get_layer(victim), fault) as planted:
        small, _ = shrink(model, criterion=Random(1))
    assert planted
    with pytest.raises(AssertionError):
        assert_equal_to_masked(model, small)


# --- Generated models -------------------------------------------------------------------------


@st.composite
def steps(draw):
    """What to do, as numbers: (kind, which tensor, which other tensor, how many)."""
    number = st.integers(0, 7)
    return draw(
        st.lists(st.tuples(st.integers(0, 13), number, number, number), min_size=3, max_size=12)
    )


def generated(plan):
    """A valid model of any branching: each step adds a tensor made from earlier ones."""
    x = keras.Input((6, 6, 3))
    pool = [layers.Conv2D(4, 1)(x)]
    made = []
    for kind, i, j, n in plan:
        a, b = pool[-1 - i % len(pool)], pool[-1 - j % len(pool)]
        pool.append(_step(kind, x, a, b, n, made))
    last = pool[-1]
    joined = last if len(pool) < 3 else _merge(layers.Add, last, pool[len(pool) // 2])
    flat = layers.Flatten()(joined) if len(plan) % 2 else layers.GlobalAveragePooling2D()(joined)
    ends = [layers.Dense(3)(layers.Dense(5, activation="tanh")(flat))]
    if len(plan) % 3 == 0:
        ends.append(layers.Conv2D(2, 1)(pool[0]))
    return keras.Model(x, ends)


def _merge(kind, a, b):
    if a.shape[-1] != b.shape[-1]:
        b = layers.Conv2D(a.shape[-1], 1, use_bias=False)(b)
    return kind()([a, b])


def _step(kind, x, a, b, n, made):
    if kind <= 1:
        conv = layers.Conv2D(2 + n, 1 + 2 * kind, padding="same", use_bias=n % 2 == 0)
        made.append((a.shape[-1], conv))
        return conv(a)
    if kind == 2:
        return layers.BatchNormalization()(layers.Conv2D(2 + n, 1, activation="relu")(a))
    if kind == 3:
        return layers.DepthwiseConv2D(3, padding="same", depth_multiplier=1 + n % 2)(a)
    if kind == 4:
        return layers.BatchNormalization(scale=n % 2 == 0, center=n % 3 > 0)(a)
    if kind == 5:
        options = [layers.ReLU, layers.PReLU, layers.ELU, lambda: layers.PReLU(shared_axes=[1, 2])]
        return options[n % 4]()(a)
    if kind == 6:
        kind = [layers.Add, layers.Subtract, layers.Average, layers.Maximum][n % 4]
        # What is always 0 would show nothing of the channels that it is made of.
        return _merge(layers.Add if kind is layers.Subtract and a is b else kind, a, b)
    if kind == 7:
        return layers.Concatenate()([a, b])
    if kind == 8:
        gate = layers.GlobalAveragePooling2D(keepdims=True)(a)
        return a * layers.Conv2D(a.shape[-1], 1, activation="sigmoid")(gate)
    if kind == 9:
        return a * 0.5 + (a if n % 2 else 1.0)
    if kind == 10:
        return layers.MaxPooling2D(3, 1, padding="same")(a)
    if kind == 11:
        return layers.Concatenate()([a, x, b])
    if kind == 12:
        return a - keras.ops.mean(a, axis=-1, keepdims=True) if n == 0 else a * a
    fitting = [conv for width, conv in made if width == a.shape[-1]]
    return fitting[n % len(fitting)](a) if fitting else layers.SeparableConv2D(2 + n, 1)(a)


def compare_generated(plan, seed):
    keras.utils.clear_session()
    model = randomize(generated(plan), seed)
    found = dependencies(model)
    rng = np.random.default_rng(seed)
    ratio, scope = float(rng.choice([0.3, 0.5, 0.8])), str(rng.choice(["local", "global"]))
    small, report = shrink(model, ratio, Random(seed), scope, round_to=None if seed % 3 else 2)
    assert report.prunable == found.n_units
    return bool(report.removed) and assert_equal_to_masked(model, small, alive=False)


def compare_many(count, **kwargs):
    lives = []

    @settings(deadline=None, max_examples=count, suppress_health_check=list(HealthCheck), **kwargs)
    @given(steps(), st.integers(0, 1000))
    def run(plan, seed):
        lives.append(compare_generated(plan, seed))

    run()
    assert np.mean(lives) > 0.5, "too many models whose outputs do not depend on their inputs"


def test_generated_models():
    compare_many(25, derandomize=True)


@pytest.mark.long
def test_many_generated_models():
    compare_many(300)
