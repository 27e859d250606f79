"""Lottery tickets: sparse networks found by training, and trained again from near their start."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import pathlib
import zipfile
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import keras
import numpy as np
import numpy.typing as npt

from tfcomp.errors import TfcompError
from tfcomp.files import replacing, write_json
from tfcomp.graph import rebuild, trace
from tfcomp.pruning.hold import Hold
from tfcomp.pruning.masks import Mask, keep_masks, pruned_count
from tfcomp.pruning.schedules import check_sparsity
from tfcomp.pruning.scores import finite_score
from tfcomp.pruning.sparsity import find_kernels, initializers

# Trains a model in place, with the callbacks that it is given.
Train = Callable[[keras.Model, list[keras.callbacks.Callback]], Any]
Evaluate = Callable[[keras.Model], float]
Weights = list[npt.NDArray[Any]]


@dataclasses.dataclass(frozen=True)
class Round:
    """One round of training.

    Attributes:
        number: 0 for the dense network.
        sparsity: Zeros over weights of all pruned kernels while it was trained.
        score: What `evaluate` gave afterwards.
    """

    number: int
    sparsity: float
    score: float


@dataclasses.dataclass(frozen=True, eq=False)
class Ticket:
    """What `find_ticket` found.

    Attributes:
        rounds: Every round, the dense one first.
        masks: For each round, by the kernel's name, True where weights stay.
        starts: For each round, the weights that it begins from, in the order of
            `model.get_weights()`: the initial ones, those of step k, or, where only the learning
            rate is rewound, those that the round before has ended with.
        trained: The weights after the last round.
    """

    rounds: tuple[Round, ...]
    masks: tuple[dict[str, Mask], ...]
    starts: tuple[Weights, ...]
    trained: Weights
    _model: keras.Model

    def model(self, number: int = -1) -> keras.Model:
        """A copy at its start, with the mask of one round: the ticket.

        Args:
            number: Of the round. Default the last.

        Returns:
            The model, uncompiled. Train it with `PruneWeights.from_zeros()`.
        """
        return self._with(rebuild(trace(self._model)), self.starts[self._round(number)], number)

    def result(self) -> keras.Model:
        """A copy with the weights that the last round ended with."""
        return self._with(rebuild(trace(self._model)), self.trained, -1)

    def reinitialized(self, seed: int, number: int = -1) -> keras.Model:
        """The control: the same mask on new random weights, drawn as the layers draw theirs.

        Args:
            seed: Of the new weights.
            number: Of the round. Default the last.

        Returns:
            The model, uncompiled.
        """
        model = rebuild(trace(self._model))
        found = initializers(model)
        fresh = []
        for index, (variable, path, value) in enumerate(
            zip(model.weights, _paths(model), self._model.get_weights(), strict=True)
        ):
            # Kernels anew, as their layers make them; biases and statistics as at the start.
            if path in self.masks[0]:
                initializer = _seeded(found.get(id(variable)), seed + index)
                value = np.asarray(initializer(value.shape), value.dtype)
            fresh.append(value)
        return self._with(model, fresh, number)

    def _round(self, number: int) -> int:
        if not -len(self.rounds) <= number < len(self.rounds):
            raise TfcompError(
                f"`number` must be that of a round, 0 to {len(self.rounds) - 1}, or -1 for the "
                f"last. Received: {number!r}."
            )
        return number

    def _with(self, model: keras.Model, weights: Weights, number: int) -> keras.Model:
        masks = self.masks[self._round(number)]
        paths = _paths(model)
        model.set_weights(
            [
                np.where(masks[path], value, value.dtype.type(0)) if path in masks else value
                for path, value in zip(paths, weights, strict=True)
            ]
        )
        return model

    def __str__(self) -> str:
        lines = ["round  weights left   score"]
        lines += [
            f"{one.number:>5}  {100 * (1 - one.sparsity):>10.2f} %  {one.score:.4f}"
            for one in self.rounds
        ]
        return "\n".join(lines)


def find_ticket(
    model: keras.Model,
    train: Train,
    evaluate: Evaluate,
    sparsity: float,
    *,
    rate: float = 0.2,
    rewind_to: int = 0,
    rewind: Literal["weights", "learning_rate"] = "weights",
    scope: Literal["local", "global"] = "global",
    skip: Iterable[Any] = (),
    rates: Mapping[str, float] | None = None,
    directory: str | os.PathLike[str] | None = None,
) -> Ticket:
    """Trains, removes the smallest weights, goes back to the start, and does so again.

    After each round the ⌊(1 − (1 − p)^r)·n + ½⌋ weights of smallest magnitude are removed, p being
    the rate, until the sparsity is reached; those left go back to what they were at step k of
    the first training, and are trained from there to its end: for T − k steps, the optimizer
    beginning as it was at step k, with its count of steps, which learning-rate schedules go by,
    its moments and its averages (Frankle, Dziugaite, Roy
    and Carbin 2019, arXiv:1903.01611; with k = 0 the lottery ticket of Frankle and Carbin 2018,
    arXiv:1803.03635). With `rewind="learning_rate"`
    they keep their values, and only the training, with its learning rates, begins anew (Renda,
    Frankle and Carbin 2020, arXiv:2003.02389).

    Masks are kept while `train` fits, by the callbacks that it is given. A directory keeps each
    finished round, its mask, weights and score; the next call with the same settings goes on from
    there.

    Args:
        model: A built functional or Sequential model at its initial weights; not changed.
        train: `train(model, callbacks)` compiles and fits the model that it is given, in the same
            way each time, with the callbacks that it is given.
        evaluate: `evaluate(model)` gives a score, such as the accuracy on held-out data.
        sparsity: To be reached in the last round, in (0, 1).
        rate: p, the share of what is left that goes in each round, in (0, 1). Default 0.2.
        rewind_to: k, in steps of the first training. Default 0.
        rewind: "weights" (the default) or "learning_rate".
        scope: "global" (the default) compares the weights of all kernels, "local" those of each.
        skip: Layers to spare, as objects or names.
        rates: With scope "local", rates of some layers by name: the paper removes half as much of
            the output layer.
        directory: Where rounds are kept. Default: nowhere.

    Returns:
        The ticket, with every round's mask and score.

    Raises:
        TfcompError: If an argument is not as described, the directory holds rounds of other
            settings, or training changes nothing, or never reaches step k.
        UnsupportedModelError: If the model is subclassed or not built.

    Example:
        >>> keras.utils.set_random_seed(0)
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8)])
        >>> x, y = np.ones((16, 4)), np.ones((16, 8))
        >>> def train(model, callbacks):
        ...     model.compile("adam", "mse")
        ...     model.fit(x, y, verbose=0, callbacks=callbacks)
        >>> score = lambda model: -float(np.mean((model.predict(x, verbose=0) - y) ** 2))
        >>> ticket = find_ticket(model, train, score, sparsity=0.36)
        >>> [round(one.sparsity, 2) for one in ticket.rounds]
        [0.0, 0.19, 0.38]
    """
    search = _Search(model, train, evaluate, rewind_to, rewind, scope, skip, rates, directory)
    rounds = search.check(sparsity, rate)
    return search.run(rounds, sparsity, rate)


@dataclasses.dataclass(frozen=True)
class _Trained:
    """A round that has been trained: the weights it ended with, those of step k, all its steps.

    And of the first round, where k is not 0, what the optimizer held at step k.
    """

    score: float
    weights: Weights
    noted: Weights
    steps: int
    optimizer: Weights


class _Rewinding(keras.callbacks.Callback):
    """Takes down the weights after so many steps, and what the optimizer holds."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step, self.done, self.weights = step, 0, None
        self.optimizer: Weights = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.done += 1
        if self.done == self.step:
            self.weights = self.model.get_weights()
            held = self.model.optimizer.variables
            self.optimizer = [np.array(keras.ops.convert_to_numpy(one)) for one in held]


class _From(keras.callbacks.Callback):
    """Trains from a step of the first training on, and no longer than that went."""

    def __init__(self, step: int, steps: int, optimizer: Weights) -> None:
        super().__init__()
        self.left, self.optimizer, self.begun = steps - step, optimizer, False

    def on_train_begin(self, logs: Any = None) -> None:
        if not self.begun:
            self.begun = True
            optimizer = self.model.optimizer
            if not optimizer.built:
                optimizer.build(self.model.trainable_variables)
            # Not the count alone: Adam's corrections and averages of weights go by it.
            for variable, value in zip(optimizer.variables, self.optimizer, strict=True):
                variable.assign(value)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.left -= 1
        if self.left <= 0:
            self.model.stop_training = True


class _Search:
    """The rounds of one search."""

    def __init__(
        self,
        model: keras.Model,
        train: Train,
        evaluate: Evaluate,
        rewind_to: int,
        rewind: str,
        scope: str,
        skip: Iterable[Any],
        rates: Mapping[str, float] | None,
        directory: str | os.PathLike[str] | None,
    ) -> None:
        self.model = rebuild(trace(model))
        self.train, self.evaluate = train, evaluate
        self.rewind_to, self.rewind, self.scope = rewind_to, rewind, scope
        self.rates = dict(rates or {})
        self.folder = None if directory is None else pathlib.Path(directory)
        names = [item if isinstance(item, str) else item.name for item in skip]
        self.kernels, _ = find_kernels(self.model, skip=names)
        # Of the first training.
        self.steps = 0
        self.optimizer: Weights = []

    def check(self, sparsity: float, rate: float) -> int:
        """How many rounds there are beside the dense one."""
        check_sparsity("sparsity", sparsity)
        for name, value in {"rate": rate, **self.rates}.items():
            if not (isinstance(value, float) and 0 < value < 1):
                raise TfcompError(f"The rate {name!r} must be in (0, 1). Received: {value!r}.")
        for argument, given, known in (
            ("rewind", self.rewind, ("weights", "learning_rate")),
            ("scope", self.scope, ("local", "global")),
        ):
            if given not in known:
                raise TfcompError(f"`{argument}` must be one of {known}. Received: {given!r}.")
        if sparsity == 0 or not self.kernels:
            raise TfcompError(
                f"find_ticket expects a sparsity above 0 and kernels to prune. Received: "
                f"{sparsity!r}, {len(self.kernels)} kernels in {self.model.name!r}."
            )
        if not isinstance(self.rewind_to, int) or self.rewind_to < 0:
            raise TfcompError(
                f"`rewind_to` must be a number of steps, 0 or more. Received: {self.rewind_to!r}."
            )
        if self.rewind == "learning_rate" and self.rewind_to:
            raise TfcompError(
                'With rewind="learning_rate" weights keep their values, and there is no step to go '
                f"back to. Received: rewind_to={self.rewind_to!r}. Leave one of the two out."
            )
        layers = {kernel.name.split("/")[-2] for kernel in self.kernels}
        if self.rates and (self.scope != "local" or not layers >= set(self.rates)):
            raise TfcompError(
                f'`rates` are for scope="local" and layers among {sorted(layers)}. Received: '
                f"{self.rates} with scope={self.scope!r}."
            )
        # A hair less, since 0.2 of 0.8 left is a little more than 0.64.
        return max(math.ceil(math.log(1 - sparsity) / math.log(1 - rate) - 1e-9), 1)

    def run(self, rounds: int, sparsity: float, rate: float) -> Ticket:
        """All rounds, those that are kept from the directory."""
        self._open(sparsity, rate)
        masks = {kernel.name: np.ones(kernel.variable.shape, np.bool_) for kernel in self.kernels}
        begin = self.model.get_weights()
        starts: list[Weights] = []
        done: list[Round] = []
        kept: list[dict[str, Mask]] = []
        for number in range(rounds + 1):
            kept.append(masks)
            starts.append(begin)
            found = self._stored(number) or self._round(number, masks, begin)
            self._store(number, found, masks)
            if number == 0:
                self.steps, self.optimizer = found.steps, found.optimizer
                # Rounds begin from step k, of which round 0 is the only one to know.
                begin = found.noted
                starts[0] = begin
            if self.rewind == "learning_rate":
                begin = found.weights
            zeros = sum(int(np.count_nonzero(~mask)) for mask in masks.values())
            size = sum(kernel.size for kernel in self.kernels)
            done.append(Round(number, zeros / size, found.score))
            masks = self._next(masks, found.weights, number + 1, rate)
        return Ticket(tuple(done), tuple(kept), tuple(starts), found.weights, self.model)

    def _round(self, number: int, masks: dict[str, Mask], begin: Weights) -> _Trained:
        model = rebuild(trace(self.model))
        values = []
        for path, value in zip(_paths(model), begin, strict=True):
            if path in masks:
                value = np.where(masks[path], value, value.dtype.type(0))
            values.append(value)
        model.set_weights(values)
        first = _Rewinding(self.rewind_to)
        later = [_From(self.rewind_to, self.steps, self.optimizer)] if self.rewind_to else []
        self.train(model, [Hold(masks), *later] if number else [first])
        self._check_zeros(model, masks)
        if all(map(np.array_equal, values, model.get_weights())):
            raise TfcompError(
                "`train` must fit the model that it is given. Received: not one weight has changed "
                f"in round {number}."
            )
        if not number and self.rewind_to and first.weights is None:
            raise TfcompError(
                f"`rewind_to` is step {self.rewind_to}, but training saw {first.done} batches "
                "end (with steps_per_execution, only some do), or `train` left its callbacks out."
            )
        score = finite_score("evaluate", self.evaluate, model)
        noted = first.weights or begin
        return _Trained(score, model.get_weights(), noted, first.done, first.optimizer)

    def _check_zeros(self, model: keras.Model, masks: dict[str, Mask]) -> None:
        for path, value in zip(_paths(model), model.get_weights(), strict=True):
            if path in masks and (value[~masks[path]] != 0).any():
                raise TfcompError(
                    f"Removed weights of {path!r} came back while `train` ran. It must give its "
                    "callbacks to `fit`: model.fit(..., callbacks=callbacks)."
                )

    def _next(
        self, masks: dict[str, Mask], weights: Weights, number: int, rate: float
    ) -> dict[str, Mask]:
        by_path = dict(zip(_paths(self.model), weights, strict=True))
        names = list(masks)
        groups = [names] if self.scope == "global" else [[name] for name in names]
        new: dict[str, Mask] = {}
        for group in groups:
            share = self.rates.get(group[0].split("/")[-2], rate)
            scores = [np.where(masks[n], np.abs(by_path[n]), -np.inf) for n in group]
            count = pruned_count(sum(s.size for s in scores), 1 - (1 - share) ** number)
            new |= dict(zip(group, keep_masks(scores, count), strict=True))
        return new

    # ---- the directory

    def _open(self, sparsity: float, rate: float) -> None:
        if self.folder is None:
            return
        digest = hashlib.sha256()
        for value in self.model.get_weights():
            digest.update(np.ascontiguousarray(value).tobytes())
        settings = {
            "initial_weights": digest.hexdigest(),
            "rate": rate,
            "rewind_to": self.rewind_to,
            "rewind": self.rewind,
            "scope": self.scope,
            "rates": self.rates,
            "kernels": [kernel.name.partition("/")[2] for kernel in self.kernels],
        }
        path = self.folder / "settings.json"
        if path.exists() and _read(path) != settings:
            raise TfcompError(
                f"{self.folder} holds rounds of another search: other initial weights or "
                "settings. Choose another directory, or start from the same model."
            )
        write_json(path, settings)

    def _store(self, number: int, found: _Trained, masks: dict[str, Mask]) -> None:
        path = self._path(number)
        if path is None or path.exists():
            return
        arrays = {f"weights{i}": value for i, value in enumerate(found.weights)}
        arrays |= {f"noted{i}": value for i, value in enumerate(found.noted)}
        arrays |= {f"optimizer{i}": value for i, value in enumerate(found.optimizer)}
        arrays |= {f"mask/{name}": mask for name, mask in masks.items()}
        arrays |= {"score": np.asarray(found.score), "steps": np.asarray(found.steps)}
        with replacing(path) as temporary:
            np.savez(temporary, **arrays)  # type: ignore[arg-type]

    def _stored(self, number: int) -> _Trained | None:
        path = self._path(number)
        if path is None or not path.exists():
            return None
        try:
            with np.load(path) as kept:
                weights, noted = (
                    [kept[f"{name}{i}"] for i in range(len(self.model.weights))]
                    for name in ("weights", "noted")
                )
                count = sum(name.startswith("optimizer") for name in kept)
                optimizer = [kept[f"optimizer{i}"] for i in range(count)]
                if bool(optimizer) != bool(self.rewind_to and not number):
                    raise KeyError("optimizer")
                score, steps = float(kept["score"]), int(kept["steps"])
                return _Trained(score, weights, noted, steps, optimizer)
        except (zipfile.BadZipFile, ValueError, KeyError, OSError) as error:
            raise TfcompError(
                f"{path} must hold a finished round. Received: a file that cannot be read. Remove "
                "it, and the round is trained again."
            ) from error

    def _path(self, number: int) -> pathlib.Path | None:
        return None if self.folder is None else self.folder / f"round-{number}.npz"


def _read(path: pathlib.Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise TfcompError(
            f"{path} must hold the settings of a search. Received: a file that cannot be read. "
            "Choose another directory."
        ) from error


def _seeded(initializer: Any, seed: int) -> Any:
    """The same initialiser with a seed of its own; Glorot's where there is none."""
    made = keras.initializers.GlorotUniform() if initializer is None else initializer
    config = made.get_config()
    return type(made).from_config({**config, "seed": seed}) if "seed" in config else made


def _paths(model: keras.Model) -> list[str]:
    """A name for each of `model.get_weights()`, as that of its kernel where it is one."""
    names: dict[int, str] = {
        id(kernel.variable): kernel.name for kernel in find_kernels(model, depthwise=True)[0]
    }
    return [names.get(id(variable), variable.path) for variable in model.weights]
