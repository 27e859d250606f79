"""Comparison of a smaller model with its masked model.

The masked model is a copy of full size in which each test, knowing its own model, writes zeros
where a consumer reads what was removed. No index comes from the code under test but the
numbers of the removed channels.
"""

import keras
import numpy as np
from keras import layers

from tfcomp.graph import dependencies, rebuild, remove_units, removed_channels, trace
from tfcomp.pruning.budget_search import Ledger

# Weights in which a fault does not show: added to all scores alike, or to what all is scaled by.
SILENT = ("key_dense.bias", "bias", "adapt_mean")


def randomize(model, seed=0):
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        shape = tuple(variable.shape)
        if "variance" in variable.path or "gamma" in variable.path:
            value = rng.uniform(0.5, 1.5, shape)
        elif np.issubdtype(np.dtype(variable.dtype), np.floating):
            value = rng.normal(size=shape) * 0.5
        else:
            continue
        variable.assign(value.astype(variable.dtype))
    for layer in model.layers:
        layer = layer.layer if isinstance(layer, layers.Wrapper) else layer
        if isinstance(layer, layers.Normalization):
            layer.finalize_state()


def inputs_of(model, seed=1):
    rng = np.random.default_rng(seed)
    return [
        rng.integers(0, 9, (4, *tensor.shape[1:])).astype("int32")
        if "int" in tensor.dtype
        else rng.normal(size=(4, *tensor.shape[1:])).astype("float32")
        for tensor in model.inputs
    ]


def weight(model, layer, which):
    """A weight of a layer by the end of its path, or by its number where copies change paths."""
    weights = model.get_layer(layer).weights
    if isinstance(which, int):
        return weights[which]
    (found,) = [one for one in weights if one.path.endswith(which)]
    return found


def half(found, seed=0):
    """Half of the units of each group, at random."""
    rng = np.random.default_rng(seed)
    return sorted(
        int(unit)
        for group in found.groups
        for unit in rng.choice(group.units, len(group.units) // 2, replace=False)
    )


def masked(model, zeros):
    """A copy with zeros at (layer, weight, axis, places)."""
    copy = rebuild(model)
    for layer, suffix, axis, places in zeros:
        variable = weight(copy, layer, suffix)
        value = np.array(variable)
        np.moveaxis(value, axis, 0)[places] = 0.0
        variable.assign(value)
    return copy


def gap(model, small, copy):
    """The largest difference from the masked model over the largest output."""
    arrays = inputs_of(model)
    expected, received, full = (outputs(m, arrays) for m in (copy, small, model))
    assert np.ptp(expected, axis=0).max() > 1e-3, "signals have died"
    assert np.abs(full - expected).max() > 1e-3 * np.abs(expected).max(), "nothing was masked"
    return np.abs(received - expected).max() / np.abs(expected).max()


def outputs(model, arrays):
    """All outputs, one behind the other."""
    given = keras.tree.flatten(model(arrays, training=False))
    return np.concatenate([np.asarray(y).reshape(len(arrays[0]), -1) for y in given], axis=1)


def check(model, zeros, seed=0, silent=()):
    """Cuts half; `zeros(removed)` lists (layer, weight, axis, places read from the removed)."""
    return compare(model, lambda removed: masked(model, zeros(removed)), seed, silent)


def check_built(build, seed=0, silent=()):
    """The same; `build(keep)` makes the model, and writes `keep(tensor, name)` where one is read.

    Of the removed channels of the layer of that name, `keep` makes zeros in the masked model.
    """
    model = build(lambda tensor, name: tensor)

    def mask(removed):
        def keep(tensor, name):
            kept = np.ones(tensor.shape[-1], "float32")
            kept[removed.get(name, [])] = 0.0
            return tensor * kept

        copy = build(keep)
        for layer in filter(lambda layer: layer.weights, model.layers):
            copy.get_layer(layer.name).set_weights(layer.get_weights())
        return copy

    return compare(model, mask, seed, silent)


def compare(model, mask, seed=0, silent=()):
    """Cuts half and compares with `mask(removed)`; returns dependencies, smaller model, removed."""
    randomize(model, seed)
    before = model.get_weights()
    found = dependencies(model)
    units = half(found, seed)
    removed = removed_channels(found, units)
    assert removed, found.skipped
    small = remove_units(found, units)
    assert small.count_params() < model.count_params()
    assert Ledger(found).parameters(units) == small.count_params()
    shrunk = trace(small)
    for node, new in zip(found.graph.nodes, shrunk.nodes, strict=True):
        for tensor, cut in zip(node.outputs, new.outputs, strict=True):
            axis, owners = found.channels.get(tensor, (0, None))
            if owners is not None:
                assert cut.shape[axis] == np.count_nonzero(~np.isin(owners, units))
    copy = mask(removed)
    assert gap(model, small, copy) <= 1e-5
    assert all((a == b).all() for a, b in zip(before, model.get_weights(), strict=True))
    assert_faults_show(model, found, units, copy, silent)
    again = keras.Model.from_config(small.get_config())
    assert again.count_params() == small.count_params()
    return found, small, removed


def assert_faults_show(model, found, units, copy, silent):
    """A wrong unit in the place of a right one is seen, for each axis of more than one unit."""
    for key, owners in found.axes.items():
        kept = np.flatnonzero(~np.isin(owners, units) & (owners >= 0))
        gone = np.flatnonzero(np.isin(owners, units))
        if not len(gone) or not len(kept) or key.weight in (*SILENT, *silent):
            continue
        wrong = owners.copy()
        wrong[kept[-1]], wrong[gone[0]] = owners[gone[0]], owners[kept[-1]]
        axes = {**found.axes, key: wrong}
        fields = {f: getattr(found, f) for f in found.__dataclass_fields__}
        planted = type(found)(**{**fields, "axes": axes})
        assert gap(model, remove_units(planted, units), copy) > 1e-4, key
