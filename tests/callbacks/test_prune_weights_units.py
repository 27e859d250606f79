"""PruneWeights with units and criteria: counts that NumPy finds in the weights."""

from __future__ import annotations

import math
import pathlib
import warnings
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from tests.callbacks.convolutional_networks import (
    STEPS,
    X,
    everywhere,
    fit,
    kernels,
    network,
    obeying,
)
from tfcomp.callbacks import PruneWeights
from tfcomp.errors import TfcompError
from tfcomp.pruning import (
    NM,
    Blocks,
    Candidates,
    ConstantSparsity,
    Criterion,
    Filters,
    IterativeSparsity,
    Kernels,
    Layers,
    PolynomialDecay,
    Unit,
    shrink,
)

# The first kernel has three inputs, so that its groups of four are short.
pytestmark = pytest.mark.usefixtures("strict", "short_groups")

rng = np.random.default_rng(0)


def zero_blocks(kernel: np.ndarray, height: int, width: int) -> tuple[int, int]:
    """Weights in blocks of zeros, and all weights."""
    matrices = kernel.reshape(-1, *kernel.shape[-2:])
    blocks = [
        matrix[i : i + height, j : j + width]
        for matrix in matrices
        for i in range(0, matrix.shape[0], height)
        for j in range(0, matrix.shape[1], width)
    ]
    return sum(block.size for block in blocks if not block.any()), kernel.size


def zero_windows(kernel: np.ndarray) -> tuple[int, int]:
    """Weights in windows of zeros, and all weights."""
    if kernel.ndim == 2:
        return int((kernel == 0).sum()), kernel.size
    return 9 * int((~kernel.any(axis=(0, 1))).sum()), kernel.size


# Unit, sparsity, what is counted, the share of it that goes, the largest unit.
COUNTED = [
    (NM(2, 4), 0.5, lambda k: obeying(k, 2, 4), 1.0, 1),
    (NM(1, 4), 0.75, lambda k: obeying(k, 1, 4), 1.0, 1),
    (Blocks(2, 4), 0.6, lambda k: zero_blocks(k, 2, 4), 0.6, 8),
    (Kernels(), 0.45, zero_windows, 0.45, 9),
]
IDS = [f"{unit} {sparsity}" for unit, sparsity, *_ in COUNTED]


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("ramped", [False, True])
@pytest.mark.parametrize(("unit", "sparsity", "counted", "share", "largest"), COUNTED, ids=IDS)
def test_counts_are_exact(
    unit: Unit,
    sparsity: float,
    counted: Any,
    share: float,
    largest: int,
    ramped: bool,
    scope: Any,
) -> None:
    schedule: Any = ConstantSparsity(sparsity)
    if ramped:
        schedule = PolynomialDecay(0.0, sparsity, 0, 2 * STEPS, frequency=1)
    prune = everywhere(schedule, unit=unit, scope=scope)
    model = fit(prune)
    found = [counted(kernel) for kernel in kernels(model).values()]
    if scope == "global":
        found = [tuple(map(sum, zip(*found, strict=True)))]
    for got, total in found:
        assert abs(got - share * total) <= largest / 2
    assert prune.report is not None
    assert prune.report.asked == sparsity
    assert repr(unit) in str(prune.report)


class Shares(keras.callbacks.Callback):
    """The share of groups that obey, after each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[float] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        obey, total = obeying(np.asarray(self.model.get_layer("conv").kernel), 2, 4)
        self.found.append(obey / total)


def test_a_schedule_ramps_the_share_of_groups_that_obey() -> None:
    shares = Shares()
    schedule = PolynomialDecay(0.0, 0.5, 0, 8, power=1, frequency=1)
    fit(everywhere(schedule, unit=NM(2, 4)), shares)
    expected = [math.floor(2 * schedule(t) * 180 + 0.5) / 180 for t in range(1, 9)]
    assert shares.found == expected


@pytest.mark.parametrize("end", [0.4, 0.75])
def test_n_m_with_another_end_is_refused(end: float) -> None:
    with pytest.raises(TfcompError, match=r"one sparsity: expected a schedule that ends at 0\.5"):
        PruneWeights(ConstantSparsity(end), unit=NM(2, 4))


def test_n_m_where_the_inputs_are_too_few_is_listed() -> None:
    """Groups of no more than n weights obey as they are: such a kernel would never be pruned."""
    convolutions = [layers.Conv2D(8, 3, groups=2, name="few"), layers.Conv2D(4, 1, name="enough")]
    model = keras.Sequential([keras.Input((4, 4, 4)), *convolutions, layers.Flatten()])
    model.compile("sgd", "mse")
    prune = everywhere(ConstantSparsity(0.5), unit=NM(2, 4))
    model.fit(np.ones((8, 4, 4, 4)), np.ones((8, 16)), verbose=0, callbacks=[prune])
    assert prune.report is not None
    assert prune.report.sparsity == 0.5
    (name,) = (name for name in prune.report.skipped if "few/kernel" in name)
    assert prune.report.skipped[name].startswith("of 2 inputs")


def test_groups_of_n_m_that_are_short_are_told() -> None:
    model = keras.Sequential([keras.Input((6,)), layers.Dense(3)])
    model.compile("sgd", "mse")
    prune = PruneWeights(ConstantSparsity(0.5), unit=NM(2, 4))
    with pytest.warns(UserWarning, match="may be short"):
        model.fit(np.ones((8, 6)), np.ones((8, 3)), verbose=0, callbacks=[prune])
    assert prune.report is not None
    assert prune.report.sparsity == pytest.approx(1 / 3)
    assert prune.report.by_units == 0.5
    assert "0.3333 of the weights are zero and not 0.5000" in str(prune.report)


@pytest.mark.parametrize("unit", [Kernels(), Blocks(4, 4), Filters(), Layers()])
def test_units_of_several_sizes_count_by_their_weights(unit: Unit) -> None:
    wide = [layers.Conv2D(12, 3), layers.Conv2D(12, 1), layers.Flatten(), layers.Dense(10)]
    hidden = [layers.Dense(9, name=f"hidden{index}") for index in range(5)]
    model = keras.Sequential([keras.Input((6, 6, 3)), *wide, *hidden, layers.Dense(3)])
    prune = everywhere(ConstantSparsity(0.7), unit=unit, scope="global")
    # Less than half of the largest unit away.
    largest = {"Kernels": 9, "Blocks": 16, "Filters": 192, "Layers": 1920}[type(unit).__name__]
    warnings.filterwarnings("ignore", "Layer collapse", UserWarning)
    fit(prune, model=model)
    assert prune.report is not None
    size = sum(row.size for row in prune.report.kernels)
    assert abs(prune.report.sparsity - 0.7) * size <= largest / 2


def test_whole_filters_go_and_shrink_cuts_them() -> None:
    model = fit(PruneWeights(ConstantSparsity(0.5), unit=Filters()))
    gone = (kernels(model)["conv"] == 0).all(axis=(0, 1, 2))
    assert gone.sum() == 5
    _, report = shrink(model, {"conv": 0.5})
    cut = next(layer for layer in report.layers if layer.name == "conv")
    assert list(cut.removed) == np.flatnonzero(gone).tolist()


def test_layers_are_compared_with_each_other() -> None:
    with pytest.raises(TfcompError, match='expected scope="global"'):
        fit(everywhere(ConstantSparsity(0.5), unit=Layers()))


def residual(skip: bool = True) -> keras.Model:
    """Two layers of which the second has small weights, with a way around it or without."""
    inputs = keras.Input((6, 6, 3))
    x = layers.Flatten()(inputs)
    x = layers.BatchNormalization()(layers.Dense(8, "relu", name="a")(x))
    y = layers.Dense(8, "relu", name="b")(x)
    x = layers.Add()([x, y]) if skip else y
    model = keras.Model(inputs, layers.Dense(3, name="logits")(x), name="m")
    model.get_layer("b").kernel.assign(1e-6 * np.ones((8, 8)))
    # As after training: without care a ReLU would close the way that is left.
    next(w for w in model.weights if w.name == "moving_mean").assign(np.full(8, 50.0))
    return model


def test_layers_removed_as_a_whole_are_told() -> None:
    prune = everywhere(ConstantSparsity(0.06), unit=Layers(), scope="global")
    fit(prune, model=residual(), optimizer=keras.optimizers.SGD(0.0))  # warnings are errors here
    assert prune.report is not None
    assert prune.report.removed_layers == ("b/kernel",)
    assert not prune.report.disconnected
    assert not prune.report.collapsed
    assert "b/kernel  removed as a whole" in str(prune.report)


def test_layers_without_which_nothing_passes_are_warned_of() -> None:
    model = residual(skip=False)
    prune = everywhere(ConstantSparsity(0.06), unit=Layers(), scope="global")
    with pytest.warns(UserWarning, match="no way leads from an input to an output without b/kern"):
        fit(prune, model=model, optimizer=keras.optimizers.SGD(0.0))
    assert prune.report is not None
    assert prune.report.disconnected
    assert "collapsed: no output depends on any input" in str(prune.report)
    assert prune.report.to_dict()["removed_layers"] == ["b/kernel"]
    assert not model.get_layer("b").get_weights()[0].any()  # as it was before it was looked at


def test_a_layer_without_a_weight_left_is_told() -> None:
    model = network()
    model.get_layer("conv").kernel.assign(1e-6 * np.ones((3, 3, 8, 10)))
    prune = everywhere(ConstantSparsity(0.9), scope="global")
    with pytest.warns(UserWarning, match="Layer collapse: no weight is left in m/conv/kernel"):
        fit(prune, model=model, optimizer=keras.optimizers.SGD(0.0))
    assert prune.report is not None
    assert prune.report.collapsed == ("m/conv/kernel",)
    assert "collapsed: nothing is left" in str(prune.report)


class Ends(Criterion):
    """Keeps one weight of each kernel: no two of them follow each other."""

    def scores(self, candidates: Candidates) -> dict[str, np.ndarray]:
        scores = {name: np.zeros(kernel.shape) for name, kernel in candidates.items()}
        for index, score in enumerate(scores.values()):
            score[0 if index % 2 else -1, 0 if index % 2 else -1] = 1
        return scores


@pytest.mark.parametrize("zeros", [False, True])
def test_a_network_that_masks_have_cut_is_told(zeros: bool) -> None:
    model = keras.Sequential(
        [keras.Input((6, 6, 3)), layers.Flatten(), layers.Dense(4, "relu"), layers.Dense(3)]
    )
    if zeros:  # of the network itself: these do not cut it
        model.layers[-1].kernel.assign(np.zeros((4, 3)))
    before = model.get_weights()
    prune = everywhere(ConstantSparsity(0.9))
    fit(prune, model=keras.models.clone_model(model), optimizer=keras.optimizers.SGD(0.0))
    assert prune.report is not None
    assert not prune.report.disconnected
    prune = everywhere(ConstantSparsity(442 / 444), scope="global", criterion=Ends())
    with pytest.warns(UserWarning, match="no way leads from an input to an output any more"):
        fit(prune, model=model, optimizer=keras.optimizers.SGD(0.0))
    assert prune.report is not None
    assert prune.report.disconnected
    assert not prune.report.collapsed
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(new[new != 0], old[new != 0])


def test_n_m_of_a_depthwise_kernel_is_refused() -> None:
    model = keras.Sequential([keras.Input((6, 6, 3)), keras.layers.DepthwiseConv2D(3, name="d")])
    model.compile("sgd", "mse")
    prune = everywhere(ConstantSparsity(0.5), unit=NM(), depthwise=True)
    with pytest.raises(TfcompError, match="depthwise kernel"):
        model.fit(X, rng.normal(size=(32, 4, 4, 3)), callbacks=[prune], verbose=0)


# ---- what sparsity survives


@pytest.mark.parametrize(("unit", "sparsity", "counted", "share", "largest"), COUNTED, ids=IDS)
@pytest.mark.parametrize("way", ["ema", "stopping", "accumulation", "mixed"])
def test_training_of_all_kinds_leaves_the_counts(
    way: str, unit: Unit, sparsity: float, counted: Any, share: float, largest: int
) -> None:
    others: list[Any] = []
    optimizer: Any = keras.optimizers.Adam(0.01)
    model = network(dtype="mixed_bfloat16") if way == "mixed" else network()
    if way == "ema":
        optimizer = keras.optimizers.Adam(0.01, use_ema=True, ema_overwrite_frequency=3)
    if way == "stopping":
        others = [keras.callbacks.EarlyStopping("loss", patience=0, restore_best_weights=True)]
    if way == "accumulation":
        optimizer = keras.optimizers.Adam(0.01, gradient_accumulation_steps=3)
    model.compile(optimizer, "mse", jit_compile=False)
    fit(everywhere(ConstantSparsity(sparsity), unit=unit), *others, model=model)
    for kernel in kernels(model).values():
        got, total = counted(kernel.astype(np.float32))
        assert abs(got - share * total) <= largest / 2


@pytest.mark.parametrize(("unit", "sparsity", "counted", "share", "largest"), COUNTED, ids=IDS)
def test_a_saved_model_keeps_its_zeros(
    tmp_path: pathlib.Path,
    unit: Unit,
    sparsity: float,
    counted: Any,
    share: float,
    largest: int,
) -> None:
    model = fit(everywhere(ConstantSparsity(sparsity), unit=unit))
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    fit(PruneWeights.from_zeros(), model=loaded)
    before, after = kernels(model), kernels(loaded)
    for name in before:
        assert ((before[name] == 0) <= (after[name] == 0)).all()
        assert counted(after[name]) == counted(before[name])
        assert (after[name] != before[name]).any()  # it did train


@pytest.mark.parametrize("schedule", [ConstantSparsity(0.6), PolynomialDecay(0.0, 0.6, 0, 12)])
def test_what_was_removed_stays_so_whatever_a_criterion_says_later(
    tmp_path: pathlib.Path, schedule: Any
) -> None:
    class Largest(Criterion):
        def scores(self, candidates: Candidates) -> dict[str, np.ndarray]:
            return {name: -np.abs(kernel.value()) for name, kernel in candidates.items()}

    class Stop(keras.callbacks.Callback):
        zeros: Any = None

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            if epoch == 1:
                self.zeros = {name: k == 0 for name, k in kernels(self.model).items()}
                raise KeyboardInterrupt

    stop, backup = Stop(), str(tmp_path / "b")
    prune = everywhere(schedule, criterion=Largest())
    with pytest.raises(KeyboardInterrupt):
        fit(prune, keras.callbacks.BackupAndRestore(backup), stop, epochs=3)
    again = everywhere(schedule, criterion=Largest())
    model = fit(again, keras.callbacks.BackupAndRestore(backup), epochs=3)
    assert again.report is not None
    assert again.report.start_step == 8
    for name, kernel in kernels(model).items():
        assert (stop.zeros[name] <= (kernel == 0)).all()
        assert (kernel == 0).sum() == math.floor(0.6 * kernel.size + 0.5)


def test_training_resumes_where_it_was(tmp_path: pathlib.Path) -> None:
    def prune() -> PruneWeights:
        return everywhere(PolynomialDecay(0.0, 0.5, 0, 12, frequency=1), unit=NM(2, 4))

    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            if epoch == 1:
                raise KeyboardInterrupt

    backup = str(tmp_path / "b")
    with pytest.raises(KeyboardInterrupt):
        fit(prune(), keras.callbacks.BackupAndRestore(backup), Stop(), epochs=3)
    second = prune()
    model = fit(second, keras.callbacks.BackupAndRestore(backup), epochs=3)
    assert second.report is not None
    assert (second.report.start_step, second.report.step) == (8, 12)
    assert all(len(set(obeying(k, 2, 4))) == 1 for k in kernels(model).values())


def test_another_unit_goes_on_from_the_zeros_there_are() -> None:
    model = fit(everywhere(ConstantSparsity(0.3)))
    before = {name: kernel == 0 for name, kernel in kernels(model).items()}
    fit(PruneWeights.from_zeros(ConstantSparsity(0.5), unit=NM(2, 4)), model=model)
    for name, kernel in kernels(model).items():
        assert len(set(obeying(kernel, 2, 4))) == 1
        assert (before[name] <= (kernel == 0)).all()


# ---- criteria


class Largest(Criterion):
    """The largest go first; scores below zero, which removed weights must stay below."""

    def scores(self, candidates: Candidates) -> dict[str, np.ndarray]:
        return {name: -np.abs(kernel.value()) for name, kernel in candidates.items()}


def test_a_criterion_of_ones_own() -> None:
    model = network()
    start = kernels(model)
    schedule = PolynomialDecay(0.2, 0.5, 0, 4, frequency=1)
    fit(
        everywhere(schedule, criterion=Largest()),
        model=model,
        optimizer=keras.optimizers.SGD(0.0),
    )
    for name, kernel in kernels(model).items():
        size = kernel.size
        order = np.argsort(-np.abs(start[name]).reshape(-1), kind="stable")
        gone = np.zeros(size, bool)
        gone[order[: math.floor(size / 2 + 0.5)]] = True
        np.testing.assert_array_equal(kernel.reshape(-1) == 0, gone)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda k: np.zeros(3), "finite scores of shape"),
        (lambda k: np.full(k.variable.shape, np.nan), "not finite"),
    ],
    ids=["shape", "NaN"],
)
def test_wrong_scores_are_refused(bad: Any, message: str) -> None:
    class Bad(Criterion):
        def scores(self, candidates: Candidates) -> dict[str, np.ndarray]:
            return {name: bad(kernel) for name, kernel in candidates.items()}

    with pytest.raises(TfcompError, match=message):
        fit(everywhere(ConstantSparsity(0.5), criterion=Bad()))


@pytest.mark.parametrize(
    ("argument", "value"), [("unit", "2:4"), ("unit", NM), ("criterion", "magnitude")]
)
def test_what_is_no_unit_or_criterion_is_refused(argument: str, value: Any) -> None:
    with pytest.raises(TfcompError, match=f"`{argument}` must be a tfcomp.pruning"):
        everywhere(ConstantSparsity(0.5), **{argument: value})


def test_iterative_rounds() -> None:
    schedule = IterativeSparsity(0.8, rounds=4, round_steps=2, begin_step=1)
    model = network()
    found: list[int] = []
    count = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: found.append(
            int((np.asarray(model.get_layer("conv").kernel) == 0).sum())
        )
    )
    fit(everywhere(schedule), count, model=model)
    rounds = [0, 1, 1, 2, 2, 3, 3, 4, 4][1:]
    expected = [math.floor((1 - 0.2 ** (r / 4)) * 720 + 0.5) for r in rounds]
    assert found == expected


def test_that_one_unit_stays_is_told() -> None:
    prune = everywhere(ConstantSparsity(0.99), unit=Filters())
    with pytest.warns(UserWarning, match=r"and not 0.9900, since Filters\(\) removes whole"):
        fit(prune)
    assert prune.report is not None
    assert prune.report.by_units < 0.98
    assert prune.report.shortfall in str(prune.report)
