"""Tracing and rebuilding: the copy computes what the original computes."""

import keras
import numpy as np
import pytest

from tfcomp.errors import UnsupportedModelError
from tfcomp.graph import rebuild, trace


def _randomize(model: keras.Model, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    model.set_weights([rng.uniform(0.2, 1.0, w.shape) for w in model.get_weights()])


def _inputs(model: keras.Model, seed: int = 1) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(2, *t.shape[1:])).astype("float32") for t in model.inputs]


def _calls(model: keras.Model) -> str:
    """The calls as the configuration tells them; a Lambda's byte code is not stable."""
    layers = model.get_config()["layers"]
    return str([(layer["name"], layer.get("inbound_nodes")) for layer in layers])


def _branching() -> keras.Model:
    x = keras.Input((8, 8, 3), name="image")
    shared = keras.layers.Conv2D(4, 3, padding="same", name="shared")
    narrow = keras.layers.Conv2D(3, 1, name="narrow")
    a = shared(x)
    b = shared(narrow(a))
    inner = keras.Sequential(
        [keras.Input((8, 8, 4)), keras.layers.Conv2D(4, 1, name="narrow"),
         keras.layers.BatchNormalization()],
        name="inner",
    )  # fmt: skip
    y = inner(a + b)
    z = inner(y)[:, 1:, ::2]
    left, right = keras.ops.split(z, 2, axis=-1)
    z = keras.layers.Concatenate()([right, left])
    z = keras.layers.Lambda(lambda t: t * 2.0)(z)
    return keras.Model(x, {"map": z, "flat": keras.layers.Flatten()(z)}, name="branching")


def _two_inputs() -> keras.Model:
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    y = keras.layers.Dense(3)(keras.ops.concatenate([a, b], axis=-1))
    return keras.Model([a, b], [y, keras.ops.relu(y) - 1.0])


def _nested_in_nested() -> keras.Model:
    core = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, name="d")], name="core")
    x = keras.Input((4,))
    middle = keras.Model(x, core(keras.layers.Dense(4, name="d")(x)), name="middle")
    y = keras.Input((4,))
    return keras.Model(y, keras.layers.Dense(2, name="d")(middle(y)))


@pytest.mark.parametrize("make", [_branching, _two_inputs, _nested_in_nested])
def test_rebuilt_model_computes_the_same(make):
    model = make()
    _randomize(model)
    before = _calls(model)
    copy = rebuild(model)
    inputs = _inputs(model)
    arguments = inputs if len(inputs) > 1 else inputs[0]
    expected, received = model(arguments), copy(arguments)
    keras.tree.map_structure(np.testing.assert_array_equal, expected, received)
    assert _calls(model) == before, "the caller's model was changed"
    assert not {id(v) for v in copy.variables} & {id(v) for v in model.variables}


def test_trace_lists_shared_and_nested_calls():
    graph = trace(_branching())
    names = [node.name for node in graph.nodes]
    assert names.count("shared") == 2
    assert names.count("inner_narrow") + names.count("narrow") == 3
    assert len(graph.calls(graph.ops["shared"])) == 2
    split = next(node for node in graph.nodes if node.kind == "Split")
    assert [t.shape for t in split.outputs] == [(None, 7, 4, 2)] * 2
    for node in graph.nodes:
        for tensor in node.inputs:
            assert node in graph.consumers(tensor)
        for tensor in node.outputs:
            assert graph.producer(tensor) is node


def test_order_is_topological():
    graph = trace(_branching())
    seen = set(graph.input_tensors)
    for node in graph.nodes:
        assert set(node.inputs) <= seen
        seen |= set(node.outputs)
    assert set(graph.output_tensors) <= seen


def test_call_hook_inserts_operations():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2), keras.layers.ReLU()])
    doubled = rebuild(model, call=lambda op, node, args, kwargs: op(*args, **kwargs) * 2.0)
    x = np.random.default_rng(0).normal(size=(3, 4)).astype("float32")
    np.testing.assert_allclose(doubled(x), 4.0 * np.asarray(model(x)), rtol=1e-6)


def test_adapted_normalization_keeps_its_statistics():
    data = np.random.default_rng(0).uniform(3.0, 9.0, (50, 3)).astype("float32")
    layer = keras.layers.Normalization()
    layer.adapt(data)
    model = keras.Sequential([keras.Input((3,)), layer])
    np.testing.assert_array_equal(rebuild(model)(data), model(data))


def test_batch_size_can_be_fixed():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    assert rebuild(model, batch_size=1).inputs[0].shape == (1, 4)


class _Subclassed(keras.Model):
    def call(self, x):
        return x


@pytest.mark.parametrize(
    "model, words",
    [
        (_Subclassed(name="mine"), "subclassed model of class _Subclassed"),
        (keras.Sequential([keras.layers.Dense(2)]), "input shape is unknown"),
        ("model.keras", "Received: str"),
    ],
)
def test_what_cannot_be_walked_is_refused_in_one_line(model, words):
    with pytest.raises(UnsupportedModelError, match=words) as caught:
        trace(model)
    assert "\n" not in str(caught.value)


def test_nested_model_whose_output_is_an_output():
    inside = keras.Input((4,))
    block = keras.Model(inside, keras.layers.Dense(4)(inside), name="block")
    x = keras.Input((4,))
    y = block(keras.layers.Dense(4)(x))
    model = keras.Model(x, [block(y), y])
    images = np.random.default_rng(0).normal(size=(3, 4)).astype("float32")
    for expected, received in zip(model(images), rebuild(model)(images), strict=True):
        np.testing.assert_array_equal(received, expected)
