"""Parameters, non-zeros, bytes and shapes of whole models."""

import gzip
import json

import keras
import numpy as np
import pytest

from tfcomp.errors import TfcompError, UnsupportedModelError
from tfcomp.profiling import file_size, profile

layers = keras.layers


def test_parameters_non_zeros_and_bytes_per_layer():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(4, 3, name="conv"),
            layers.BatchNormalization(name="bn"),
            layers.Flatten(name="flat"),
            layers.Dense(2, name="dense", bias_initializer="ones"),
        ]
    )
    kernel = np.ones((144, 2), "float32")
    kernel[:100] = 0.0
    model.get_layer("dense").kernel.assign(kernel)
    found = profile(model)
    rows = {layer.name: layer for layer in found.layers}
    assert list(rows) == ["conv", "bn", "flat", "dense"]
    assert [rows[name].parameters for name in rows] == [112, 16, 0, 290]
    assert rows["dense"].nonzero_parameters == 88 + 2
    assert rows["conv"].output_shape == (None, 6, 6, 4)
    assert rows["conv"].kind == "Conv2D"
    assert found.parameters == model.count_params() == 418
    assert found.nbytes == 4 * 418
    assert found.nonzero_parameters == sum(np.count_nonzero(w) for w in model.get_weights())
    assert found.sparsity == pytest.approx(1 - found.nonzero_parameters / 418)
    assert found.macs == 36 * 4 * 27 + 288


def test_a_shared_layers_parameters_count_once_and_its_macs_at_each_call():
    shared = layers.Dense(4, name="shared")
    inputs = keras.Input((4,))
    model = keras.Model(inputs, shared(shared(shared(inputs))))
    found = profile(model)
    [row] = found.layers
    assert (row.calls, row.parameters, row.macs) == (3, 20, 48)
    assert "shared (×3)" in str(found)


def test_nested_models_are_opened_up():
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(3, name="d")], name="inner")
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(2, name="d")(inner(inputs)))
    found = profile(model)
    assert found.parameters == model.count_params()
    assert found.macs == 12 + 6
    assert len({layer.name for layer in found.layers}) == 2


def test_several_inputs_embedding_and_lambda_work():
    ids, extra = keras.Input((5,), dtype="int32", name="ids"), keras.Input((2,), name="extra")
    x = layers.GlobalAveragePooling1D()(layers.Embedding(10, 3)(ids))
    x = layers.Concatenate()([x, layers.Lambda(lambda t: t * 2.0, name="twice")(extra)])
    found = profile(keras.Model([ids, extra], layers.Dense(1)(x)))
    assert found.parameters == 30 + 6
    assert list(found.not_counted) == ["twice"]


def test_half_precision_weights_take_two_bytes():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(2, dtype="float16")(inputs))
    assert profile(model).nbytes == 2 * 10


def test_open_spatial_dimensions_need_an_input_shape():
    inputs = keras.Input((None, None, 3))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, name="conv")(inputs))
    model = keras.Model(inputs, x)
    found = profile(model)
    assert found.macs is None
    assert "input_shape" in found.not_counted["conv"]
    assert found.parameters == 112
    given_shape = profile(model, input_shape=(10, 12, 3))
    assert given_shape.macs == 8 * 10 * 4 * 27
    assert given_shape.layers[0].output_shape == (None, 8, 10, 4)


def test_input_shape_of_several_inputs():
    a, b = keras.Input((None, 3), name="a"), keras.Input((None, 3), name="b")
    model = keras.Model([a, b], [layers.Dense(2)(a), layers.Conv1D(2, 2)(b)])
    expected = 4 * 6 + 4 * 12
    assert profile(model, input_shape=[(4, 3), (5, 3)]).macs == expected
    assert profile(model, input_shape={"b": (5, 3), "a": (4, 3)}).macs == expected
    for wrong in [(4, 3), [(4, 3)], {"a": (4, 3)}, [(4, 9), (5, 3)], [(4, 3, 1), (5, 3)]]:
        with pytest.raises(TfcompError, match="input_shape") as caught:
            profile(model, input_shape=wrong)
        assert "\n" not in str(caught.value)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(3, name="inner")

    def build(self, shape):
        self.own = self.add_weight(shape=(5,), initializer="zeros")
        self.dense.build(shape)

    def call(self, x):
        return self.dense(x)


def test_of_a_subclassed_model_parameters_alone_are_told():
    model = Subclassed()
    with pytest.raises(UnsupportedModelError, match="built"):
        profile(model)
    model.build((None, 4))
    found = profile(model)
    assert found.parameters == model.count_params() == 20
    assert found.nonzero_parameters == 12
    assert found.macs is None
    assert "subclassed" in found.notes[0]
    assert "subclassed" in str(found)


def test_what_is_no_built_model_is_refused():
    for wrong in (keras.Sequential([layers.Dense(2)]), layers.Dense(2), "model"):
        with pytest.raises(UnsupportedModelError):
            profile(wrong)


def test_the_model_is_not_changed():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    model.layers[0].trainable = False
    before = json.dumps(model.get_config(), default=str), model.get_weights()
    profile(model, input_shape=(4,))
    assert json.dumps(model.get_config(), default=str) == before[0]
    assert not model.layers[0].trainable
    assert np.array_equal(model.get_weights()[0], before[1][0])


def test_dict_is_json_and_text_is_readable():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2, name="last")], name="tiny")
    found = profile(model)
    kept = json.loads(json.dumps(found.to_dict()))
    assert kept["layers"][0]["output_shape"] == [None, 2]
    assert kept["macs"] == 8
    text = str(found)
    assert "tiny" in text
    assert "total" in text


def test_file_size(tmp_path):
    path = tmp_path / "x.keras"
    path.write_bytes(bytes(10_000))
    found = file_size(path)
    assert found.nbytes == 10_000
    assert found.gzip_bytes == len(gzip.compress(bytes(10_000), 9, mtime=0)) < 100
    assert "9.77 KiB" in str(found)
    assert json.loads(json.dumps(found.to_dict()))["nbytes"] == 10_000
    with pytest.raises(TfcompError, match="Cannot read"):
        file_size(tmp_path / "none")
