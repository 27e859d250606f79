"""BUILD names every source, data file and test once, and depends as the imports do.

BUILD is Starlark, which is Python as far as BUILD goes: it is executed here with rules that write
down what they are given.
"""

from __future__ import annotations

import ast
import collections
import functools
import pathlib
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest

ROOT = pathlib.Path(__file__).parents[1]
WHOLE = "tfcomp"  # the library of all rooms
RULES = ("genrule", "py_binary", "py_library", "py_test")
Graph = Mapping[str, Iterable[str]]


def glob(include: list[str], exclude: Iterable[str] = ()) -> list[str]:
    """Files of the checkout, as Bazel's glob() finds them."""

    def found(pattern: str) -> set[str]:
        # In Bazel a closing ** means files of any depth, in pathlib folders.
        paths = ROOT.glob(pattern + "/*" if pattern.endswith("**") else pattern)
        return {path.relative_to(ROOT).as_posix() for path in paths if path.is_file()}

    kept = set().union(*map(found, include))
    return sorted(kept.difference(*map(found, exclude)))


def read_build(text: str) -> dict[str, dict[str, Any]]:
    """The targets of a BUILD file by name, each with its rule and attributes."""
    targets: dict[str, dict[str, Any]] = {}

    def rule(kind: str) -> Callable[..., None]:
        def declare(name: str, **attributes: Any) -> None:
            assert name not in targets, f"two targets are called {name}"
            targets[name] = {"rule": kind, **attributes}

        return declare

    rules = {kind: rule(kind) for kind in RULES}
    exec(text, {"__builtins__": {}, "glob": glob, "package": lambda **_: None, **rules})
    return targets


TARGETS = read_build((ROOT / "BUILD").read_text())
TESTS = {name: target for name, target in TARGETS.items() if target["rule"] == "py_test"}
ROOMS = {name: target for name, target in TARGETS.items() if name not in TESTS}


def files_of(name: str, attribute: str = "srcs") -> list[str]:
    """Files of a target, those of the rules that make its sources instead of what they make."""
    found = []
    for label in TARGETS[name].get(attribute, []):
        found += files_of(label[1:]) if label.startswith(":") else [label]
    return found


def deps_of(name: str) -> set[str]:
    return {label.removeprefix(":") for label in TARGETS[name].get("deps", [])}


ROOM_OF_FILE = {
    path: name
    for name, target in ROOMS.items()
    if target["rule"] != "genrule"
    for path in files_of(name)
}


def room_of_module(module: str) -> str:
    """`graph` for `tfcomp.graph.trace`, `core` for `tfcomp.errors`, `tfcomp` for `tfcomp`."""
    parts = module.split(".")
    if len(parts) == 1:
        return WHOLE
    return ROOM_OF_FILE.get(f"tfcomp/{parts[1]}.py", parts[1] if parts[1] in ROOMS else "core")


@functools.cache
def imports(path: str) -> tuple[set[str], set[str]]:
    """Rooms that a file imports when it is imported itself, and those it imports later."""
    tree = ast.parse((ROOT / path).read_text())
    at_once: set[str] = set()
    later: set[str] = set()
    for node in ast.walk(tree):
        modules: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module == "tfcomp":
            modules = [f"tfcomp.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules = [node.module]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            # A module may be named for importlib, importorskip or `python -m`.
            named = node.value.startswith("tfcomp.") and node.value.replace(".", "").isidentifier()
            modules = [node.value] if named else []
        found = {room_of_module(m) for m in modules if m.split(".")[0] == "tfcomp"}
        (at_once if node in tree.body else later).update(found)
    return at_once, later - at_once


def reached(starts: Iterable[str], edges: Graph) -> set[str]:
    """The starts and everything that they lead to."""
    found: set[str] = set()
    waiting = list(starts)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting.extend(edges.get(name, ()))
    return found


def room_imports() -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """For each room the rooms that it needs at once, and those that it needs later."""
    at_once: dict[str, set[str]] = collections.defaultdict(set)
    later: dict[str, set[str]] = collections.defaultdict(set)
    for path, room in ROOM_OF_FILE.items():
        first, second = imports(path)
        at_once[room] |= first - {room}
        later[room] |= second - {room}
    return at_once, later


AT_ONCE, LATER = room_imports()
DEPS = {name: deps_of(name) for name in ROOMS}


@pytest.mark.parametrize("room", sorted(set(ROOM_OF_FILE.values())))
def test_rooms_depend_on_what_they_import(room):
    circular = {other for other in LATER[room] if room in reached([other], AT_ONCE)}
    assert deps_of(room) == AT_ONCE[room] | (LATER[room] - circular)


@pytest.mark.parametrize("name", sorted(TESTS))
def test_tests_depend_on_what_they_import(name):
    folder = pathlib.PurePath(TESTS[name]["args"][0]).parent.as_posix()
    if folder == "tests":
        assert deps_of(name) == {"cli", WHOLE}
        return
    direct = set()
    for path in glob([f"{folder}/*.py"]):
        direct |= set().union(*imports(path))
    everything = {room: AT_ONCE[room] | LATER[room] for room in AT_ONCE}
    everything["core"] = set()  # whose later imports are those of the whole
    everything[WHOLE] = deps_of(WHOLE)
    missing = reached(direct, everything) - reached(direct, DEPS)
    assert deps_of(name) == direct | missing


def test_the_whole_is_every_room():
    assert deps_of(WHOLE) == set(ROOM_OF_FILE.values()) - {"cli"}


def _once(expected: set[str], listed: Iterable[str]) -> None:
    counts = collections.Counter(listed)
    assert not [path for path, count in counts.items() if count > 1]
    assert set(counts) == expected


def test_every_source_is_in_one_target():
    # Where Bazel runs this test, the copies of callbacks/ are there too.
    copies = TARGETS["callbacks_in_place"]["outs"]
    expected = set(glob(["tfcomp/**/*.py", "callbacks/**/*.py"])).difference(copies)
    assert len(expected) > 30
    _once(expected, [path for name in set(ROOM_OF_FILE.values()) for path in files_of(name)])


def test_every_data_file_is_in_one_target():
    expected = set(glob(["tfcomp/**"], exclude=["**/*.py", "**/__pycache__/**"]))
    assert "tfcomp/py.typed" in expected
    _once(expected, [path for name in ROOMS for path in files_of(name, "data")])


def test_every_test_is_in_one_target():
    expected = set(glob(["tests/**/test_*.py"]))
    assert len(expected) > 30
    main = "tests/bazel_main.py"
    _once(expected, [path for name in TESTS for path in files_of(name) if path != main])
    for name, target in TESTS.items():
        assert target["main"] == main
        assert files_of(name) == [target["args"][0], main]
        folder = pathlib.PurePath(target["args"][0]).parent.as_posix()
        shared = glob(["tests/conftest.py", f"{folder}/conftest.py", "pyproject.toml"])
        assert set(shared) <= set(target["data"])


def test_no_listed_file_is_missing():
    for name in TARGETS:
        for path in [*files_of(name), *files_of(name, "data")]:
            assert (ROOT / path).is_file(), f"{name}: {path}"
        assert deps_of(name) <= set(ROOMS), name


def test_callbacks_are_where_they_are_installed():
    made = TARGETS["callbacks_in_place"]
    assert made["outs"] == [f"tfcomp/{path}" for path in made["srcs"]]


@pytest.mark.skipif(shutil.which("bazel-4") is None, reason="needs Debian's bazel-bootstrap")
def test_bazel_reads_the_same_targets(tmp_path):
    command = ["bazel-4", "--batch", f"--output_user_root={tmp_path}", "query", "//:all"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert set(done.stdout.split()) == {f"//:{name}" for name in TARGETS}
