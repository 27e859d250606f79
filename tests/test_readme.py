"""The README's examples run as printed."""

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text() if (ROOT / "README.md").exists() else ""
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.S)


def test_there_are_examples():
    assert EXAMPLES


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_example_runs_as_printed(number, tmp_path):
    code = EXAMPLES[number]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_first_example_is_short_enough_to_read():
    lines = [line for line in EXAMPLES[0].splitlines() if line.strip()]
    assert len(lines) <= 15


def test_links_and_pictures_are_there():
    targets = re.findall(r"\]\((?!http)([^)#]+)", README)
    assert targets
    missing = [t for t in targets if not (ROOT / t).exists()]
    assert not missing
