"""The table of keras.applications, from the results.

    python -m benchmarks.pruning.applications_figures

Writes into docs/pruning.md what stands between `<!-- applications -->` and its end.
"""

from __future__ import annotations

from typing import Any

from absl import app

from benchmarks import results
from benchmarks.pages import DOCS, put
from benchmarks.pruning.applications import MODELS, NAME, RATIOS, stored
from tests.pruning.oracle import TOLERANCE

OUTPUT = "is an output of the model"


def row(name: str, ratio: float, found: dict[str, Any]) -> str:
    """One model, cut by one ratio."""
    equal = found["difference"] <= TOLERANCE and found["alive"] and found["fault"]["caught"]
    alone = {reason: n for reason, n in found["left_alone"].items() if reason != OUTPUT}
    cells = [
        name,
        f"{100 * ratio:.0f} %",
        f"{found['parameters'][0]:,} → {found['parameters'][1]:,}",
        # Not known where a layer was not counted when it was run.
        f"{100 * found['macs'][1] / found['macs'][0]:.1f} %" if found["macs"][0] else "–",
        f"{found['difference']:.0e}{'' if equal else ', NOT EQUAL'}",
        f"{found['litert_difference']:.0e}",
        str(sum(alone.values())) if alone else "–",
    ]
    return f"| {' | '.join(cells)} |"


def table() -> str:
    """All models that were run, and those that were not."""
    lines = [
        "| model | cut | parameters | MACs left | masked − smaller | LiteRT − Keras | left alone |",
        "|---|--:|---|--:|--:|--:|--:|",
    ]
    reasons: set[str] = set()
    missing: dict[str, list[str]] = {}
    failed: list[str] = []
    for name in MODELS:
        for ratio in RATIOS:
            found = stored(name, ratio)
            if found is None:
                missing.setdefault(name, []).append(f" {100 * ratio:.0f} %")
                continue
            if "failed" in found:
                missing.setdefault(name, []).append(f" {100 * ratio:.0f} % ({found['failed']})")
                continue
            lines.append(row(name, ratio, found))
            reasons |= set(found["left_alone"]) - {OUTPUT}
    lines += [
        "",
        "Channels cut at random, the same share in each layer, of models in which every weight, "
        "statistic and LayerScale is random; the largest difference of the logits over the largest "
        f"of them, in float64 (reach: ≤ {TOLERANCE:.0e}), and of the LiteRT file in float32. In "
        "each a cut of one layer at wrong places was told. Left alone, beside the logits: layers "
        f"of which is said: {'; '.join(sorted(shortened(reasons))) or 'none'}. MACs –: not counted "
        "when it was run. The differences of LiteRT are given, not judged. "
        f"One core, {' or '.join(machines())}.",
    ]
    if missing:
        names = [
            name if len(cuts) == len(RATIOS) else name + cuts[0] for name, cuts in missing.items()
        ]
        lines += ["", f"Not yet run: {', '.join(names)}."]
    lines += ["", f"Left out: {'; '.join(failed)}."] if failed else []
    return "\n".join(lines)


def machines() -> list[str]:
    """The processors of all runs."""
    saved = [results.load(f"{NAME}/{path.stem}") for path in (results.FOLDER / NAME).glob("*.json")]
    return sorted({one["hardware"]["cpu"] for one in saved if one is not None})


def shortened(reasons: set[str]) -> set[str]:
    """Reasons without the names of layers."""
    return {reason.split(", which ")[-1].split(" (")[0] for reason in reasons}


def main(_: list[str]) -> None:
    put(DOCS / "pruning.md", "applications", f"## keras.applications\n\n{table()}")


if __name__ == "__main__":
    app.run(main)
