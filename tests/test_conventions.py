"""What holds for every source file of the package."""

import ast
import configparser
import pathlib
import re
import subprocess
import sys

import pytest

import tfcomp

ROOT = pathlib.Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "tfcomp").rglob("*.py"), *(ROOT / "callbacks").rglob("*.py")])
# Layer by layer: a room may import what stands before it, never what stands behind.
LAYERS = [
    {"errors", "version"},
    {"files"},
    {"graph"},
    {"profiling", "runtime", "datasets", "architectures"},
    {"distillation", "pruning", "quantization", "conversion", "reporting", "sharing"},
    {"callbacks"},
    {"recipes"},
    {"cli"},
]
# conversion exports what quantization made; profiling shows what conversion's audit read; pruning
# to a latency measures files; sharing takes the kernels that pruning takes, and keeps its zeros.
BUILT_ON = {
    ("conversion", "quantization"),
    ("profiling", "conversion"),
    ("pruning", "conversion"),
    ("sharing", "pruning"),
}


def room(path: pathlib.Path) -> str:
    parts = path.relative_to(ROOT).parts
    if parts[0] == "callbacks":
        return "callbacks"
    return parts[1].removesuffix(".py")


def imported_rooms(path: pathlib.Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "tfcomp":
                found |= {alias.name for alias in node.names}
            elif node.module.startswith("tfcomp."):
                found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("tfcomp.")}
    return found


def test_there_are_sources():
    assert len(SOURCES) > 30


@pytest.mark.parametrize(
    "pattern, reason",
    [
        (r"keras\.src", "private Keras"),
        (r"\btf\.keras\b", "Keras by its old name"),
        (r"\b(?:model|layer|optimizer|op|teacher|student)\._(?!_)\w+", "a private name of Keras"),
    ],
)
def test_public_keras_only(pattern, reason):
    found = []
    for path in SOURCES:
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            if re.search(pattern, line.split("#")[0]):
                found.append(f"{path.relative_to(ROOT)}:{number}: {reason}: {line.strip()}")
    assert not found, "\n".join(found)


def test_imports_go_one_way():
    level = {name: index for index, names in enumerate(LAYERS) for name in names}
    found = []
    for path in SOURCES:
        here = room(path)
        if here == "__init__":
            continue
        for there in imported_rooms(path) - {here}:
            allowed = level.get(there, 99) < level[here] or (here, there) in BUILT_ON
            if not allowed:
                found.append(f"{path.relative_to(ROOT)} imports {there}")
    assert not found, "\n".join(found)


def test_models_are_walked_in_graph_alone():
    found = [
        str(path.relative_to(ROOT))
        for path in SOURCES
        if room(path) != "graph"
        and re.search(r"clone_model\(|inbound_nodes|keras_history", path.read_text())
    ]
    assert not found


def test_every_package_is_listed():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = set(config["options"]["packages"].split())
    folders = {path.parent for path in SOURCES if path.name == "__init__.py"}
    expected = {
        "tfcomp.callbacks" if f.name == "callbacks" else ".".join(f.relative_to(ROOT).parts)
        for f in folders
    }
    assert listed == expected


def test_public_names_exist():
    for name in tfcomp.__all__:
        assert getattr(tfcomp, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = tfcomp.nothing


def test_the_error_is_at_the_top_without_tensorflow():
    assert "TfcompError" in tfcomp.__all__
    code = "import sys, tfcomp; print(tfcomp.TfcompError.__module__, 'keras' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["tfcomp.errors", "False"]


def test_nothing_is_swallowed():
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler) and (
                node.type is None or [type(s) for s in node.body] == [ast.Pass]
            ):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not found


def test_functions_fit_on_a_screen():
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                documented = ast.get_docstring(node) is not None
                start = node.body[1].lineno if documented and len(node.body) > 1 else node.lineno
                if (node.end_lineno or 0) - start > 60:
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {node.name}")
    assert not found
