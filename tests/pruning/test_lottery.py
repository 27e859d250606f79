"""Lottery tickets against the algorithm written out in NumPy and plain Keras; error barriers."""

from __future__ import annotations

import pathlib
from typing import Any

import keras
import matplotlib as mpl
import numpy as np
import pytest
from keras import layers

from tfcomp.callbacks import PruneWeights
from tfcomp.errors import TfcompError
from tfcomp.pruning import error_barrier, find_ticket

mpl.use("agg")
rng = np.random.default_rng(5)
X = rng.normal(size=(24, 6)).astype("float32")
Y = rng.normal(size=(24, 3)).astype("float32")


def network() -> keras.Model:
    keras.utils.set_random_seed(11)
    return keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(8, "tanh", name="a"),
            layers.Dense(3, name="b"),
        ],
        name="m",
    )


def train(model: Any, callbacks: Any, steps: int = 6) -> None:
    rate = keras.optimizers.schedules.CosineDecay(0.1, 6)
    model.compile(keras.optimizers.SGD(rate), "mse", jit_compile=False)
    whole, rest = divmod(steps, 3)
    options = {"batch_size": 8, "shuffle": False, "verbose": 0, "callbacks": callbacks}
    model.fit(X, Y, epochs=whole, **options)
    if rest:
        model.fit(X[: 8 * rest], Y[: 8 * rest], epochs=1, **options)


def loss(model: Any) -> float:
    return float(np.mean((model.predict(X, verbose=0) - Y) ** 2))


def by_hand(rounds: int, step: int, scope: str, learning_rate: bool) -> list[list[np.ndarray]]:
    """Weights after each round: gradients of the loss in NumPy, masks by sorting."""
    theta = [w.astype(np.float64) for w in network().get_weights()]
    masks = [np.ones(w.shape, bool) for w in theta]
    start, after = [w.copy() for w in theta], []
    for number in range(rounds + 1):
        w = [v.copy() for v in start]
        # A rewound training goes on from its step, with the first batches.
        begun = step if number else 0
        for t in range(6 - begun):
            for v, mask in zip(w, masks, strict=True):
                v *= mask
            part = slice(8 * (t % 3), 8 * (t % 3) + 8)
            hidden = np.tanh(X[part] @ w[0] + w[1])
            back = 2 * (hidden @ w[2] + w[3] - Y[part]) / 24
            inner = back @ w[2].T * (1 - hidden**2)
            slopes = [X[part].T @ inner, inner.sum(0), hidden.T @ back, back.sum(0)]
            rate = 0.1 * 0.5 * (1 + np.cos(np.pi * (t + begun) / 6))
            for v, mask, slope in zip(w, masks, slopes, strict=True):
                v -= rate * slope
                v *= mask
            if number == 0 and t + 1 == step:
                noted = [v.copy() for v in w]
        if number == 0 and step:
            start = noted
        if learning_rate:
            start = [v.copy() for v in w]
        after.append(w)
        kernels = [0, 2]
        for group in [kernels] if scope == "global" else [[k] for k in kernels]:
            sizes = [w[k].size for k in group]
            flat = np.concatenate([np.where(masks[k], abs(w[k]), -1).reshape(-1) for k in group])
            count = int((1 - 0.8 ** (number + 1)) * sum(sizes) + 0.5)
            gone = np.zeros(sum(sizes), bool)
            gone[np.argsort(flat, kind="stable")[:count]] = True
            for k, piece in zip(group, np.split(gone, np.cumsum(sizes)[:-1]), strict=True):
                masks[k] = ~piece.reshape(masks[k].shape)
    return after


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize(("step", "rewind"), [(0, "weights"), (2, "weights"), (0, "learning_rate")])
def test_rounds_are_those_of_the_paper(step: int, rewind: Any, scope: Any) -> None:
    model = network()
    before = model.get_weights()
    ticket = find_ticket(model, train, loss, 0.48, rewind_to=step, rewind=rewind, scope=scope)
    expected = by_hand(3, step, scope, rewind == "learning_rate")
    assert [one.number for one in ticket.rounds] == [0, 1, 2, 3]
    for found, wanted in zip(ticket.result().get_weights(), expected[3], strict=True):
        np.testing.assert_array_equal(found == 0, wanted == 0)
        np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=2e-5)
    for old, now in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, now)
    score = loss(ticket.result())
    assert ticket.rounds[-1].score == pytest.approx(score)
    sizes = {0: 48, 2: 24}
    zeros = sum(int((expected[3][k] == 0).sum()) for k in sizes)
    assert ticket.rounds[-1].sparsity == zeros / 72
    # The ticket, trained as its round was, is what the round found.
    again = ticket.model()
    begun = keras.callbacks.LambdaCallback(
        on_train_begin=lambda logs: again.optimizer.iterations.assign(
            max(step, int(again.optimizer.iterations))
        )
    )
    train(again, [PruneWeights.from_zeros(), begun], steps=6 - step)
    for found, wanted in zip(again.get_weights(), ticket.trained, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    if rewind == "weights" and step == 0:
        for found, first in zip(ticket.model().get_weights(), before, strict=True):
            kept = found != 0 if found.ndim > 1 else slice(None)
            np.testing.assert_array_equal(found[kept], first[kept])


@pytest.mark.parametrize("average", [False, True])
def test_a_round_that_removes_nothing_is_the_rest_of_the_first(average: bool) -> None:
    # By an optimizer whose moments, corrections and averages go by its count of steps.
    def adam(model: Any, callbacks: Any) -> None:
        model.compile(keras.optimizers.Adam(0.05, use_ema=average, ema_momentum=0.9), "mse")
        model.fit(X, Y, batch_size=8, epochs=2, shuffle=False, verbose=0, callbacks=callbacks)

    # After 3 steps of 6 the data begin anew.
    ticket = find_ticket(network(), adam, loss, 0.001, rate=0.001, rewind_to=3)
    assert [one.sparsity for one in ticket.rounds] == [0.0, 0.0]
    whole = network()
    adam(whole, [])
    for found, wanted in zip(ticket.trained, whole.get_weights(), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-7)


def test_a_search_resumes(tmp_path: pathlib.Path) -> None:
    whole = find_ticket(network(), train, loss, 0.48, rewind_to=1)
    calls: list[int] = []

    def interrupted(model: Any, callbacks: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        train(model, callbacks)

    with pytest.raises(KeyboardInterrupt):
        find_ticket(network(), interrupted, loss, 0.48, rewind_to=1, directory=tmp_path)
    again = find_ticket(network(), interrupted, loss, 0.48, rewind_to=1, directory=tmp_path)
    assert len(calls) == 5  # two rounds, the interrupted one, and the two that were left
    assert again.rounds == whole.rounds
    for one, other in zip(again.trained, whole.trained, strict=True):
        np.testing.assert_array_equal(one, other)
    kept = find_ticket(network(), interrupted, loss, 0.48, rewind_to=1, directory=tmp_path)
    assert len(calls) == 5
    for one, other in zip(kept.masks, whole.masks, strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
    with np.load(tmp_path / "round-2.npz") as stored:
        assert float(stored["score"]) == whole.rounds[2].score
        for name, mask in whole.masks[2].items():
            np.testing.assert_array_equal(stored[f"mask/{name}"], mask)
    with pytest.raises(TfcompError, match="that of a round, 0 to 3"):
        kept.model(4)
    (tmp_path / "round-3.npz").write_bytes(b"half a file")
    with pytest.raises(TfcompError, match=r"round-3\.npz must hold a finished round"):
        find_ticket(network(), train, loss, 0.48, rewind_to=1, directory=tmp_path)
    with pytest.raises(TfcompError, match="another search"):
        find_ticket(network(), train, loss, 0.48, rewind_to=2, directory=tmp_path)


def test_the_control_has_the_masks_and_other_weights() -> None:
    ticket = find_ticket(network(), train, loss, 0.36)
    control, model = ticket.reinitialized(seed=3), ticket.model()
    for one, other in zip(control.get_weights(), model.get_weights(), strict=True):
        if one.ndim > 1:
            np.testing.assert_array_equal(one == 0, other == 0)
            assert not np.isclose(one[one != 0], other[other != 0]).any()
    biases = network().get_weights()[1::2]
    rewound = find_ticket(network(), train, loss, 0.36, rewind_to=2).reinitialized(seed=3)
    for one, first in zip(rewound.get_weights()[1::2], biases, strict=True):
        np.testing.assert_array_equal(one, first)  # as new as the kernels
    same = ticket.reinitialized(seed=3)
    for one, other in zip(control.get_weights(), same.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    early = ticket.model(1)
    zeros = sum(int((w == 0).sum()) for w in early.get_weights() if w.ndim > 1)
    assert zeros == int(0.2 * 72 + 0.5)
    control.compile("sgd", "mse")
    control.fit(X, Y, verbose=0, callbacks=[PruneWeights.from_zeros()])


def test_the_control_is_drawn_as_the_layers_draw() -> None:
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(8, kernel_initializer=keras.initializers.RandomNormal(50.0, 0.1)),
            layers.Dense(3, kernel_initializer=keras.initializers.Constant(2.0)),
        ]
    )
    # From such weights training diverges, which is of no account here.
    control = find_ticket(model, train, lambda m: 0.0, 0.2).reinitialized(seed=1)
    first, _, second, _ = control.get_weights()
    assert abs(first[first != 0] - 50).max() < 1
    assert set(np.unique(second)) <= {0.0, 2.0}


def test_layers_have_rates_of_their_own() -> None:
    ticket = find_ticket(network(), train, loss, 0.36, scope="local", rates={"b": 0.1})
    by_layer = {name.split("/")[-2]: mask for name, mask in ticket.masks[2].items()}
    assert (~by_layer["a"]).sum() == int(0.36 * 48 + 0.5)
    assert (~by_layer["b"]).sum() == int(0.19 * 24 + 0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 90}, "Did you mean 0.9"),
        ({"rate": 1.5}, "rate 'rate' must be in"),
        ({"rewind": "both"}, "`rewind` must be one of"),
        ({"rewind_to": 99}, "training saw 6 batches"),
        ({"rewind_to": -1}, "0 or more"),
        ({"rewind": "learning_rate", "rewind_to": 2}, "no step to go back to"),
        ({"rates": {"b": 0.1}}, '`rates` are for scope="local"'),
        ({"skip": ["c"]}, "must name layers"),
    ],
)
def test_refusals(options: Any, message: str) -> None:
    options = {"sparsity": 0.5, **options}
    with pytest.raises(TfcompError, match=message):
        find_ticket(network(), train, loss, **options)


def test_a_train_that_ignores_its_callbacks_is_noticed() -> None:
    with pytest.raises(TfcompError, match="came back while `train` ran"):
        find_ticket(network(), lambda model, _: train(model, []), loss, 0.5)


def test_a_train_that_does_not_train_is_noticed() -> None:
    with pytest.raises(TfcompError, match="not one weight has changed in round 0"):
        find_ticket(network(), lambda model, callbacks: None, loss, 0.5)


@pytest.mark.parametrize("received", [float("nan"), None])
def test_scores_that_are_no_numbers_are_refused(received: Any) -> None:
    with pytest.raises(TfcompError, match="`evaluate` must return a finite number") as caught:
        find_ticket(network(), train, lambda m: received, sparsity=0.5)
    assert "\n" not in str(caught.value)


def test_weights_that_begin_at_zero_are_not_taken_for_removed() -> None:
    model = network()
    model.get_layer("b").kernel.assign(np.zeros((8, 3)))
    ticket = find_ticket(model, train, loss, 0.48, scope="local")
    mask = next(mask for name, mask in ticket.masks[-1].items() if name.endswith("b/kernel"))
    assert mask.any()
    found = np.asarray(ticket.result().get_layer("b").kernel)
    np.testing.assert_array_equal(found != 0, mask)


# ---- error barriers


def test_error_barrier() -> None:
    a, b = network(), network()
    b.set_weights([w + 1 for w in b.get_weights()])
    seen = []

    def error(model: Any) -> float:
        seen.append(model.get_weights())
        return (len(seen) - 3.0) ** 2 * -1

    found = error_barrier(a, b, error, points=5)
    assert found.positions == (0, 0.25, 0.5, 0.75, 1)
    assert found.errors == (-4, -1, 0, -1, -4)
    assert found.barrier == 4
    for at, weights in zip(found.positions, seen, strict=True):
        for got, first, second in zip(weights, a.get_weights(), b.get_weights(), strict=True):
            np.testing.assert_allclose(got, (1 - at) * first + at * second, atol=1e-6)
    axes = found.plot()
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), found.errors)
    assert "4.0000" in str(found)


def test_error_barrier_refusals() -> None:
    other = keras.Sequential([keras.Input((6,)), layers.Dense(3)])
    with pytest.raises(TfcompError, match="one architecture"):
        error_barrier(network(), other, loss)
    with pytest.raises(TfcompError, match="`points`"):
        error_barrier(network(), network(), loss, points=2)
    with pytest.raises(TfcompError, match="finite"):
        error_barrier(network(), network(), lambda _: float("nan"))
