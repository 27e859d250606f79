"""The table and plot of the criteria against the oracle, from the results.

    python -m benchmarks.pruning.oracle_ranks_figures

Writes docs/pruning_oracle.svg, and into docs/pruning.md what stands between `<!-- oracle -->` and
its end.
"""

from __future__ import annotations

import statistics
from typing import Any

import matplotlib as mpl
import numpy as np
from absl import app
from matplotlib import pyplot
from scipy.stats import rankdata

from benchmarks import results
from benchmarks.pages import DOCS, put
from benchmarks.pruning.oracle_ranks import NAME
from tfcomp.files import replacing

PLOT = DOCS / "pruning_oracle.svg"
TITLES = {
    "taylor": "Taylor",
    "activation_mean": "mean activation",
    "activation_std": "deviation of activations",
    "apoz": "APoZ",
    "hrank": "HRank",
    "l1": "L1 norm",
    "l2": "L2 norm",
    "fpgm": "FPGM",
    "batch_norm_scale": "BatchNorm scale",
    "random": "random, the control",
}


def table(saved: list[dict[str, Any]]) -> str:
    """ρ over all channels and in layers, the best first."""
    found = [one["results"] for one in saved]

    def mean(name: str, key: str) -> float:
        return statistics.mean(one["ranks"][name][key] for one in found)

    lines = ["| criterion | all layers, ρ | each seed | in layers, mean ρ | core-seconds |"]
    lines.append("|---|--:|---|--:|--:|")
    for name in sorted(TITLES, key=lambda name: -mean(name, "all")):
        each = ", ".join(f"{one['ranks'][name]['all']:.2f}" for one in found)
        seconds = statistics.mean(one["core_seconds"][name] for one in found)
        cells = [TITLES[name], f"{mean(name, 'all'):.2f}", each, f"{mean(name, 'mean'):.2f}"]
        lines.append(f"| {' | '.join([*cells, f'{seconds:.1f}'])} |")
    oracle = statistics.mean(one["core_seconds"]["oracle"] for one in found)
    lines += [
        "",
        "Spearman's rank correlation with the oracle, the true change of the cost without a "
        f"channel, over {found[0]['channels']} channels of the VGG above before it is cut, on "
        f"{saved[0]['budget']['images']} training images; {len(found)} seeds. The oracle takes "
        f"{oracle:.0f} core-seconds. Scores are taken as they are: those that grow with a "
        f"layer's size or its activations rank well in layers alone. "
        f"{saved[0]['hardware']['cpu']}.",
    ]
    return "\n".join(lines)


def draw(one: dict[str, Any]) -> None:
    """Ranks by Taylor over ranks by the oracle."""
    found = one["results"]
    oracle, taylor = (rankdata(np.array(found[key])) for key in ("oracle", "taylor"))
    with mpl.rc_context({"svg.hashsalt": "oracle"}):
        figure, axes = pyplot.subplots(figsize=(4.6, 4.2), layout="constrained")
        start = 0
        for name in found["ranks"]["taylor"]["layers"]:
            count = found["widths"][name]
            part = slice(start, start + count)
            axes.plot(oracle[part], taylor[part], ".", ms=4, label=name)
            start += count
        axes.set(xlabel="rank by the oracle", ylabel="rank by Taylor")
        axes.legend(frameon=False, fontsize=7)
        with replacing(PLOT) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})
        pyplot.close(figure)


def main(_: list[str]) -> None:
    paths = sorted((results.FOLDER / NAME).glob("*.json"))
    saved = [one for path in paths if (one := results.load(f"{NAME}/{path.stem}")) is not None]
    if saved:
        draw(saved[0])
        image = f"![Ranks by Taylor over ranks by the oracle, first seed]({PLOT.name})"
        put(
            PLOT.parent / "pruning.md",
            "oracle",
            f"## Criteria against the oracle\n\n{table(saved)}\n\n{image}",
        )


if __name__ == "__main__":
    app.run(main)
