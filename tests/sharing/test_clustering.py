"""Clustered weights: few values, zeros kept, centroids that are means; scikit-learn agrees."""

from __future__ import annotations

import json

import hypothesis.extra.numpy as hnp
import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from tfcomp.errors import TfcompError, UnsupportedModelError
from tfcomp.sharing import SortedValues, cluster_array, cluster_weights

STARTS = ("linear", "density", "forgy")
numbers = st.floats(-1e6, 1e6, width=32)
arrays = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=1, max_dims=3, max_side=9),
    elements=st.one_of(st.just(0.0), st.sampled_from([-1.0, -0.0, 0.5, 1.0]), numbers),
)


def sample(size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=size).astype("float32")


def scikit_learn(values: np.ndarray, first: np.ndarray) -> KMeans:
    """Lloyd's algorithm to its end; on one thread, since several wait for each other."""
    oracle = KMeans(first.size, init=first[:, None], n_init=1, max_iter=10_000, tol=0.0)
    with threadpool_limits(1):
        oracle.fit(values.astype(np.float64)[:, None])
    return oracle


# ---- k-means


@pytest.mark.parametrize("clusters", [2, 5, 16])
@pytest.mark.parametrize("start", STARTS)
def test_scikit_learn_finds_the_same(clusters: int, start: str) -> None:
    values = sample(3000, clusters)
    line = SortedValues(values)
    if start == "linear":
        first = np.linspace(values.min(), values.max(), clusters)
    elif start == "density":
        at = (np.arange(clusters) + 0.5) / clusters
        first = np.quantile(values, at, method="inverted_cdf").astype(np.float64)
    else:
        first = np.random.default_rng(3).choice(line.values, clusters, replace=False)
    oracle = scikit_learn(values, first)
    expected = np.sort(oracle.cluster_centers_[:, 0])
    np.testing.assert_allclose(line.kmeans(first)[0], expected, rtol=1e-9)
    shared = cluster_array(values, clusters, initialization=start, seed=3)
    np.testing.assert_allclose(
        shared, oracle.cluster_centers_[oracle.labels_, 0], rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize("clusters", [64, 256])
def test_centroids_without_values_are_put_to_use(clusters: int) -> None:
    values = np.random.default_rng(1).standard_t(2, 2000)  # whose tails leave gaps
    first = np.linspace(values.min(), values.max(), clusters)
    line = SortedValues(values)
    assert (np.diff(line.borders(first)) == 0).any()
    means, _ = line.kmeans(first)
    oracle = scikit_learn(values, first)
    assert means.size == clusters
    assert line.error(means) < 1.1 * oracle.inertia_


@settings(deadline=None)
@given(
    hnp.arrays(np.float64, st.integers(1, 60), elements=numbers),
    hnp.arrays(np.float64, st.integers(1, 12), elements=numbers),
)
def test_no_step_raises_the_error(values: np.ndarray, centroids: np.ndarray) -> None:
    line = SortedValues(values)
    clusters, centroids = centroids.size, np.sort(centroids)
    scale = 1e-9 * float((values**2).sum() + (centroids**2).sum() * values.size) + 1e-30
    for _ in range(30):
        after = line.step(centroids, clusters)
        assert (np.diff(after) >= 0).all()
        assert after.size <= clusters
        assert line.error(after) <= line.error(centroids) + scale
        centroids = after


@settings(deadline=None)
@given(
    hnp.arrays(np.float64, st.integers(1, 60), elements=numbers),
    hnp.arrays(np.float64, st.integers(1, 12), elements=numbers),
)
def test_centroids_are_the_means_of_their_values(values: np.ndarray, first: np.ndarray) -> None:
    means, lowest = SortedValues(values).kmeans(first)
    owner = np.searchsorted(lowest, values, side="right") - 1
    assert set(owner) == set(range(means.size))
    for index, mean in enumerate(means):
        own = values[owner == index]
        assert mean == pytest.approx(own.mean(), rel=1e-9, abs=1e-9 * np.abs(own).max())
    # And each value has the nearest of them.
    nearest = np.abs(values[:, None] - means).min(axis=1)
    tolerance = 1e-9 * np.abs(values).max() + 1e-300
    assert (np.abs(values - means[owner]) <= nearest + tolerance).all()


# ---- arrays


@settings(deadline=None, max_examples=200)
@given(arrays, st.integers(2, 9), st.sampled_from(STARTS))
def test_few_values_and_the_same_zeros(weights: np.ndarray, clusters: int, start: str) -> None:
    shared = cluster_array(weights, clusters, initialization=start)
    assert (shared.shape, shared.dtype) == (weights.shape, weights.dtype)
    assert np.unique(shared).size <= clusters
    np.testing.assert_array_equal(shared == 0, weights == 0)
    assert not np.signbit(shared[shared == 0]).any()
    free = weights[weights != 0]
    if free.size:
        assert free.min() <= shared[shared != 0].min() <= shared.max() <= max(free.max(), 0)
    again = cluster_array(shared, clusters, initialization=start)
    np.testing.assert_array_equal(again, shared)


@settings(deadline=None)
@given(arrays, st.integers(2, 9))
def test_no_more_values_than_allowed_are_left_as_they_are(
    weights: np.ndarray, clusters: int
) -> None:
    few = cluster_array(weights, clusters)
    room = np.unique(few).size
    np.testing.assert_array_equal(cluster_array(few, max(room, 2)), few)


@settings(deadline=None)
@given(arrays, st.integers(2, 9))
def test_zeros_are_weights_as_others_if_asked(weights: np.ndarray, clusters: int) -> None:
    shared = cluster_array(weights, clusters, keep_zeros=False)
    assert np.unique(shared).size <= clusters
    if weights.any() and np.unique(weights).size > clusters:
        line, values = SortedValues(weights), np.unique(shared.astype(np.float64))
        assert line.error(values) <= line.error(np.linspace(*line.values[[0, -1]], clusters)) * 1.01


def test_all_the_values_are_used() -> None:
    weights = sample(500)
    assert np.unique(cluster_array(weights, 16)).size == 16
    weights[::3] = 0
    assert np.unique(cluster_array(weights, 16)).size == 16
    assert np.unique(cluster_array(weights, 2)).size == 2


def test_a_mean_of_zero_is_no_zero() -> None:
    weights = np.float32([0, -1, 1, -3, 3])
    assert cluster_array(weights, 2).tolist() == [0, -1, -1, -1, -1]
    tiny = np.float32([0, 1e-45, 2e-45, 5])
    assert (cluster_array(tiny, 3) != 0).tolist() == [False, True, True, True]


def test_small_weights_beside_large_ones() -> None:
    weights = np.float32([1e8, 1e8 + 8, 1e-20, 3e-20, -1e8])
    shared = cluster_array(weights, 3)
    np.testing.assert_allclose(shared, [1e8 + 4, 1e8 + 4, 2e-20, 2e-20, -1e8], rtol=1e-6)


def test_seeds_draw_where_forgy_starts() -> None:
    weights = sample(400)
    runs = [cluster_array(weights, 9, initialization="forgy", seed=s) for s in (0, 0, 1)]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert (runs[0] != runs[2]).any()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_dtypes(dtype: str) -> None:
    weights = keras.ops.convert_to_numpy(keras.ops.cast(sample(300), dtype)).copy()
    weights[:40] = 0
    shared = cluster_array(weights, 8)
    assert shared.dtype == weights.dtype
    assert np.unique(shared.astype("float64")).size == 8
    np.testing.assert_array_equal(shared == 0, weights == 0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(TfcompError, match="Received: 2 that are not finite"):
        cluster_array(np.float32([1, value, value]), 2)


# ---- models


def network() -> keras.Model:
    keras.utils.set_random_seed(0)
    x = keras.Input((6, 6, 3))
    y = keras.layers.Conv2D(8, 3, activation="relu", name="conv")(x)
    y = keras.layers.BatchNormalization(name="norm")(keras.layers.DepthwiseConv2D(3, name="d")(y))
    return keras.Model(x, keras.layers.Dense(5, name="head")(keras.layers.Flatten()(y)), name="m")


def pruned() -> keras.Model:
    model = network()
    for name in ("conv", "d", "head"):
        variable = next(v for v in model.get_layer(name).weights if "kernel" in v.path)
        value = np.asarray(variable).copy()
        value[np.abs(value) < np.quantile(np.abs(value), 0.6)] = 0
        variable.assign(value)
    return model


def kernels(model: keras.Model) -> list[np.ndarray]:
    return [w for w in model.get_weights() if w.ndim > 1]


def test_a_copy_is_clustered_and_told_of() -> None:
    model = pruned()
    before = model.get_weights()
    clustered, report = cluster_weights(model, 6)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert clustered.name == "m"
    olds, news = kernels(model), kernels(clustered)
    assert len(report.kernels) == len(news) == 3  # the depthwise one too
    for old, new, row in zip(olds, news, report.kernels, strict=True):
        np.testing.assert_array_equal(old == 0, new == 0)
        assert row.values_before == np.unique(old).size > row.values == np.unique(new).size == 6
        assert row.zeros_before == row.zeros == (old == 0).sum() > 0
        assert (row.shape, row.size, row.index_bits) == (old.shape, old.size, 3)
        expected = ((new.astype(float) - old.astype(float)) ** 2).mean()
        assert row.mean_square_error == pytest.approx(expected)
    others = [(a, b) for a, b in zip(before, clustered.get_weights(), strict=True) if a.ndim < 2]
    assert all((a == b).all() for a, b in others)
    errors = np.concatenate([(a - b).ravel() for a, b in zip(olds, news, strict=True)])
    assert report.mean_square_error == pytest.approx((errors.astype(float) ** 2).mean(), rel=1e-4)
    assert report.index_bits == 3
    assert report.skipped["conv/bias"] == "not a kernel"
    text = str(report)
    assert "share at most 6 values each: 3.00 bits per weight" in text
    assert "left alone  norm/gamma: not a kernel" in text
    stored = json.loads(json.dumps(report.to_dict()))
    assert stored["kernels"][0]["shape"] == [3, 3, 3, 8]
    assert (stored["clusters"], stored["initialization"]) == (6, "linear")


def test_layers_are_spared() -> None:
    model = network()
    clustered, report = cluster_weights(model, 4, skip=["head", "d"])
    assert [row.name for row in report.kernels] == ["conv/kernel"]
    assert report.skipped["head/kernel"] == "spared by `skip`"
    np.testing.assert_array_equal(kernels(model)[2], kernels(clustered)[2])
    with pytest.raises(TfcompError, match=r"no kernel to cluster in the model 'm'.*spared"):
        cluster_weights(model, skip=["conv", "head", "d"])


def test_the_same_seed_gives_the_same_weights() -> None:
    model = network()
    runs = [cluster_weights(model, 5, initialization="forgy", seed=s)[0] for s in (2, 2, 3)]
    one, two, three = map(kernels, runs)
    assert all((a == b).all() for a, b in zip(one, two, strict=True))
    assert any((a != b).any() for a, b in zip(one, three, strict=True))


@pytest.mark.parametrize("clusters", [1, 0, True, 4.0, "16"])
def test_a_bad_number_of_clusters_is_refused(clusters: object) -> None:
    with pytest.raises(TfcompError, match=r"`clusters` must be a whole number of at least 2"):
        cluster_weights(network(), clusters)  # type: ignore[arg-type]


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(TfcompError, match=r'must be "linear", "density" or "forgy"\. Rec.*random'):
        cluster_weights(network(), initialization="random")  # type: ignore[arg-type]
    model = network()
    model.get_layer("head").kernel.assign(np.full(model.get_layer("head").kernel.shape, np.nan))
    with pytest.raises(TfcompError, match=r"head/kernel: Clustering expects finite weights"):
        cluster_weights(model)

    class Own(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(UnsupportedModelError):
        cluster_weights(Own())
