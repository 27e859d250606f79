"""Which units of a model go: those of least importance, the share that is asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from tfcomp.graph import FIXED, Dependencies, Group
from tfcomp.pruning.candidates import Scores

Mask = npt.NDArray[np.bool_]
Ratio = float | Mapping[str, float]


def select(
    found: Dependencies,
    importance: Scores,
    ratio: Ratio,
    scope: str = "local",
    round_to: int | None = None,
    comparable: bool = False,
) -> list[int]:
    """The units to be removed, by number, ascending.

    Args:
        found: The dependencies of a model.
        importance: Importance of each unit, shape [n_units].
        ratio: Fraction of the units to be removed, in [0, 1); or fractions by layer.
        scope: "local" takes the fraction of each group, "global" of all.
        round_to: Multiple that each layer's remaining channels are brought up to.
        comparable: Whether "global" may compare units of different groups as they are.

    Returns:
        Numbers of units; every layer keeps at least one channel.
    """
    gone = _lowest(found, importance, ratio, scope, comparable)
    _restore(found, importance, gone, round_to or 1)
    return np.flatnonzero(gone).tolist()


def why_untouched(
    found: Dependencies,
    importance: Scores,
    ratio: Ratio,
    scope: str,
    round_to: int | None,
    comparable: bool,
) -> dict[str, str]:
    """For each layer that could be cut and loses nothing by `select`, the reason.

    Takes the arguments of `select`. Nothing is said where nothing is asked for.
    """
    if not ratio:
        return {}
    before = _lowest(found, importance, ratio, scope, comparable)
    after = before.copy()
    _restore(found, importance, after, round_to or 1)
    reasons = {}
    for name, producer in found.producers.items():
        units = np.unique(producer.units[producer.units != FIXED])
        if units.size and name not in found.skipped and not after[units].any():
            reasons[name] = _why(name, found, ratio, scope, round_to, bool(before[units].any()))
    return reasons


def _why(
    name: str, found: Dependencies, ratio: Ratio, scope: str, round_to: int | None, restored: bool
) -> str:
    if restored:
        if round_to:
            return f"loses nothing: counts are brought up to multiples of {round_to}"
        return "loses nothing: so many channels would be as many as places, which Keras confuses"
    if scope == "global":
        return "loses nothing: its channels are of more importance than those removed"
    shares = [
        (_ratio_of(group, ratio), len(group.units))
        for group in found.groups
        if name in group.layers
    ]
    if not any(share for share, _ in shares):
        return "loses nothing: `ratio` asks for none of its channels"
    if all(_wanted(share, n) == 0 for share, n in shares):
        parts = " and ".join(f"{share:.3g} of {n}" for share, n in shares)
        return f"loses nothing: {parts} is less than one channel"
    return "loses nothing: every layer keeps at least one channel"


def _lowest(
    found: Dependencies, importance: Scores, ratio: Ratio, scope: str, comparable: bool
) -> Mask:
    """Which units are of least importance, shape [n_units + 1]: the last entry is of `FIXED`."""
    pools = [group.units for group in found.groups]
    ratios = [_ratio_of(group, ratio) for group in found.groups]
    if scope == "global":
        if not comparable:
            importance = _relative(importance, pools)
        pools = [np.arange(found.n_units)]
    gone = np.zeros(found.n_units + 1, dtype=np.bool_)
    for pool, share in zip(pools, ratios, strict=False):
        wanted = _wanted(share, len(pool))
        order = pool[np.argsort(importance[pool], kind="stable")]
        gone[order[:wanted]] = True
        if not all((~gone[producer.units]).any() for producer in found.producers.values()):
            gone[order[:wanted]] = False
            _remove_in_turn(found, order.tolist(), wanted, gone)
    return gone


def _wanted(share: float, n: int) -> int:
    # A hair more than the product, since 0.29 * 100 is less than 29 in binary.
    return math.floor(share * n + 1e-9)


def _remove_in_turn(found: Dependencies, order: list[int], wanted: int, gone: Mask) -> None:
    """Marks the first `wanted` units of `order` that leave every layer a channel."""
    members = _members(found)
    left = np.array([int((~gone[p.units]).sum()) for p in found.producers.values()])
    for unit in order:
        layers, counts = members[unit]
        if wanted and (left[layers] > counts).all():
            left[layers] -= counts
            gone[unit] = True
            wanted -= 1


def _ratio_of(group: Group, ratio: Ratio) -> float:
    if not isinstance(ratio, Mapping):
        return ratio
    whole = " + ".join(group.layers)
    if whole in ratio:
        return ratio[whole]
    return min((ratio[name] for name in group.layers if name in ratio), default=0.0)


def fraction(ratio: Ratio, found: Dependencies) -> float:
    """A ratio for each layer as one over all units."""
    asked = sum(_ratio_of(group, ratio) * len(group.units) for group in found.groups)
    return float(ratio) if not isinstance(ratio, Mapping) else asked / max(found.n_units, 1)


def _members(found: Dependencies) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """For each unit, the producers that it takes channels of, by number, and how many."""
    layers: list[list[int]] = [[] for _ in range(found.n_units)]
    counts: list[list[int]] = [[] for _ in range(found.n_units)]
    for index, producer in enumerate(found.producers.values()):
        units, amounts = np.unique(producer.units[producer.units != FIXED], return_counts=True)
        for unit, amount in zip(units.tolist(), amounts.tolist(), strict=True):
            layers[unit].append(index)
            counts[unit].append(amount)
    return [(np.array(a), np.array(b)) for a, b in zip(layers, counts, strict=True)]


def _restore(found: Dependencies, importance: Scores, gone: Mask, round_to: int) -> None:
    """Takes back removals, the most important first, until the counts of channels are good.

    Those of each layer are to be a multiple, or all that it has, and none that is avoided.
    """

    def is_good(units: npt.NDArray[np.int64], avoided: int | None) -> bool:
        kept = len(units) - int(gone[units].sum())
        return kept != avoided and (kept % round_to == 0 or kept == len(units))

    counted = [(producer.units, None) for producer in found.producers.values()]
    changed = True
    while changed:
        changed = False
        for units, avoided in (*counted, *found.avoided):
            # Restoring for one layer may give a coupled one a channel too many: go round again.
            while not is_good(units, avoided):
                lost = np.unique(units[gone[units]])
                gone[lost[np.argmax(importance[lost])]] = False
                changed = True


def _relative(importance: Scores, pools: list[npt.NDArray[np.int64]]) -> Scores:
    relative = importance.copy()
    for pool in pools:
        mean = np.abs(importance[pool]).mean()
        if mean > 0:
            relative[pool] /= mean
    return relative
