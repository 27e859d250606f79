"""Peers that learn from labels and from each other."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import keras
import tensorflow as tf

from tfcomp.distillation.copies import copy_stateful
from tfcomp.distillation.inputs import DistillationInputs
from tfcomp.distillation.losses import KnowledgeDistillation
from tfcomp.distillation.losses.arguments import choice
from tfcomp.distillation.losses.ending import endings
from tfcomp.distillation.losses.relation import Variant
from tfcomp.distillation.precision import policy_of
from tfcomp.errors import TfcompError
from tfcomp.graph import is_graph_model

Updates = Literal["in_turn", "together"]

# The smallest normal number of a float32: less counts as that.
_TINY = 1.2e-38
_ENSEMBLE = "ensemble"


@keras.saving.register_keras_serializable(package="tfcomp")
class MutualLearning(keras.Model):
    """K ≥ 2 classifiers that are trained together, each on the labels and on the others.

    L_k = task(y, p_k) + c·Σ_{l≠k} KL(p_l ‖ p_k) + regularisation of peer k

    `task` is the loss given to `compile`, p_k are the class probabilities of peer k, and each
    p_l is a constant in L_k. By `variant`, c is

    - `"paper"`: 1/(K−1), so that the other peers are averaged;
    - `"code"`: 1, so that they are summed, as in the authors' release. For two it is the same.

    Peers may be of any mix of architectures with the same inputs and classes, and end in logits
    or in softmax, each its own way. Axes between the first and the last (pixels, time steps) are
    averaged. Sample and class weights apply to both terms.

    As in the paper's Algorithm 1 the peers are updated one after the other within a step, each
    seeing what the peers before it say after their update: K−1 further forward passes, of which
    BatchNorm keeps no statistics. `updates="together"` spares these passes and lets each peer
    see what the others said before the step.

    Every peer is trained by an optimizer of its own, a copy of the one given to `compile`, so
    that clipping by global norm and loss scaling are a peer's own affair. All follow the
    learning rate of `optimizer`, which callbacks may set.

    Several replicas make the updates of one where batches divide by their number; a last batch
    that does not counts by the replicas' means, as in Keras: batch with `drop_remainder=True`.

    Calling, `predict` and the metrics of the ensemble use the mean of the peers'
    probabilities, given as the first peer gives its own: as logits (log of the mean) or as
    probabilities. Losses and metrics see all peers in that form. `peers` are the caller's
    models, trained, and plain.

    Logs, for each k from 1: `peer_k_loss` (the task's, unweighted), `peer_k_mimicry` (c·Σ of the
    divergences; in training only) and `peer_k_METRIC`; `ensemble_loss`, `ensemble_METRIC`; and
    `loss`, the sum of all L_k (in evaluation without mimicry). `histories` has them by peer.

    Args:
        peers: Two or more built models with one output each, which share no weights.
        updates: `"in_turn"` or `"together"`, see above.
        from_logits: Whether the peers' outputs are logits. None: read from the last layer of
            each; needed for subclassed models.
        variant: `"paper"` or `"code"`, see above.
        name: Name of the model.
        **kwargs: Passed to `keras.Model`.

    Raises:
        TfcompError: If the peers do not fit together.

    Example:
        >>> import keras, numpy as np
        >>> from tfcomp.distillation import MutualLearning
        >>> def net(units):
        ...     layers = [keras.layers.Dense(units, "relu"), keras.layers.Dense(3)]
        ...     return keras.Sequential([keras.Input((4,)), *layers])
        >>> mutual = MutualLearning([net(4), net(32)])
        >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        >>> mutual.compile("adam", loss=loss, metrics=["accuracy"])
        >>> x, y = np.random.rand(64, 4), np.random.randint(3, size=64)
        >>> history = mutual.fit(x, y, verbose=0)
        >>> sorted(mutual.histories["peer_2"])
        ['accuracy', 'loss', 'mimicry']
        >>> small, large = mutual.peers

    Reference:
        Zhang, Xiang, Hospedales, Lu (2018), Deep Mutual Learning, arXiv:1706.00384.
    """

    def __init__(
        self,
        peers: Sequence[keras.Model],
        updates: Updates = "in_turn",
        from_logits: bool | None = None,
        variant: Variant = "paper",
        name: str = "mutual_learning",
        **kwargs: Any,
    ) -> None:
        if updates not in get_args(Updates):
            raise TfcompError(
                f"`updates` must be one of {', '.join(map(repr, get_args(Updates)))}. "
                f"Received: {updates!r}."
            )
        self.variant = choice("variant", variant, Variant)
        _check_peers(peers)
        _check_inputs(peers)
        # Precision is each peer's affair; the policy decides on loss scaling alone.
        kwargs.setdefault("dtype", policy_of(peers))
        super().__init__(name=name, autocast=False, **kwargs)
        self.peers = list(peers)
        self.updates = updates
        self.from_logits = from_logits
        self._setup = _Setup(
            logits=tuple(_ends_in_logits(peer, from_logits) for peer in peers),
            divergence=KnowledgeDistillation(
                1.0, teacher_from_logits=True, student_from_logits=True
            ),
        )
        for peer in peers:
            self._setup.divergence.validate_model_compatibility(None, peer)
        _check_outputs(peers)
        _check_inputs(peers)
        self._others: list[keras.optimizers.Optimizer] = []
        self._mimicry = [keras.metrics.Mean(name=f"{n}_mimicry") for n in self.output_names[:-1]]
        self.built = True

    @property
    def output_names(self) -> list[str]:
        """`peer_1` … and `ensemble`: what logs are called."""
        return [f"peer_{number}" for number in range(1, len(self.peers) + 1)] + [_ENSEMBLE]

    @property
    def peer_optimizers(self) -> list[keras.optimizers.Optimizer]:
        """The optimizer of each peer; the first is `optimizer`."""
        return [self.optimizer, *self._others]

    @property
    def histories(self) -> dict[str, dict[str, list[float]]]:
        """The logs of the last `fit` by peer, and those of the ensemble: `histories["peer_1"]`."""
        recorded = getattr(self, "history", None)
        if recorded is None:
            raise TfcompError("There is no history yet: expected a call of fit before.")
        parts: dict[str, dict[str, list[float]]] = {name: {} for name in self.output_names}
        for key, values in recorded.history.items():
            prefix = "val_" if key.startswith("val_") else ""
            for name, part in parts.items():
                if key.startswith(f"{prefix}{name}_"):
                    part[prefix + key.removeprefix(f"{prefix}{name}_")] = values
        return parts

    def compile(
        self,
        optimizer: Any = "rmsprop",
        loss: Any = None,
        *,
        metrics: Any = None,
        weighted_metrics: Any = None,
        jit_compile: bool | str = False,
        **kwargs: Any,
    ) -> None:
        """As `keras.Model.compile`, for each of the peers and their ensemble.

        Args:
            optimizer: Copied for each peer; the first uses the one given.
            loss: The task's loss on one peer's outputs.
            metrics: A list; copied for each peer and the ensemble.
            weighted_metrics: Likewise.
            jit_compile: Whether to compile with XLA. Off by default, because it makes steps
                several times slower on CPUs; on GPUs try `True`.
            **kwargs: As in Keras.

        Raises:
            TfcompError: If there is no loss, if the loss or the metrics are given per output,
                or if the optimizer averages weights, which Keras does for one optimizer alone.
        """
        if loss is None or isinstance(loss, (dict, list, tuple)):
            raise TfcompError(f"Each peer needs the task's loss: expected one, received {loss!r}.")
        for given in (metrics, weighted_metrics):
            if given is not None and not isinstance(given, (list, tuple)):
                raise TfcompError(f"Metrics must be a list, the same for all. Received: {given!r}.")
        names = self.output_names
        super().compile(
            optimizer,
            loss=dict.fromkeys(names, loss),
            loss_weights={name: float(name != _ENSEMBLE) for name in names},
            metrics=_for_each(names, metrics),
            weighted_metrics=_for_each(names, weighted_metrics),
            jit_compile=jit_compile,
            **kwargs,
        )
        self._given = _Given(loss, metrics, weighted_metrics)
        self._make_optimizers()

    def _make_optimizers(self) -> None:
        """One optimizer for each peer, with its variables, so that they can be restored."""
        if self.optimizer is None:
            raise TfcompError("Training needs an optimizer. Received: None.")
        inner: Any = getattr(self.optimizer, "inner_optimizer", self.optimizer)
        if inner.use_ema:
            raise TfcompError(
                f"Weights cannot be averaged while peers learn: expected use_ema=False, received "
                f"{inner.name!r} with use_ema=True. Leave it out."
            )
        with self.distribute_strategy.scope():
            self._others = [copy_stateful(self.optimizer) for _ in self.peers[1:]]
            for peer, optimizer in zip(self.peers, self.peer_optimizers, strict=True):
                if not peer.trainable_variables:
                    raise TfcompError(
                        f"The peer {peer.name!r} cannot learn: expected trainable weights, "
                        "received none. Set peer.trainable = True and compile again."
                    )
                if not optimizer.built:
                    optimizer.build(peer.trainable_variables)

    def get_compile_config(self) -> dict[str, Any]:
        """What `compile` was called with."""
        config = dict(super().get_compile_config() or {})
        if config:
            config.pop("loss_weights", None)
            given = vars(self._given).items()
            config.update({k: keras.saving.serialize_keras_object(v) for k, v in given})
        return config

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles as it was compiled when it was saved."""
        self.compile(**keras.saving.deserialize_keras_object(config))

    def build(self, input_shape: Any = None) -> None:
        """Nothing to do: the peers are built."""

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """The ensemble's outputs, in the form of the first peer's."""
        return self._predictions(self._outputs(inputs, training))[_ENSEMBLE]

    def train_step(self, data: Any) -> dict[str, Any]:
        """One update of each peer."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        if y is None:
            raise TfcompError("Peers need labels: expected data of (x, y), received x alone.")
        with tf.GradientTape(persistent=True) as tape:
            outputs = self._outputs(x, training=True)
            predictions = self._predictions(outputs)
            supervised = self.compute_loss(x, y, predictions, sample_weight, training=True)
            logits = self._as_logits(outputs)
        self._follow_learning_rate()
        known = [tf.stop_gradient(z) for z in logits]
        total, replicas = supervised, _replicas()
        count = tf.shape(logits[0])[0]
        for k, (peer, optimizer) in enumerate(zip(self.peers, self.peer_optimizers, strict=True)):
            with tape:
                mimicry = self._divergence(k, logits[k], known, sample_weight) / replicas
                # Of the peers' summed losses, this peer's weights move its own alone.
                loss = optimizer.scale_loss(supervised + mimicry)
            variables = peer.trainable_variables
            gradients = tape.gradient(loss, variables)
            optimizer.apply_gradients(zip(gradients, variables, strict=True))
            if self.updates == "in_turn" and k + 1 < len(self.peers):
                known[k] = self._say_again(k, x)
            self._mimicry[k].update_state(mimicry * replicas, sample_weight=count)
            total = total + mimicry
        del tape
        self._loss_metric().update_state(total * replicas, sample_weight=count)
        return self.compute_metrics(x, y, predictions, sample_weight=sample_weight)

    def test_step(self, data: Any) -> dict[str, Any]:
        """The peers' evaluation, and the ensemble's."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        predictions = self._predictions(self._outputs(x, training=False))
        loss = self.compute_loss(x, y, predictions, sample_weight, training=False)
        count = tf.shape(predictions[_ENSEMBLE])[0]
        self._loss_metric().update_state(loss * _replicas(), sample_weight=count)
        logs = self.compute_metrics(x, y, predictions, sample_weight=sample_weight)
        ours = {tracker.name for tracker in self._mimicry}
        return {name: value for name, value in logs.items() if name not in ours}

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """The sum of the peers' own losses, and of their regularisation.

        Args:
            x: The inputs.
            y: The labels, the same for all peers.
            y_pred: Predictions by name of output; or one for all of them.
            sample_weight: A weight for each sample.
            training: Whether this is a step of training.
        """
        y, y_pred, sample_weight = map(self._by_output, (y, y_pred, sample_weight))
        return super().compute_loss(x, y, y_pred, sample_weight, training=training)

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> dict[str, Any]:
        """Updates the metrics of peers and ensemble; arguments as for `compute_loss`."""
        y, y_pred, sample_weight = map(self._by_output, (y, y_pred, sample_weight))
        logs: dict[str, Any] = super().compute_metrics(x, y, y_pred, sample_weight=sample_weight)
        return logs

    def _by_output(self, value: Any) -> Any:
        names = self.output_names
        if value is None or (isinstance(value, dict) and set(value) == set(names)):
            return value
        return dict.fromkeys(names, value)

    def _outputs(self, x: Any, training: bool | None) -> list[Any]:
        if isinstance(x, DistillationInputs):
            raise TfcompError(
                "Peers have no other teacher: expected plain inputs, received DistillationInputs. "
                "Map them away: data.map(lambda x, y: (x.inputs, y))."
            )
        return [peer(x, training=training) for peer in self.peers]

    def _as_logits(self, outputs: list[Any]) -> list[Any]:
        return [_logits(o, own) for o, own in zip(outputs, self._setup.logits, strict=True)]

    def _predictions(self, outputs: list[Any]) -> dict[str, Any]:
        """By name of output, in the form of the first peer's; the ensemble without gradient."""
        ops, in_logits = keras.ops, self._setup.logits[0]
        logits = self._as_logits(outputs)
        found = [
            output if own == in_logits else (z if in_logits else ops.softmax(z, axis=-1))
            for output, z, own in zip(outputs, logits, self._setup.logits, strict=True)
        ]
        each = ops.stack([ops.log_softmax(tf.stop_gradient(z), axis=-1) for z in logits])
        mean = ops.logsumexp(each, axis=0) - math.log(len(outputs))
        return dict(
            zip(self.output_names, [*found, mean if in_logits else ops.exp(mean)], strict=True)
        )

    def _divergence(self, k: int, logits: Any, known: list[Any], sample_weight: Any) -> Any:
        """c·Σ_{l≠k} KL(p_l ‖ p_k), the weighted mean over the batch."""
        kl = self._setup.divergence
        others = [z for number, z in enumerate(known) if number != k]
        for other in others:
            kl.validate_outputs(other, logits)
        values = sum(kl.per_sample(other, logits) for other in others)
        if self.variant == "paper":
            values = values / len(others)
        if sample_weight is not None:
            values = values * _per_sample(sample_weight, values)
        return keras.ops.mean(values)

    def _say_again(self, k: int, x: Any) -> Any:
        """What peer k says of the batch after its update, its state left as it is."""
        with keras.StatelessScope():
            output = self.peers[k](x, training=True)
        return _logits(tf.stop_gradient(output), self._setup.logits[k])

    def _follow_learning_rate(self) -> None:
        """Callbacks set the first optimizer's; schedules go by their own count of steps."""
        rate = self.optimizer.learning_rate
        for other in self._others:
            if isinstance(rate, keras.Variable):
                other.learning_rate.assign(rate)

    def _loss_metric(self) -> keras.metrics.Metric:
        """The metric that Keras reports as the loss."""
        return next(metric for metric in self.metrics if metric.name == "loss")

    def get_config(self) -> dict[str, Any]:
        """The peers and the constructor's other arguments."""
        config = super().get_config()
        config.pop("autocast", None)
        return {
            **config,
            "peers": [keras.saving.serialize_keras_object(peer) for peer in self.peers],
            "updates": self.updates,
            "from_logits": self.from_logits,
            "variant": self.variant,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> MutualLearning:
        """What `get_config` described, with models of its own."""
        load = keras.saving.deserialize_keras_object
        peers = [load(peer, custom_objects=custom_objects) for peer in config["peers"]]
        return cls(**{**config, "peers": peers})


@dataclasses.dataclass(frozen=True, eq=False)
class _Setup:
    """What Keras is not to look into: whether each peer gives logits, and the divergence."""

    logits: tuple[bool, ...]
    divergence: KnowledgeDistillation


@dataclasses.dataclass(frozen=True, eq=False)
class _Given:
    """What `compile` was called with, where it is not what Keras compiled."""

    loss: Any
    metrics: Any
    weighted_metrics: Any


def _logits(output: Any, is_logits: bool) -> Any:
    """In float32; the logarithm of a probability is a logit."""
    output = keras.ops.cast(output, "float32")
    return output if is_logits else keras.ops.log(keras.ops.maximum(output, _TINY))


def _for_each(names: list[str], metrics: Any) -> Any:
    return None if metrics is None else {name: copy_stateful(list(metrics)) for name in names}


def _replicas() -> int:
    replicas: int = tf.distribute.get_strategy().num_replicas_in_sync
    return replicas


def _per_sample(sample_weight: Any, values: Any) -> Any:
    shape = tuple(sample_weight.shape)
    if len(shape) > 2 or (len(shape) == 2 and shape[1] != 1):
        raise TfcompError(
            "Peers are compared with one weight per sample: expected sample_weight of shape "
            f"(batch,), received {shape}. Average it over the other axes."
        )
    return keras.ops.cast(keras.ops.reshape(sample_weight, (-1,)), values.dtype)


def _check_peers(peers: Any) -> None:
    if not isinstance(peers, (list, tuple)) or len(peers) < 2:
        raise TfcompError(f"`peers` must be a list of two models or more. Received: {peers!r}.")
    taken: set[int] = set()
    for number, peer in enumerate(peers, start=1):
        if not isinstance(peer, keras.Model) or not peer.built:
            raise TfcompError(f"Peer {number} must be a built keras.Model. Received: {peer!r}.")
        shared = [variable.path for variable in peer.variables if id(variable) in taken]
        if shared:
            raise TfcompError(
                f"Peers must not share weights: expected models of their own, received "
                f"{shared[0]!r} in peer {number} and in one before it. Copy the model with "
                "tfcomp.graph.rebuild(model)."
            )
        taken |= {id(variable) for variable in peer.variables}


def _check_inputs(peers: Sequence[keras.Model]) -> None:
    """All peers see the same batch."""
    shapes = [
        tuple(peer.inputs[0].shape)[1:]
        for peer in peers
        if is_graph_model(peer) and len(peer.inputs) == 1
    ]
    for shape in shapes:
        fits = len(shape) == len(shapes[0]) and all(
            None in both or both[0] == both[1] for both in zip(shape, shapes[0], strict=True)
        )
        if not fits:
            raise TfcompError(
                f"Peers must take the same inputs: expected {shapes[0]} without the batch, "
                f"received {shape}. Put a Resizing layer in front of one."
            )


def _ends_in_logits(peer: keras.Model, from_logits: bool | None) -> bool:
    if from_logits is not None:
        return from_logits
    if not is_graph_model(peer):
        raise TfcompError(
            f"Cannot read whether the outputs of {peer.name!r} are logits, because it is "
            "subclassed: expected from_logits=True or False, received None. Pass it."
        )
    found = endings(peer)
    if found not in (["logits"], ["softmax"]):
        raise TfcompError(
            f"A peer must be a classifier with one output: expected logits or softmax, received "
            f"{peer.name!r}, which ends in {', '.join(found)}. Choose the output with "
            "keras.Model(inputs, output)."
        )
    return found == ["logits"]


def _check_outputs(peers: Sequence[keras.Model]) -> None:
    shapes = [tuple(peer.outputs[0].shape) if is_graph_model(peer) else None for peer in peers]
    known = [shape for shape in shapes if shape is not None]
    for number, shape in enumerate(shapes, start=1):
        if shape is None:
            continue
        if len(shape) < 2 or shape[-1] == 1:
            raise TfcompError(
                "Peers must tell two classes or more apart on the last axis. Received: outputs "
                f"of shape {shape} from peer {number}."
            )
        agree = len(shape) == len(known[0]) and all(
            a == b or None in (a, b) for a, b in zip(shape, known[0], strict=True)
        )
        if not agree:
            raise TfcompError(
                f"All peers must have outputs of one shape: expected {known[0]}, received "
                f"{shape} from peer {number}. Change its last layer."
            )
