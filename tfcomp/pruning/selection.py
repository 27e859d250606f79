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
    removed: list[int],
) -> dict[str, str]:
    """For each layer that could be cut and loses nothing by `select`, the reason.

    Takes the arguments of `select`, and what it has given.
    """
    before = _lowest(found, importance, ratio, scope, comparable)
    reasons = {}
    for name, producer in found.producers.items():
        units = np.unique(producer.units[producer.units != FIXED])
        if not units.size or name in found.skipped or np.isin(units, removed).any():
            continue
        if before[units].any():
            why = _why_restored(round_to)
        elif scope == "global":
            why = _why_not_lowest(ratio, found.n_units)
        else:
            why = _why_kept(name, found, ratio)
        reasons[name] = f"loses nothing: {why}"
    return reasons


def _why_restored(round_to: int | None) -> str:
    if round_to:
        return f"counts are brought up to multiples of {round_to}"
    return "so many channels would be as many as places, which Keras confuses"


def _why_not_lowest(ratio: Ratio, n_units: int) -> str:
    if not ratio:
        return "none of its channels was to be removed"
    if isinstance(ratio, float) and not _wanted(ratio, n_units):
        return f"{ratio:.3g} of all {n_units} channels is less than one"
    return "its channels are of more importance than those removed"


def _why_kept(name: str, found: Dependencies, ratio: Ratio) -> str:
    mine = [group for group in found.groups if name in group.layers]
    shares = [_ratio_of(group, ratio) for group in mine]
    if isinstance(ratio, Mapping):
        for group, share in zip(mine, shares, strict=True):
            if share < ratio.get(name, 0):
                least = next(each for each in group.layers if ratio.get(each) == share)
                return f"it goes with {least}, for which `ratio` says {share:g}"
    if not any(shares):
        return "none of its channels was to be removed"
    if any(_wanted(share, len(group.units)) for share, group in zip(shares, mine, strict=True)):
        return "every layer keeps at least one channel"
    units = found.producers[name].units
    parts = []
    for share, group in zip(shares, mine, strict=True):
        n, channels = len(group.units), int(np.isin(units, group.units).sum())
        sets = f" sets of {channels // n} channels that go together" if channels > n else ""
        parts.append(f"{share:.3g} of {n}{sets}")
    sets = "set" if " sets " in parts[0] else "channel"
    return f"{' and '.join(parts)} is less than one {sets}"


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
