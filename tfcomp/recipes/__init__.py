"""Recipe files: stages, run directories that can be resumed, reports."""

from __future__ import annotations

import importlib.resources

from tfcomp.recipes.directory import RunDirectory, read_report
from tfcomp.recipes.recipe import Recipe, load_recipe, parse
from tfcomp.recipes.run import run

__all__ = ["Recipe", "RunDirectory", "demo", "load_recipe", "parse", "read_report", "run"]


def demo() -> Recipe:
    """The recipe of `tfcomp demo`."""
    with importlib.resources.as_file(
        importlib.resources.files("tfcomp.recipes") / "demo.yaml"
    ) as path:
        return load_recipe(path)
