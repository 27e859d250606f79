"""What weight pruning did to a model."""

from __future__ import annotations

import dataclasses
from typing import Any

from tfcomp.pruning.sparsity import KernelSparsity, total_sparsity


@dataclasses.dataclass(frozen=True)
class PruningReport:
    """What `PruneWeights` did, read back from the weights.

    Attributes:
        kernels: The zeros of each pruned kernel.
        skipped: For each weight that was left alone, the reason.
        asked: Sparsity that the schedule asks for at `step`.
        step: Steps of the schedule taken so far.
        end_step: Steps that the schedule needs.
        start_step: Step at which this `fit` began: 0, or more where it continued an earlier one.
        rezeroed: Removed weights that were not zero when training ended, because an average
            (`use_ema`) or an earlier epoch (`EarlyStopping`) had been put back, and that were
            set to zero again. The network was not trained around those zeros.
        unit: What is removed together.
        criterion: What gives the weights their scores.
        overrides: By the names of kernels that have a schedule or unit of their own, the sparsity
            asked for at `step`, and the unit.
        collapsed: Kernels of which no weight is left: nothing passes them (layer collapse).
        removed_layers: Kernels that the unit `Layers()` has removed, on purpose.
        disconnected: Whether no output depends on any input, by the masks. It is looked for in
            functional and Sequential networks whose inputs are of a fixed shape and of
            floating-point numbers; else False.
        by_units: What the sparsity would be if all units held as many weights.
        last_unit_stays: Whether a count is missed by more than half a unit for that reason.
    """

    kernels: tuple[KernelSparsity, ...]
    skipped: dict[str, str]
    asked: float
    step: int
    end_step: int
    start_step: int
    rezeroed: int
    unit: str = "Weights()"
    criterion: str = "Magnitude()"
    overrides: dict[str, tuple[float, str]] = dataclasses.field(default_factory=dict)
    by_units: float = 0.0
    last_unit_stays: bool = False
    collapsed: tuple[str, ...] = ()
    removed_layers: tuple[str, ...] = ()
    disconnected: bool = False

    @property
    def sparsity(self) -> float:
        """Zeros over weights of all the pruned kernels together, in [0, 1]."""
        return total_sparsity(self.kernels)

    @property
    def shortfall(self) -> str:
        """Why fewer weights are zero than were asked for, if so and units are the reason."""
        whole = {self.unit, *(unit for _, unit in self.overrides.values())} - {"Weights()"}
        units = " and ".join(sorted(whole))
        if self.sparsity < self.by_units - 0.001:
            return (
                f"{self.sparsity:.4f} of the weights are zero and not {self.by_units:.4f}, since "
                f"groups of {units} at the end of an input axis may be short."
            )
        if self.last_unit_stays:
            return (
                f"{self.by_units:.4f} of the weights are zero and not {self.asked:.4f}, since "
                f"{units} removes whole units, and the last of them stays."
            )
        return ""

    @property
    def finished(self) -> bool:
        """Whether the schedule has reached its final sparsity."""
        return self.step >= self.end_step

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return {
            "sparsity": self.sparsity,
            "asked": self.asked,
            "step": self.step,
            "end_step": self.end_step,
            "start_step": self.start_step,
            "rezeroed": self.rezeroed,
            "unit": self.unit,
            "criterion": self.criterion,
            "by_units": self.by_units,
            "last_unit_stays": self.last_unit_stays,
            "collapsed": list(self.collapsed),
            "removed_layers": list(self.removed_layers),
            "disconnected": self.disconnected,
            "overrides": {name: list(own) for name, own in self.overrides.items()},
            "kernels": [
                {**dataclasses.asdict(row), "shape": list(row.shape), "sparsity": row.sparsity}
                for row in self.kernels
            ],
            "skipped": dict(self.skipped),
        }

    def __str__(self) -> str:
        zeros, size = sum(r.zeros for r in self.kernels), sum(r.size for r in self.kernels)
        head = (
            f"{zeros:,} of {size:,} weights in {len(self.kernels)} kernels are zero: "
            f"{self.sparsity:.4f} (asked {self.asked:.4f}) after {self.step} steps"
        )
        if not self.finished:
            head += f" of the {self.end_step} that the schedule needs"
        kind = f"  removed: {self.unit} by {self.criterion}"
        plain = (self.unit, self.criterion) == ("Weights()", "Magnitude()")
        rows = [
            f"  {row.sparsity:.4f}  {row.zeros:>10,} of {row.size:>10,}  {row.name}"
            + self._own(row.name)
            + ("  collapsed: nothing is left" if row.name in self.collapsed else "")
            + ("  removed as a whole" if row.name in self.removed_layers else "")
            for row in self.kernels
        ]
        left = [f"  left alone  {name}: {reason}" for name, reason in self.skipped.items()]
        notes = [*([] if plain else [kind]), *([f"  {self.shortfall}"] if self.shortfall else [])]
        notes += ["  collapsed: no output depends on any input"] if self.disconnected else []
        return "\n".join([head, *notes, *rows, *left])

    def _own(self, name: str) -> str:
        """What a kernel was asked for in place of the others' sparsity."""
        if name not in self.overrides:
            return ""
        asked, unit = self.overrides[name]
        return f" (asked {asked:.4f}" + (f", {unit})" if unit != self.unit else ")")
