"""The folder of a run: what is finished in it, and whether it may be gone on with."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

from tfcomp.errors import DamagedFileError, TfcompError
from tfcomp.files import write_json
from tfcomp.recipes.recipe import Recipe

RUN_FILE = "run.json"
REPORT_FILE = "report.json"


class RunDirectory:
    """A folder with one run: `run.json`, and for each finished stage a record and its files.

    A stage's record is written last, so a stage without a record is not finished and is done
    again; its files are replaced whole.

    Args:
        path: The folder; made if it does not exist.
        recipe: What is run in it.
        data_fingerprint: Of the data; a run does not go on with other data.
        resume: Whether a run that is there may be gone on with.

    Raises:
        TfcompError: If the folder cannot be written to, holds other things, holds a run and
            `resume` is False, or holds a run of another recipe.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        recipe: Recipe,
        data_fingerprint: str,
        resume: bool = False,
    ) -> None:
        self.path = pathlib.Path(path)
        self._recipe = recipe
        identity = {"recipe": recipe.to_dict(), "data": data_fingerprint}
        run_file = self.path / RUN_FILE
        if run_file.exists():
            self._check_same(run_file, identity, resume)
            self._remove_leftovers()
        else:
            self._check_empty()
            write_json(run_file, identity)

    def record(self, index: int) -> dict[str, Any] | None:
        """What is known of stage `index` (from 0), or None if it is not finished."""
        file = self._record_file(index)
        if not file.exists():
            return None
        record = read_json(file)
        missing = [name for name in record["files"].values() if not (self.path / name).is_file()]
        return None if missing else record

    def finish(self, index: int, record: dict[str, Any]) -> None:
        """Marks stage `index` as finished."""
        write_json(self._record_file(index), record)

    def file(self, index: int, suffix: str) -> pathlib.Path:
        """Path of a stage's file, `1-teacher.keras` for one."""
        return self.path / f"{index + 1}-{self._recipe.stages[index].name}{suffix}"

    def keras_file(self, stage_name: str) -> pathlib.Path:
        """The `.keras` of the stage of that name."""
        index = [stage.name for stage in self._recipe.stages].index(stage_name)
        return self.file(index, ".keras")

    def _record_file(self, index: int) -> pathlib.Path:
        return self.file(index, ".json")

    def _remove_leftovers(self) -> None:
        """Removes the temporary files that a killed run could not remove itself."""
        stems = [f"{n}-{stage.name}" for n, stage in enumerate(self._recipe.stages, start=1)]
        for stem in (*stems, "run", "report"):
            for file in self.path.glob(f".{stem}.*"):
                file.unlink()

    def _check_same(self, run_file: pathlib.Path, identity: dict[str, Any], resume: bool) -> None:
        there = read_json(run_file)
        if not resume:
            raise TfcompError(
                f"The folder {self.path} holds a run already. Go on with it by --resume, or "
                "choose another folder."
            )
        if there.get("recipe") != identity["recipe"]:
            raise TfcompError(
                f"The folder {self.path} holds a run of another recipe "
                f"({_first_difference(there.get('recipe'), identity['recipe'])}). "
                "Choose another folder, or run the recipe that it was made with."
            )
        if there.get("data") != identity["data"]:
            raise TfcompError(
                f"The folder {self.path} holds a run on other data than {self._recipe.data.name!r} "
                "has now. Choose another folder."
            )

    def _check_empty(self) -> None:
        try:
            # A run killed while it wrote its first file leaves a hidden temporary one.
            held = [p.name for p in self.path.iterdir() if not p.name.startswith(".run.")]
        except FileNotFoundError:
            return
        except OSError as error:
            raise TfcompError(
                f"Cannot use {self.path} as output folder: {error.strerror}. Choose another."
            ) from error
        if held:
            raise TfcompError(
                f"The folder {self.path} is not empty and holds no run ({held[0]!r} is in it). "
                "Choose another folder."
            )


def read_json(path: pathlib.Path) -> Any:
    """The value in a JSON file of a run.

    Raises:
        DamagedFileError: If it is missing or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DamagedFileError(f"Cannot read {path}: {error}.") from error


def read_report(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The report of the finished run in a folder.

    Raises:
        TfcompError: If there is no finished run in it.
    """
    folder = pathlib.Path(path)
    if not (folder / REPORT_FILE).is_file():
        raise TfcompError(
            f"The folder {folder} holds no {REPORT_FILE}: expected the folder of a finished run."
        )
    report: dict[str, Any] = read_json(folder / REPORT_FILE)
    return report


def _first_difference(there: Any, here: Any, path: str = "recipe") -> str:
    """Where two nested values part, and how."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in sorted({*there, *here}):
            if there.get(key) != here.get(key):
                return _first_difference(there.get(key), here.get(key), f"{path}.{key}")
    if isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        for index, (a, b) in enumerate(zip(there, here, strict=True)):
            if a != b:
                return _first_difference(a, b, f"{path}[{index}]")
    return f"{path} was {_short(there)} and is {_short(here)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
