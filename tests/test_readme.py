"""The examples of the README and of the pages in docs/ run as printed."""

import pathlib
import re
import subprocess
import sys

import pytest

from tfcomp import distillation, pruning

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PYTHON = re.compile(r"```python\n(.*?)```", re.S)
EXAMPLES = [
    pytest.param(code, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, code in enumerate(PYTHON.findall(page.read_text()))
]


def test_there_are_examples():
    assert len(EXAMPLES) >= len(PAGES) > 1


@pytest.mark.parametrize("code", EXAMPLES)
def test_example_runs_as_printed(code, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_first_example_is_short_enough_to_read():
    lines = [line for line in PYTHON.findall(README)[0].splitlines() if line.strip()]
    assert len(lines) <= 15


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_and_pictures_are_there(page):
    targets = re.findall(r"\]\((?!http)([^)#]+)", page.read_text())
    assert targets
    missing = [t for t in targets if not (page.parent / t).exists()]
    assert not missing


def test_every_loss_and_trainer_is_on_the_page():
    page = (ROOT / "docs" / "distillation.md").read_text()
    helpers = {"CourseReport", "DistillationInputs", "Lesson", "PrunedRoute"}
    missing = [name for name in distillation.__all__ if f"`{name}" not in page]
    assert set(missing) <= helpers | {"pair_layers"}


def test_every_pruning_method_is_on_the_page():
    page = (ROOT / "docs" / "pruning.md").read_text()
    parts = {
        "Candidate", "Candidates", "Energy", "EnergyReport", "ErrorBarrier", "InitializationReport",
        "Kernel", "KernelSparsity", "LayerChannels", "LayerEnergy", "LayerError", "Masked", "Round",
        "Sensitivity", "ShrinkReport", "Spending", "Supermask", "Ticket",
    }  # fmt: skip
    functions = {"find_kernels", "keep_mask", "keep_masks", "pruned_count", "Unit"}
    names = [name for name in pruning.__all__ if not re.search(rf"\b{name}\b", page)]
    assert set(names) <= parts | functions
