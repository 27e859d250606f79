"""MutualLearning: what each peer's update is, what is logged, saved and refused."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcomp.distillation import MutualLearning, with_indices
from tfcomp.errors import TfcompError

Make = Callable[..., keras.Model]
Data = tuple[np.ndarray, np.ndarray]
CE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def numpy_kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return np.array(
        [
            sum(a * np.log(a / b) for a, b in zip(*row, strict=True))
            for row in zip(p, q, strict=True)
        ]
    )


def numpy_ce(labels: np.ndarray, p: np.ndarray) -> np.ndarray:
    return np.array([-np.log(row[label]) for label, row in zip(labels, p, strict=True)])


def weights_of(models: list[keras.Model]) -> list[np.ndarray]:
    return [value for model in models for value in model.get_weights()]


def copies(models: list[keras.Model]) -> list[keras.Model]:
    made = [type(m).from_config(m.get_config()) for m in models]
    for copy, model in zip(made, models, strict=True):
        copy.set_weights(model.get_weights())
    return made


def by_hand(
    peers: list[keras.Model],
    x: Any,
    y: Any,
    updates: str,
    weight: Any = 1.0,
    variant: str = "paper",
    rate: float = 2.0,
) -> None:
    """One step of gradient descent from the paper's formula, without the code under test."""
    said = [tf.nn.softmax(peer(x, training=False)) for peer in peers]
    for k, peer in enumerate(peers):
        with tf.GradientTape() as tape:
            q = tf.nn.softmax(peer(x, training=False))
            loss = -tf.math.log(tf.gather(q, y, axis=1, batch_dims=1))
            for number, p in enumerate(said):
                if number != k:
                    kl = tf.reduce_sum(p * tf.math.log(p / q), axis=1)
                    loss += kl / (len(peers) - 1) if variant == "paper" else kl
            loss = tf.reduce_mean(weight * loss)
        gradients = tape.gradient(loss, peer.trainable_variables)
        for variable, gradient in zip(peer.trainable_variables, gradients, strict=True):
            variable.assign_sub(rate * gradient)
        if updates == "in_turn":
            said[k] = tf.nn.softmax(peer(x, training=False))


@pytest.mark.parametrize(
    "updates, weighted, variant",
    [
        ("in_turn", False, "paper"),
        ("in_turn", True, "paper"),
        ("together", False, "paper"),
        ("together", True, "paper"),
        ("in_turn", True, "code"),
        ("together", False, "code"),
    ],
)
def test_each_update_is_that_of_the_formula(
    make_net: Make, data: Data, updates: Any, weighted: bool, variant: Any
) -> None:
    (x, y) = data
    peers = [make_net(width, batch_norm=False) for width in (4, 8, 5)]
    p = [softmax(np.asarray(peer(x))) for peer in peers]
    expected, other, averaged = copies(peers), copies(peers), copies(peers)
    weight = np.random.default_rng(0).random(16).astype("float32") if weighted else None
    # A large step, so that speaking again after the update makes a difference.
    scale = 1.0 if weight is None else weight
    by_hand(expected, x, y, updates, scale, variant)
    by_hand(other, x, y, "together" if updates == "in_turn" else "in_turn", scale, variant)
    by_hand(averaged, x, y, updates, scale)
    mutual = MutualLearning(peers, updates=updates, variant=variant)
    mutual.compile(keras.optimizers.SGD(2.0), loss=CE)
    logs = mutual.fit(x, y, sample_weight=weight, batch_size=16, shuffle=False, verbose=0).history
    for ours, theirs in zip(weights_of(peers), weights_of(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-6)
    for unlike in [other, averaged] if variant == "code" else [other]:
        gaps = zip(weights_of(unlike), weights_of(peers), strict=True)
        assert max(np.abs(a - b).max() for a, b in gaps) > 1e-3
    divergence = (scale * (numpy_kl(p[1], p[0]) + numpy_kl(p[2], p[0]))).mean()
    share = 0.5 if variant == "paper" else 1.0
    assert logs["peer_1_mimicry"] == pytest.approx([share * divergence], rel=1e-4)


def test_logs_are_the_formula_and_by_peer(make_net: Make, data: Data) -> None:
    x, y = data
    weight = np.random.default_rng(1).random(16).astype("float32")
    peers = [make_net(4, batch_norm=False), make_net(6, batch_norm=False)]
    p = [softmax(np.asarray(peer(x))) for peer in peers]
    mutual = MutualLearning(peers, updates="together")
    mutual.compile(
        "sgd",
        loss=CE,
        metrics=["accuracy"],
        weighted_metrics=[keras.metrics.SparseCategoricalAccuracy(name="weighted")],
    )
    history = mutual.fit(
        x, y, sample_weight=weight, batch_size=16, shuffle=False, verbose=0, validation_data=(x, y)
    ).history
    tasks = [(weight * numpy_ce(y, q)).mean() for q in p]
    kls = [(weight * numpy_kl(p[1 - k], p[k])).mean() for k in range(2)]
    for k in range(2):
        part = mutual.histories[f"peer_{k + 1}"]
        assert part["loss"] == pytest.approx([tasks[k]], rel=1e-5)
        assert part["mimicry"] == pytest.approx([kls[k]], rel=1e-4, abs=1e-7)
        assert part["accuracy"] == pytest.approx([(p[k].argmax(-1) == y).mean()])
        right = weight[p[k].argmax(-1) == y].sum() / weight.sum()
        assert part["weighted"] == pytest.approx([right], rel=1e-5)
        assert {"val_loss", "val_accuracy"} < set(part)
        assert "val_mimicry" not in part
    mean = (p[0] + p[1]) / 2
    ensemble = mutual.histories["ensemble"]
    assert ensemble["loss"] == pytest.approx([(weight * numpy_ce(y, mean)).mean()], rel=1e-5)
    assert ensemble["accuracy"] == pytest.approx([(mean.argmax(-1) == y).mean()])
    assert history["loss"] == pytest.approx([sum(tasks) + sum(kls)], rel=1e-5)
    known = {"peer_1", "peer_2", "ensemble", "loss", "val_loss"}
    assert all(key in known or key.startswith(("peer_", "ensemble_", "val_")) for key in history)


def test_ensemble_and_evaluation(make_net: Make, data: Data) -> None:
    x, y = data
    peers = [make_net(4), make_net(6), make_net(5)]
    mean = np.mean([softmax(np.asarray(peer(x))) for peer in peers], axis=0)
    mutual = MutualLearning(peers)
    mutual.compile("sgd", loss=CE, metrics=["accuracy"])
    np.testing.assert_allclose(np.exp(mutual.predict(x, verbose=0)), mean, rtol=1e-5)
    told = mutual.evaluate(x, y, verbose=0, return_dict=True)
    logs = {name: float(value) for name, value in told.items()}
    tasks = [numpy_ce(y, softmax(np.asarray(peer(x)))).mean() for peer in peers]
    assert logs["loss"] == pytest.approx(sum(tasks), rel=1e-5)
    assert logs["peer_3_loss"] == pytest.approx(tasks[2], rel=1e-5)
    assert logs["ensemble_loss"] == pytest.approx(numpy_ce(y, mean).mean(), rel=1e-5)
    assert logs["ensemble_accuracy"] == pytest.approx((mean.argmax(-1) == y).mean())
    assert not [name for name in logs if "mimicry" in name]


@pytest.mark.parametrize("first", [None, "softmax"])
def test_logits_and_softmax_peers_learn_the_same(make_net: Make, data: Data, first: Any) -> None:
    x, y = data

    def train(ends: list[str | None]) -> list[np.ndarray]:
        keras.utils.set_random_seed(3)
        peers = [make_net(4, end, batch_norm=False) for end in ends]
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=ends[0] is None)
        mutual = MutualLearning(peers)
        mutual.compile(keras.optimizers.SGD(1.0), loss=loss)
        mutual.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
        total = mutual.predict(x, verbose=0)
        mean = softmax(total) if ends[0] is None else total
        return [*weights_of(peers), mean]

    alike = train([first, first])
    mixed = train([first, None if first else "softmax"])
    for a, b in zip(alike, mixed, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def net(width: int, rate: float = 0.3) -> keras.Model:
    decay = keras.regularizers.L2(0.01)
    layers = [
        keras.layers.Dense(width, kernel_regularizer=decay, activity_regularizer="l2"),
        keras.layers.BatchNormalization(),
        keras.layers.ReLU(),
        keras.layers.Dropout(rate, seed=width),
        keras.layers.Dense(3),
    ]
    return keras.Sequential([keras.Input((5,)), *layers])


def vectors() -> Data:
    rng = np.random.default_rng(0)
    return rng.standard_normal((32, 5)).astype("float32"), rng.integers(0, 3, 32)


def test_eager_and_compiled_are_the_same_and_statistics_count_a_batch_once() -> None:
    x, y = vectors()
    found = []
    for eager in (True, False):
        keras.utils.set_random_seed(2)
        peers = [net(4), net(6)]
        mutual = MutualLearning(peers)
        mutual.compile(keras.optimizers.SGD(0.1), loss=CE, run_eagerly=eager)
        history = mutual.fit(x, y, batch_size=32, shuffle=False, verbose=0, epochs=2).history
        found.append([*weights_of(peers), np.array(history["loss"])])
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    keras.utils.set_random_seed(2)
    peer = net(4)
    before = np.asarray(peer.layers[0](x))
    mutual = MutualLearning([peer, net(6)])
    mutual.compile(keras.optimizers.SGD(0.1), loss=CE)
    mutual.fit(x, y, batch_size=32, shuffle=False, verbose=0)
    moved = np.asarray(peer.layers[1].moving_mean)
    np.testing.assert_allclose(moved, 0.01 * before.mean(0), rtol=1e-3, atol=1e-6)


def test_saved_in_the_middle_it_goes_on_to_the_same_weights(tmp_path: pathlib.Path) -> None:
    x, y = vectors()

    def start() -> MutualLearning:
        keras.utils.set_random_seed(4)
        mutual = MutualLearning([net(4, 0.0), net(6, 0.0), net(5, 0.0)], variant="code")
        mutual.compile(
            keras.optimizers.Adam(0.05),
            loss=CE,
            metrics=["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(2, name="top2")],
        )
        return mutual

    fit = {"batch_size": 8, "shuffle": False, "verbose": 0}
    whole = start()
    whole.fit(x, y, epochs=2, **fit)
    part = start()
    part.fit(x, y, epochs=1, **fit)
    part.save(tmp_path / "mutual.keras")
    loaded = keras.saving.load_model(tmp_path / "mutual.keras")
    assert loaded.variant == "code"
    logs = loaded.fit(x, y, epochs=1, **fit).history
    for a, b in zip(weights_of(whole.peers), weights_of(loaded.peers), strict=True):
        np.testing.assert_array_equal(a, b)
    assert {"peer_3_top2", "ensemble_top2", "peer_1_accuracy"} < set(logs)
    steps = [int(optimizer.iterations) for optimizer in loaded.peer_optimizers]
    assert steps == [8, 8, 8]


class KilledError(Exception):
    """As if the process had ended."""


def test_backup_and_restore_goes_on_to_the_same_weights(tmp_path: pathlib.Path) -> None:
    x, y = vectors()

    class Kill(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            if epoch == 1:
                raise KilledError

    def fit(*callbacks: keras.callbacks.Callback) -> MutualLearning:
        keras.utils.set_random_seed(5)
        # Keras does not save where a dropout's random numbers have got to.
        mutual = MutualLearning([net(4, 0.0), net(6, 0.0)])
        mutual.compile("adam", loss=CE)
        mutual.fit(
            x, y, batch_size=8, shuffle=False, verbose=0, epochs=2, callbacks=list(callbacks)
        )
        return mutual

    whole = fit()
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    with pytest.raises(KilledError):
        fit(backup, Kill())
    resumed = fit(keras.callbacks.BackupAndRestore(tmp_path / "backup"))
    for a, b in zip(weights_of(whole.peers), weights_of(resumed.peers), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(policy: str) -> None:
    x, y = vectors()

    def net(width: int, dtype: str) -> keras.Model:
        inputs = keras.Input((5,))
        hidden = keras.layers.Dense(width, "tanh", dtype=dtype)(inputs)
        outputs = keras.layers.Dense(3, dtype=dtype)(hidden)
        return keras.Model(inputs, outputs, dtype=dtype)

    def train(dtype: str) -> tuple[MutualLearning, list[float]]:
        keras.utils.set_random_seed(6)
        mutual = MutualLearning([net(6, dtype), net(8, dtype)])
        mutual.compile(keras.optimizers.SGD(0.5), loss=CE)
        logs = mutual.fit(x, y, batch_size=16, epochs=3, shuffle=False, verbose=0).history
        return mutual, logs["loss"]

    half, losses = train(policy)
    exact, expected = train("float32")
    assert losses == pytest.approx(expected, rel=0.03)
    scaled = [isinstance(o, keras.optimizers.LossScaleOptimizer) for o in half.peer_optimizers]
    assert scaled == [policy == "mixed_float16"] * 2
    for a, b in zip(weights_of(half.peers), weights_of(exact.peers), strict=True):
        np.testing.assert_allclose(a, b, atol=0.03)
    assert all(np.isfinite(value).all() for value in weights_of(half.peers))


def test_peers_clip_by_their_own_norm_and_follow_the_learning_rate(
    make_net: Make, data: Data
) -> None:
    x, y = data
    peers = [make_net(4, batch_norm=False), make_net(16, batch_norm=False)]
    before = copies(peers)
    mutual = MutualLearning(peers)
    mutual.compile(keras.optimizers.SGD(1.0, global_clipnorm=0.01), loss=CE)
    mutual.fit(x, y, batch_size=16, verbose=0)
    for peer, old in zip(peers, before, strict=True):
        pairs = zip(peer.get_weights(), old.get_weights(), strict=True)
        assert np.sqrt(sum(((a - b) ** 2).sum() for a, b in pairs)) == pytest.approx(0.01, rel=1e-4)
    before = copies(peers)
    mutual.fit(
        x, y, verbose=0, callbacks=[keras.callbacks.LearningRateScheduler(lambda epoch: 0.0)]
    )
    for a, b in zip(weights_of(peers), weights_of(before), strict=True):
        np.testing.assert_array_equal(a, b)


def test_learning_rate_schedules_count_each_peer_s_steps(make_net: Make, data: Data) -> None:
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([1], [1.0, 0.0])
    peers = [make_net(4, batch_norm=False), make_net(5, batch_norm=False)]
    mutual = MutualLearning(peers)
    mutual.compile(keras.optimizers.SGD(schedule), loss=CE)
    start = weights_of(peers)
    mutual.fit(*data, batch_size=8, verbose=0)
    after = weights_of(peers)
    mutual.fit(*data, batch_size=8, verbose=0, epochs=2)
    assert all((a != b).any() for a, b in zip(start, after, strict=True))
    assert all((a == b).all() for a, b in zip(after, weights_of(peers), strict=True))


def test_peers_of_other_kinds_and_positions(data: Data) -> None:
    class Plain(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.dense = keras.layers.Dense(3)

        def call(self, inputs: Any) -> Any:
            return self.dense(keras.ops.mean(inputs, axis=(1, 2)))

    x, y = data
    plain = Plain()
    plain(x)
    inputs = keras.Input((6, 6, 1))
    other = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(inputs)))
    with pytest.raises(TfcompError, match="from_logits"):
        MutualLearning([plain, other])
    mutual = MutualLearning([plain, other], from_logits=True)
    mutual.compile("adam", loss=CE, metrics=["accuracy"])
    assert "ensemble_accuracy" in mutual.fit(x, y, verbose=0).history
    maps = [keras.Sequential([keras.Input((6, 6, 1)), keras.layers.Conv2D(3, 1)]) for _ in range(2)]
    mutual = MutualLearning(maps, updates="together")
    mutual.compile("sgd", loss=CE)
    p = [softmax(np.asarray(m(x))).reshape(-1, 3) for m in maps]
    labels = np.zeros((16, 6, 6), "int64")
    logs = mutual.fit(x, labels, batch_size=16, verbose=0).history
    assert logs["peer_1_mimicry"] == pytest.approx([numpy_kl(p[1], p[0]).mean()], rel=1e-4)
    with pytest.raises(TfcompError, match="one weight per sample"):
        mutual.fit(x, labels, sample_weight=np.ones((16, 6, 6)), verbose=0)


def test_mistakes_are_told_in_one_line(make_net: Make, data: Data) -> None:
    net, two = make_net(), keras.Input((6, 6, 1))
    frozen = make_net()
    frozen.trainable = False
    wide = [keras.Input((9, 9, 1)), keras.layers.Flatten(), keras.layers.Dense(3)]
    other_size = keras.Sequential(wide)
    flat = keras.layers.Flatten()(two)
    heads = [keras.layers.Dense(3)(flat), keras.layers.Dense(2)(flat)]
    shared = keras.Model(net.input, keras.layers.Dense(3)(net.get_layer("pool").output))
    cases: list[tuple[Callable[[], Any], str]] = [
        (lambda: MutualLearning([net]), "two models or more"),
        (lambda: MutualLearning([net, net]), "share weights"),
        (lambda: MutualLearning([net, shared]), "share weights"),
        (lambda: MutualLearning([net, "net"]), "built keras.Model"),
        (lambda: MutualLearning([net, make_net(classes=4)]), "one shape"),
        (lambda: MutualLearning([make_net(classes=1), make_net(classes=1)]), "two classes"),
        (lambda: MutualLearning([net, make_net(activation="sigmoid")]), "sigmoid"),
        (lambda: MutualLearning([net, keras.Model(two, heads)]), "one output"),
        (lambda: MutualLearning([net, make_net()], updates="both"), "`updates`"),
        (lambda: MutualLearning([net, other_size]), "the same inputs: expected .* received .9, 9"),
        (lambda: MutualLearning([net, make_net()], variant="sum"), "`variant` must be 'code'"),
        (lambda: MutualLearning([net, frozen]).compile("sgd", CE), "cannot learn"),
        (lambda: MutualLearning([net, make_net()]).compile("sgd"), "task's loss"),
        (lambda: MutualLearning([net, make_net()]).compile("sgd", {"a": CE}), "task's loss"),
        (lambda: MutualLearning([net, make_net()]).compile(None, CE), "optimizer"),
        (
            lambda: MutualLearning([net, make_net()]).compile(
                keras.optimizers.SGD(use_ema=True), CE
            ),
            "use_ema",
        ),
        (lambda: MutualLearning([net, make_net()]).histories, "no history"),
    ]
    for make, told in cases:
        with pytest.raises(TfcompError, match=told) as error:
            make()
        assert "\n" not in str(error.value)
    mutual = MutualLearning([net, make_net()])
    mutual.compile("sgd", CE)
    with pytest.raises(TfcompError, match="need labels"):
        mutual.fit(data[0], verbose=0)
    indexed = with_indices(tf.data.Dataset.from_tensor_slices(data).batch(8))
    with pytest.raises(TfcompError, match="plain inputs"):
        mutual.fit(indexed, verbose=0)


@pytest.mark.long
def test_compiled_by_xla_it_computes_the_same(data: Data, make_net: Make) -> None:
    found = []
    for xla in (False, True):
        keras.utils.set_random_seed(1)
        peers = [make_net(4), make_net(5)]
        mutual = MutualLearning(peers)
        mutual.compile(keras.optimizers.SGD(0.5), loss=CE, jit_compile=xla)
        mutual.fit(*data, batch_size=8, epochs=2, shuffle=False, verbose=0)
        found.append(weights_of(peers))
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


SCRIPT = """
    import keras, numpy as np, tensorflow as tf
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
    )
    from tfcomp.distillation import MutualLearning

    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((24, 6)).astype("float32"), rng.integers(0, 3, 24)
    weights = rng.random(24).astype("float32")

    def net(width, norm):
        layers = [
            keras.layers.Dense(width, "tanh", kernel_regularizer=keras.regularizers.L2(0.01)),
            *([keras.layers.BatchNormalization(synchronized=True)] if norm else []),
            keras.layers.Dense(3, None if width == 4 else "softmax"),
        ]
        return keras.Sequential([keras.Input((6,)), *layers])

    def train(strategy, updates, norm, weighted):
        keras.utils.set_random_seed(1)
        with strategy.scope():
            peers = [net(4, norm), net(8, norm), net(5, norm)]
            before = [w for p in peers for w in p.get_weights()]
            mutual = MutualLearning(peers, updates=updates)
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            mutual.compile(keras.optimizers.SGD(0.2, momentum=0.9), loss=loss, metrics=["accuracy"])
        parts = (x, y, weights) if weighted else (x, y)
        data = tf.data.Dataset.from_tensor_slices(parts).batch(8)
        halve = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2)
        logs = mutual.fit(data, verbose=0, shuffle=False, epochs=2, callbacks=[halve]).history
        after = [w for p in peers for w in p.get_weights()]
        moved = [np.abs(a - b).max() for a, b in zip(after, before)]
        assert min(moved) > 1e-4, moved
        return after, logs

    mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    for case in [("in_turn", False, True), ("in_turn", True, False), ("together", True, True)]:
        one = train(tf.distribute.get_strategy(), *case)
        two = train(mirrored, *case)
        for a, b in zip(one[0], two[0]):
            assert np.abs(a - b).max() < 1e-5, (case, np.abs(a - b).max())
        for name, value in one[1].items():
            assert np.allclose(value, two[1][name], rtol=1e-4), (case, name, value, two[1][name])
        print("equal:", case)
"""


@pytest.mark.long
def test_two_replicas_make_the_updates_of_one() -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    equal = [line for line in done.stdout.splitlines() if line.startswith("equal:")]
    assert len(equal) == 3
