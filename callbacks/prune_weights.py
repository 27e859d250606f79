"""Weight pruning while `model.fit` trains."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any, Self

import keras
import numpy as np

from tfcomp.callbacks.kernel_selection import KernelSelection, Selected
from tfcomp.callbacks.pruning_report import PruningReport
from tfcomp.callbacks.pruning_session import SESSIONS, Session
from tfcomp.callbacks.pruning_settings import Override, Scope, Settings, checked_overrides
from tfcomp.errors import TfcompError
from tfcomp.pruning.criteria import Criterion, Magnitude
from tfcomp.pruning.schedules import ConstantSparsity, Schedule, check_schedule
from tfcomp.pruning.sparsity import Kernel
from tfcomp.pruning.units import Unit, Weights


@keras.saving.register_keras_serializable(package="tfcomp")
class PruneWeights(keras.callbacks.Callback):
    """Sets the smallest weights to zero while `fit` trains, and keeps them there.

    At each step t at which the schedule rises, the ⌊s_t·n + ½⌋ weights of lowest score, |w| by
    default, among the n of a kernel (scope "local") or of all kernels together ("global") are
    set to zero, and stay zero: masks nest. With another `unit` whole units go, so many that the
    count of weights is met to half a unit, but the last unit stays; N:M counts groups. Ties go by
    index. The masks are applied by the variables' constraints inside the compiled step, around
    constraints of the layers' own. When training ends these constraints are taken away again, and
    the model is plain Keras with exact zeros, which are read back into `report`. (A `fit` that is
    interrupted cannot do so: the masks hold until the next PruneWeights, or until the model is
    saved and loaded.)

    Training that continues goes on where it was: in another `fit` of the same model with an
    equal schedule, and in a `fit` that starts at a later epoch (`BackupAndRestore`,
    `initial_epoch`) if the kernels have the zeros that the schedule wants there. Zeros that
    were made by pruning the same model before are not given back, but in layers to `skip`.

    List it before `EarlyStopping` and `ModelCheckpoint`, and after `SwapEMAWeights`; the
    sparsity in the end does not depend on the order. Spared by default are depthwise kernels,
    and in networks with convolutions the first kernel and the last; biases, BatchNormalization
    and embeddings always.

    Magnitude pruning: Han, Pool, Tran and Dally 2015, arXiv:1506.02626; its schedules: see
    `tfcomp.pruning`.

    Args:
        schedule: A `tfcomp.pruning` schedule. One step is one batch of `fit`.
        scope: `"local"`: each kernel gets the schedule's sparsity. `"global"`: all kernels
            together do, the smallest weights going first wherever they are. Default "local".
        skip: Layers to spare, as objects or names, nested models and blocks among them.
        depthwise: Whether depthwise kernels are pruned as well. Default False: only those that
            have a pattern of `overrides` for themselves, which is of no other kernel.
        first: Whether the model's first kernel is pruned, in the order of `model.weights`. By
            default it is spared in a network with convolutions, as papers on these do (Zhu and
            Gupta 2017, arXiv:1710.01878), where other kernels are left and `overrides` do not name
            it; networks of dense layers are pruned as a whole (Han et al. 2015; Frankle and Carbin
            2018, arXiv:1803.03635).
        last: Whether the model's last kernel, its classifier, is pruned. By default likewise.
        unit: What is removed together: a `tfcomp.pruning` unit, `Weights()` (the default),
            `NM(2, 4)`, `Blocks(4, 4)`, `Kernels()`, `Filters()` or, with scope "global",
            `Layers()`.
        criterion: What gives the weights their scores: a `tfcomp.pruning.Criterion`,
            `Magnitude()` by default. It is asked anew at each removal. Those that score channels,
            `FPGM()` or `Taylor(loss, data)` for two, need a unit of whole filters or layers.
        overrides: By patterns (`*`, `?`, `[…]`) of layers' names or of weights' paths: another
            final sparsity on the same course, another schedule, another unit, or None to spare.
            Of several patterns for one kernel the first counts, of those with a unit likewise.
            With scope "global" these kernels stand by themselves.
        keep_zeros: Whether zeros that kernels hold when training begins stay zero. Default
            False. `from_zeros` sets it.

    Attributes:
        report: A `PruningReport` once training has begun, brought up to date when it ends.

    Raises:
        TfcompError: If an argument is not as described; in `fit`, if the model has no kernel
            to prune, if a pattern or a unit fits none, if scores are not finite, if its training
            step ignores constraints, or if the sparsity read back
            in the end is not the one asked for.

    Example:
        >>> import numpy as np
        >>> from tfcomp.pruning import PolynomialDecay
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(10)])
        >>> model.compile("adam", "mse")
        >>> prune = PruneWeights(PolynomialDecay(0.0, 0.75, begin_step=0, end_step=4))
        >>> _ = model.fit(np.ones((40, 8)), np.ones((40, 10)), batch_size=8, verbose=0,
        ...               callbacks=[prune])
        >>> prune.report.sparsity, int((model.get_weights()[0] == 0).sum())
        (0.75, 60)
    """

    def __init__(
        self,
        schedule: Schedule,
        *,
        scope: Scope = "local",
        skip: Iterable[Any] = (),
        depthwise: bool = False,
        first: bool | None = None,
        last: bool | None = None,
        unit: Unit | None = None,
        criterion: Criterion | None = None,
        overrides: Mapping[str, Override] | None = None,
        keep_zeros: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(schedule, Schedule):
            raise TfcompError(
                "`schedule` must be a tfcomp.pruning schedule, such as ConstantSparsity(0.8). "
                f"Received: {schedule!r}."
            )
        check_schedule(schedule)
        _check_bool("depthwise", depthwise)
        _check_bool("keep_zeros", keep_zeros)
        _check_bool("first", first, may_be_none=True)
        _check_bool("last", last, may_be_none=True)
        if scope not in ("local", "global"):
            raise TfcompError(f'`scope` must be "local" or "global". Received: {scope!r}.')
        self.schedule = schedule
        self.scope: Scope = scope
        self.skip: tuple[Any, ...] = (skip,) if isinstance(skip, str) else tuple(skip)
        self.depthwise = depthwise
        self.first, self.last = first, last
        self.unit: Unit = _instance("unit", unit, Unit, Weights)
        self.criterion: Criterion = _instance("criterion", criterion, Criterion, Magnitude)
        self.unit.check_sparsity(schedule.final_sparsity)
        self._overrides = checked_overrides(overrides)
        self.keep_zeros = keep_zeros
        self.report: PruningReport | None = None
        self._session: Session | None = None

    @classmethod
    def from_zeros(
        cls,
        schedule: Schedule | None = None,
        *,
        scope: Scope = "local",
        skip: Iterable[Any] = (),
        unit: Unit | None = None,
        criterion: Criterion | None = None,
        overrides: Mapping[str, Override] | None = None,
    ) -> Self:
        """Keeps the exact zeros that kernels hold, for fine-tuning a model that was pruned.

        A saved model is plain Keras, and knows of its masks by its zeros alone.

        Args:
            schedule: Prunes further from there; by default nothing more is removed.
            scope: As in the constructor.
            skip: As in the constructor.
            unit: As in the constructor.
            criterion: As in the constructor.
            overrides: As in the constructor.

        Returns:
            The callback. Of what is spared by default, zeros are kept too; with a schedule,
            kernels among it that hold none are left alone.

        Example:
            >>> import numpy as np
            >>> layer = keras.layers.Dense(2, use_bias=False)
            >>> model = keras.Sequential([keras.Input((2,)), layer])
            >>> layer.set_weights([np.array([[0.0, 1.0], [2.0, 0.0]])])
            >>> model.compile("sgd", "mse")
            >>> _ = model.fit(np.ones((4, 2)), np.zeros((4, 2)), verbose=0,
            ...               callbacks=[PruneWeights.from_zeros()])
            >>> (layer.get_weights()[0] == 0).tolist()
            [[True, False], [False, True]]
        """
        schedule = ConstantSparsity(0.0) if schedule is None else schedule
        return cls(
            schedule,
            scope=scope,
            skip=skip,
            depthwise=True,
            first=True,
            last=True,
            unit=unit,
            criterion=criterion,
            overrides=overrides,
            keep_zeros=True,
        )

    def get_config(self) -> dict[str, Any]:
        """The arguments, layers given as objects by their names."""
        return {
            "schedule": keras.saving.serialize_keras_object(self.schedule),
            "scope": self.scope,
            "skip": [item if isinstance(item, str) else item.name for item in self.skip],
            "depthwise": self.depthwise,
            "first": self.first,
            "last": self.last,
            "unit": keras.saving.serialize_keras_object(self.unit),
            "criterion": keras.saving.serialize_keras_object(self.criterion),
            "overrides": {
                pattern: keras.saving.serialize_keras_object(value)
                for pattern, value in self._overrides
            },
            "keep_zeros": self.keep_zeros,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """The callback whose `get_config()` is `config`."""
        made = keras.saving.deserialize_keras_object
        objects = {key: made(config[key]) for key in ("schedule", "unit", "criterion")}
        overrides = {pattern: made(value) for pattern, value in config["overrides"].items()}
        return cls(**{**config, **objects, "overrides": overrides})

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._open(*self._selected(), SESSIONS.get(self.model))

    def _selected(self) -> Selected:
        selection = KernelSelection(
            self.skip, self.depthwise, self.first, self.last, self._settings()
        )
        return selection.of(self.model, SESSIONS.get(self.model))

    def _settings(self) -> Settings:
        return Settings(
            self.schedule, self.scope, self.keep_zeros, self.unit, self.criterion, self._overrides
        )

    def _open(
        self, kernels: tuple[Kernel, ...], skipped: dict[str, str], earlier: Session | None
    ) -> Session:
        settings = self._settings()
        steps = self.params.get("steps")
        self._session = Session(self.model, settings, steps, kernels, skipped, earlier)
        SESSIONS[self.model] = self._session
        # The function may have been traced in an earlier fit, without these constraints.
        self.model.make_train_function(force=True)
        return self._session

    def _with_new_kernels(self, session: Session) -> Session:
        """A subclassed model makes its weights in its first step: `session` goes on with them."""
        session.complete = True
        kernels, skipped = self._selected()
        known = {id(kernel.variable) for kernel in session.kernels}
        if all(id(kernel.variable) in known for kernel in kernels):
            return session
        session.release()
        after = self._open(kernels, skipped, session)
        after.start(0)
        after.complete, after.epoch_step = True, session.epoch_step
        return after

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        session = self._running()
        # Here rather than when training begins: by now every callback has restored what it
        # restores, and the number of the first epoch is known.
        if not session.started:
            with session.released_on_error():
                session.start(epoch)
            self.report = session.report()
        session.epoch_step = session.step

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        session = self._running()
        session.check_constraints_hold()
        if not session.complete:
            session = self._with_new_kernels(session)
        done = batch + 1
        steps = self.params.get("steps")
        # With steps_per_execution the last group of an epoch counts as a full one.
        session.step = session.epoch_step + (min(done, steps) if steps else done)
        with session.released_on_error():
            session.prune(session.step)

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        # Averaged weights may have been swapped in, to be evaluated or saved.
        if self._session is not None and self._session.installed:
            self._session.zero()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._running().zero()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        session = self._running()
        session.end()
        self.report = session.report()
        session.after_all_callbacks(self._after_all_callbacks)
        self._warn(session, self.report)

    def _after_all_callbacks(self) -> None:
        """Once more when EarlyStopping, if listed later, has put its best weights back."""
        session = self._running()
        session.end()
        self.report = session.report()

    def _running(self) -> Session:
        if self._session is None:
            raise TfcompError("PruneWeights works in `model.fit(callbacks=[...])` only.")
        return self._session

    def _warn(self, session: Session, report: PruningReport) -> None:
        """One line where less or more was pruned than the schedule will have in the end."""
        message = ""
        if not session.started:
            message = "`fit` had no epoch left to train, so that nothing was pruned."
        elif not report.finished:
            message = (
                f"Training ended at step {report.step} of the {report.end_step} that the pruning "
                f"schedule needs: sparsity {report.sparsity:.4f} reached, "
                f"{self.schedule.final_sparsity:g} asked in the end. Train for more steps, or "
                "set an earlier end_step."
            )
        elif session.holds_more_than_asked() and not self.keep_zeros:
            message = (
                f"The model had been pruned further before: its sparsity is {report.sparsity:.4f}, "
                f"not the {report.asked:g} asked now. Removed weights stay removed."
            )
        elif report.sparsity < report.by_units - 0.01 or report.last_unit_stays:
            message = report.shortfall
        if report.collapsed:
            message += (
                f"{' ' if message else ''}Layer collapse: no weight is left in "
                f"{', '.join(report.collapsed)}. Ask for less"
                + (', or take scope="local".' if self.scope == "global" else ".")
            )
        elif report.disconnected:
            removed = ", ".join(report.removed_layers)
            without = f"without {removed}" if removed else "any more"
            which = "these" if removed else "the smallest layers"
            message += (
                f"{' ' if message else ''}Layer collapse: no way leads from an input to an output "
                f"{without}. Ask for less, or `skip` {which}."
            )
        if message:
            warnings.warn(message, stacklevel=2)


def _check_bool(name: str, value: Any, may_be_none: bool = False) -> None:
    if isinstance(value, (bool, np.bool_)) or (may_be_none and value is None):
        return
    allowed = "True, False or None" if may_be_none else "True or False"
    raise TfcompError(f"`{name}` must be {allowed}. Received: {name}={value!r}.")


def _instance(name: str, value: Any, base: type, default: type) -> Any:
    if value is None:
        return default()
    if isinstance(value, base):
        return value
    hint = f" Write {value.__name__}()." if isinstance(value, type) else ""
    raise TfcompError(
        f"`{name}` must be a tfcomp.pruning.{base.__name__}, {default.__name__}() for one. "
        f"Received: {value!r}.{hint}"
    )
