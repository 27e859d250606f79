"""The table of figures in the README, from the results of the benchmarks.

python -m benchmarks.figures            prints it and puts it into README.md
python -m benchmarks.figures --measure  measures first (an hour and a half on 2 cores)
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
import subprocess
import sys
from typing import Any

from absl import app, flags

from benchmarks import results
from tfcomp.files import write_text

_MEASURE = flags.DEFINE_boolean("measure", False, "run the benchmarks first")
_PEER = flags.DEFINE_string("peer_python", None, "an interpreter that has tfmot, to measure beside")

README = pathlib.Path(__file__).parents[1] / "README.md"
BENCHMARKS = ("distiller_step", "prune_step", "qat_step", "student_accuracy")
WITH_PEER = ("prune_step", "qat_step")


@dataclasses.dataclass(frozen=True)
class Figure:
    """One row: what was measured, what it is to reach, what it reached."""

    what: str
    reach: str
    reached: str
    beside: str = ""


def ratio(value: dict[str, float]) -> str:
    """A ratio with its quartiles."""
    return f"{value['ratio']:.3f} ({value['low']:.3f}–{value['high']:.3f})"


def control(group: dict[str, Any]) -> str:
    """The A/A control of a group of ratios."""
    return f"A/A control {group['A/A control']['ratio']:.3f}"


def peer(group: dict[str, Any]) -> str:
    """What tfmot measured in the same run, where it was there."""
    found = [v for k, v in group.items() if k.startswith("tfmot") and isinstance(v, dict)]
    return f"; tfmot {found[0]['ratio']:.3f}" if found else ""


def distiller(found: dict[str, Any]) -> list[Figure]:
    running, cached = found["running"], found["cached"]
    keras_ratio = running["keras.distillation, logits and feature loss"]["ratio"]
    return [
        Figure(
            "`Distiller` step / (student step + teacher forward), one core",
            "≤ 1.05",
            ratio(running["Distiller"]),
            f"{control(running)}; keras.distillation with a feature loss {keras_ratio:.3f}, "
            f"ours with it {running['Distiller and a feature loss']['ratio']:.3f}",
        ),
        Figure(
            "the same with the cached teacher / plain student step",
            "≤ 1.03",
            ratio(cached["cached teacher"]),
            control(cached),
        ),
    ]


def prune(found: dict[str, Any]) -> list[Figure]:
    names = {
        "mobile_net": ("a MobileNet-like CNN of 0.1 M weights, batch 128", "≤ 1.02"),
        "dense_net": ("a dense-heavy net of 20 M weights", "reported"),
    }
    return [
        Figure(
            f"`PruneWeights` step / plain step, {what}",
            reach,
            ratio(found[name]["PruneWeights"]),
            control(found[name]) + peer(found[name]),
        )
        for name, (what, reach) in names.items()
    ]


def qat(found: dict[str, Any]) -> list[Figure]:
    networks = {"residual_net": "a residual CNN", "mobile_net": "a MobileNet-like CNN"}
    reach = {
        ("residual_net", "BatchNorm kept"): "≤ 1.30",
        ("residual_net", "BatchNorm folded"): "≤ 1.0",
    }
    return [
        Figure(
            f"quantisation-aware step / plain step, {what} of 0.1 M weights, {form}",
            reach.get((name, form), "reported"),
            ratio(found[name][form]),
            control(found[name]) + peer(found[name]),
        )
        for name, what in networks.items()
        for form in ("BatchNorm kept", "BatchNorm folded")
    ]


def student(found: dict[str, Any]) -> list[Figure]:
    seeds, mean = list(found["by_seed"].values()), found["summary"]
    size = max(run["int8_bytes_over_float"] for run in seeds)
    agreement = min(run["agreement"] for run in seeds)
    return [
        Figure(
            f"int8 file / float file, bytes; {seeds[0]['parameters']:,} parameters",
            "≤ 0.35",
            f"{size:.3f}",
            f"largest of {len(seeds)} seeds",
        ),
        Figure(
            "argmax agreement of quantisation-aware model and int8 file, 1,000 images",
            "≥ 0.995",
            f"{agreement:.4f}",
            f"lowest of {len(seeds)} seeds",
        ),
        Figure(
            "int8 student − the same architecture trained alone in float, points of accuracy",
            "≥ −0.5",
            f"{mean['difference']:+.2f} ± {mean['standard_error']:.2f}",
            f"{mean['int8']:.2f} % against {mean['alone']:.2f} %, teacher {mean['teacher']:.2f} %; "
            f"10,000 test images, {len(seeds)} seeds, paired, standard error",
        ),
    ]


def table() -> str:
    """The figures as Markdown; a benchmark that was not run has no rows."""
    rows: list[Figure] = []
    machine: dict[str, Any] = {}
    makers = (distiller, prune, qat, student)
    for name, make in zip(BENCHMARKS, makers, strict=True):
        saved = results.load(name)
        if saved is not None:
            rows += make(saved["results"])
            machine = saved
    lines = ["| what | reach | reached | beside |", "|---|---|---|---|"]
    lines += [f"| {r.what} | {r.reach} | {r.reached} | {r.beside} |" for r in rows]
    if machine:
        versions, hardware = machine["versions"], machine["hardware"]
        lines += [
            "",
            f"Ratios are medians with quartiles, measured interleaved in one run. "
            f"{hardware['cpu']}, {hardware['cores']} cores, no GPU; "
            f"TensorFlow {versions['tensorflow']}, Keras {versions['keras']}. "
            "Made by `make figures`; raw results in [`benchmarks/results`](benchmarks/results).",
        ]
    return "\n".join(lines)


def measure() -> None:
    """Runs every benchmark, one after the other."""
    for name in BENCHMARKS:
        command = [sys.executable, "-m", f"benchmarks.{name}"]
        if _PEER.value and name in WITH_PEER:
            command.append(f"--peer_python={_PEER.value}")
        subprocess.run(command, check=True)


def main(_: list[str]) -> None:
    if _MEASURE.value:
        measure()
    text = table()
    print(text)
    block = f"<!-- figures -->\n{text}\n<!-- /figures -->"
    readme = README.read_text(encoding="utf-8")
    pattern = r"<!-- figures -->.*<!-- /figures -->"
    write_text(README, re.sub(pattern, lambda _: block, readme, flags=re.DOTALL))


if __name__ == "__main__":
    app.run(main)
