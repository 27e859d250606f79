"""A student that learns from several layers of its teacher until one of them has proved best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfcomp.distillation.extended import ExtendedDistiller
from tfcomp.distillation.losses.arguments import weight
from tfcomp.distillation.losses.feature_loss import FeatureLoss
from tfcomp.distillation.losses.maps import float32, rest
from tfcomp.distillation.losses.regressor import make_regressor
from tfcomp.distillation.pairing import layer_name, pair_layers
from tfcomp.errors import TfcompError


class PrunedRoute(NamedTuple):
    """A route that was given up.

    Attributes:
        teacher_layer: Where it began.
        student_layer: Where it led.
        epoch: After how many epochs of training, counted from 1, it was pruned.
        score: Its score then.
    """

    teacher_layer: str
    student_layer: str
    epoch: int
    score: float


@keras.saving.register_keras_serializable(package="tfcomp")
class KnowledgeProjection(ExtendedDistiller):
    """A `Distiller` with candidate routes from the teacher's layers into the student's.

    loss = s·student + (1−s)·(Σ wᵢ·lossᵢ + w·Σ_r route_r) + regularisation

    A route r leads from a layer i of the teacher to a layer j of the student. A projection P_r,
    trained along with the student and thrown away, takes the teacher's features into the
    student's space: a 1×1 convolution, or what else `make_regressor` makes of the two shapes.

    route_r = ‖P_r(A_i) − A_j‖² / ‖A_j‖², the denominator taken as a constant

    is the fraction of the student's features that the projection does not explain, so that
    layers of any width and scale can be compared. The sum runs over the routes that are left.
    At the end of every `prune_every`-th epoch of training each of them is scored by the mean of
    its route_r over the epochs since the last pruning, and the worst, the one with the highest
    score, is pruned, until one is left. All routes train one student, so that their joint
    losses, the student's loss plus the route's, rank them as their own do.

    The paper's idea is kept: projected features of the teacher, candidate routes, selection by
    the joint loss in iterations. The distance, its scale and the pace of pruning are ours.

    Which routes are left, their scores and the count of epochs are weights of the distiller:
    they are saved with it and restored by `BackupAndRestore`, so that an interrupted training
    goes on as it would have. A pruned route costs nothing but its logged zero.

    Logs: those of `Distiller`; each route's loss as `TEACHER_LAYER_to_STUDENT_LAYER`, 0 once it
    is pruned.

    Args:
        teacher: As in `Distiller`.
        student: As in `Distiller`.
        routes: Pairs (teacher's layer, student's layer), by name or index; a layer may be on
            several. None: the last maps of each resolution that both models have.
        distillation_losses: Losses beside the routes', as in `Distiller`; by default none.
        distillation_loss_weights: A weight ≥ 0 for each of them.
        student_loss_weight: s, in [0, 1].
        projection_weight: w ≥ 0, or one for each route; afterwards the last of
            `distillation_loss_weights`.
        prune_every: Epochs between prunings.
        name: Name of the model.
        **kwargs: Passed to `keras.Model`.

    Raises:
        TfcompError: As `Distiller`; if there is no route, one is given twice, or no projection
            leads from one layer to the other.

    Example:
        >>> import keras, numpy as np
        >>> from tfcomp.distillation import KnowledgeProjection
        >>> def net(width):
        ...     layers = [keras.layers.Conv2D(width, 3, 2, name=f"conv{i}") for i in (1, 2)]
        ...     layers += [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3)]
        ...     return keras.Sequential([keras.Input((15, 15, 1)), *layers])
        >>> distiller = KnowledgeProjection(net(16), net(4))
        >>> distiller.routes
        [('conv2', 'conv2'), ('conv1', 'conv1')]
        >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        >>> distiller.compile("adam", loss=loss)
        >>> x, y = np.random.rand(16, 15, 15, 1), np.random.randint(3, size=16)
        >>> history = distiller.fit(x, y, epochs=2, verbose=0)
        >>> len(distiller.routes), [route.epoch for route in distiller.pruned_routes]
        (1, [1])

    Reference:
        Zhang, Ning, He (2017), Knowledge Projection for Deep Neural Networks,
        arXiv:1710.09505.
    """

    def __init__(
        self,
        teacher: keras.Model,
        student: keras.Model,
        routes: Sequence[tuple[str | int, str | int]] | None = None,
        distillation_losses: Any = None,
        distillation_loss_weights: Any = None,
        student_loss_weight: float = 0.5,
        projection_weight: float | Sequence[float] = 1.0,
        prune_every: int = 1,
        name: str = "knowledge_projection",
        **kwargs: Any,
    ) -> None:
        if isinstance(prune_every, bool) or not isinstance(prune_every, int) or prune_every < 1:
            raise TfcompError(
                f"`prune_every` must be a whole number ≥ 1. Received: {prune_every!r}."
            )
        pairs = _pairs(teacher, student, routes)
        state = _RouteState(len(pairs), name="routes")
        super().__init__(
            teacher,
            student,
            distillation_losses,
            distillation_loss_weights,
            [_Route(t, s, state, number) for number, (t, s) in enumerate(pairs)],
            _weights(projection_weight, len(pairs)),
            student_loss_weight=student_loss_weight,
            name=name,
            **kwargs,
        )
        self.prune_every = prune_every
        self._route_state = state
        self._pairs = tuple(pairs)

    @property
    def routes(self) -> list[tuple[str, str]]:
        """(teacher's layer, student's layer) of the routes that are left, as they were given."""
        return [self._pairs[number] for number in self._route_state.left()]

    @property
    def pruned_routes(self) -> list[PrunedRoute]:
        """The routes that were pruned, the first one first."""
        epochs, scores = self._route_state.history()
        order = sorted(np.flatnonzero(epochs), key=lambda number: epochs[number])
        return [
            PrunedRoute(*self._pairs[number], int(epochs[number]), float(scores[number]))
            for number in order
        ]

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: Any = "auto",
        callbacks: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """As `keras.Model.fit`; prunes routes at the ends of epochs.

        Args:
            x: As in Keras.
            y: As in Keras.
            batch_size: As in Keras.
            epochs: As in Keras.
            verbose: As in Keras.
            callbacks: One or a list. They see an epoch's end after the pruning.
            *args: As in Keras.
            **kwargs: As in Keras.

        Returns:
            As in Keras, the history.

        Raises:
            TfcompError: If callbacks come as a `CallbackList`, into which none can be put first.
        """
        if isinstance(callbacks, keras.callbacks.CallbackList):
            raise TfcompError(
                "Routes are pruned by a callback: expected a list of callbacks, received a "
                "CallbackList. Pass its `callbacks`."
            )
        given = [] if callbacks is None else keras.tree.flatten(callbacks)
        # First, so that what a backup or checkpoint saves at an epoch's end is after the pruning.
        together = [_PruneRoutes(), *given]
        return super().fit(x, y, batch_size, epochs, verbose, together, *args, **kwargs)

    def end_epoch(self, logs: dict[str, Any]) -> None:
        """Scores the routes by an epoch's logs, and prunes the worst where it is time.

        Args:
            logs: The epoch's, with each route's mean loss.
        """
        left = self._route_state.left()
        if len(left) > 1:
            names = [term.name for term in self.own_terms()]
            losses = {number: float(logs[names[number]]) for number in left}
            self._route_state.end_epoch(losses, self.prune_every)

    def get_config(self) -> dict[str, Any]:
        """Both models, the routes, the losses and their weights."""
        return {
            **super().get_config(),
            "routes": [list(pair) for pair in self._pairs],
            "projection_weight": [term.weight.number for term in self.own_terms()],
            "prune_every": self.prune_every,
        }


class _PruneRoutes(keras.callbacks.Callback):
    """Tells the distiller of each epoch's end."""

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.model.end_epoch(dict(logs or {}))


class _RouteState(keras.layers.Layer):
    """Which routes are left and how they have done, as weights, so that all of it is saved."""

    def __init__(self, routes: int, name: str) -> None:
        super().__init__(name=name, trainable=False, dtype="float32", autocast=False)
        self.alive = self._number("alive", routes, "ones")
        self.epochs = self._number("epochs", routes, "zeros")
        self.scores = self._number("scores", routes, "zeros")
        # Of the epochs since the last pruning.
        self.totals = self._number("totals", routes, "zeros")
        self.count = self._number("count", 1, "zeros")
        self.epoch = self._number("epoch", 1, "zeros")
        self.built = True

    def _number(self, name: str, size: int, initializer: str) -> keras.Variable:
        return self.add_weight(
            shape=(size,), initializer=initializer, trainable=False, autocast=False, name=name
        )

    def left(self) -> list[int]:
        """Numbers of the routes that are left."""
        return [int(number) for number in np.flatnonzero(_numpy(self.alive))]

    def history(self) -> tuple[np.ndarray, np.ndarray]:
        """For each route the epoch after which it was pruned, 0 if it was not, and its score."""
        return _numpy(self.epochs), _numpy(self.scores)

    def end_epoch(self, losses: dict[int, float], prune_every: int) -> None:
        """Counts an epoch's losses, by number of route, and prunes the worst if it is time."""
        totals = _numpy(self.totals).copy()
        for number, loss in losses.items():
            # What has no value is worse than anything that has.
            totals[number] += loss if math.isfinite(loss) else math.inf
        count = int(_numpy(self.count)[0]) + 1
        epoch = int(_numpy(self.epoch)[0]) + 1
        if count >= prune_every:
            worst = max(losses, key=lambda number: totals[number])
            for variable, value in [
                (self.alive, 0.0),
                (self.epochs, epoch),
                (self.scores, totals[worst] / count),
            ]:
                numbers = _numpy(variable).copy()
                numbers[worst] = value
                variable.assign(numbers)
            totals, count = 0 * np.nan_to_num(totals), 0
        self.totals.assign(totals)
        self.count.assign([count])
        self.epoch.assign([epoch])


class _Route(FeatureLoss):
    """One route, as long as it is left."""

    def __init__(
        self, teacher_layer: str, student_layer: str, state: _RouteState, number: int
    ) -> None:
        super().__init__(teacher_layer, student_layer, f"{teacher_layer}_to_{student_layer}")
        self.state = state
        self.number = number

    def build(self, teacher_shapes: Any, student_shapes: Any) -> None:
        """Makes the projection, from the teacher to the student."""
        self.layers = (make_regressor(teacher_shapes, student_shapes, f"{self.name}_projection"),)

    def per_sample(self, teacher_outputs: Any, student_outputs: Any) -> Any:
        """Values of shape (batch,)."""
        ops = keras.ops

        def distance() -> Any:
            student = float32(student_outputs)
            gap = float32(self.layers[0](teacher_outputs)) - student
            size = ops.stop_gradient(ops.mean(ops.square(student), axis=rest(student)))
            return ops.mean(ops.square(gap), axis=rest(gap)) / ops.where(size > 0, size, 1.0)

        nothing = ops.zeros(ops.shape(student_outputs)[:1], dtype="float32")
        return tf.cond(self.state.alive.value[self.number] > 0, distance, lambda: nothing)


def _pairs(teacher: Any, student: Any, routes: Any) -> list[tuple[str, str]]:
    """The routes by the names of their layers."""
    for model, role in ((teacher, "teacher"), (student, "student")):
        if not isinstance(model, keras.Model):
            raise TfcompError(f"The {role} must be a keras.Model. Received: {model!r}.")
    if routes is None:
        return pair_layers(teacher, student)
    listed = list(routes) if isinstance(routes, (list, tuple)) else []
    if not listed or any(not isinstance(r, (list, tuple)) or len(r) != 2 for r in listed):
        raise TfcompError(
            "`routes` must be pairs (teacher's layer, student's layer), one at least, or None. "
            f"Received: {routes!r}."
        )
    named = [
        (layer_name(teacher, one, "teacher"), layer_name(student, other, "student"))
        for one, other in listed
    ]
    if len(set(named)) < len(named):
        raise TfcompError(f"Each route must be given once. Received: {named}.")
    return named


def _weights(given: Any, routes: int) -> list[float]:
    weights = list(given) if isinstance(given, (list, tuple)) else [given] * routes
    if len(weights) != routes:
        raise TfcompError(
            f"`projection_weight` must be a number, or one for each route: expected {routes}, "
            f"received {len(weights)}."
        )
    return [weight("projection_weight", one) for one in weights]


def _numpy(variable: keras.Variable) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(variable))
