"""What the wheel, the source distribution and the editable install hold."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import tarfile
import venv
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[1]


def build(kind: str, source: pathlib.Path, out: pathlib.Path) -> pathlib.Path:
    """Builds `source` into `out`, as pip does but with this environment's setuptools."""
    code = f"import setuptools.build_meta as backend; backend.build_{kind}({str(out)!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (made,) = out.iterdir()
    return made


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> pathlib.Path:
    """A copy of the checkout: building in place would leave folders behind."""
    if not (ROOT / ".git").exists():
        pytest.skip("git tells which files belong to the source, and this is no checkout")
    folder = tmp_path_factory.mktemp("source")
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    for name in names:
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder


@pytest.fixture(scope="module")
def unpacked(source, tmp_path_factory) -> pathlib.Path:
    """The source distribution, unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(build("sdist", source, tmp_path_factory.mktemp("dist"))) as archive:
        archive.extractall(folder, filter="data")
    (root,) = folder.iterdir()
    return root


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory) -> zipfile.ZipFile:
    return zipfile.ZipFile(build("wheel", source, tmp_path_factory.mktemp("wheel")))


def held(wheel: zipfile.ZipFile) -> set[str]:
    return {name for name in wheel.namelist() if ".dist-info/" not in name}


def sources(root: pathlib.Path) -> set[str]:
    return {
        path.relative_to(root).as_posix()
        for folder in ("tfcomp", "callbacks")
        for path in (root / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_wheel_holds_every_source_and_data_file(source, wheel):
    expected = {
        f"tfcomp/{name}" if name.startswith("callbacks/") else name for name in sources(source)
    }
    assert len(expected) > 30
    assert held(wheel) == expected


def test_wheel_is_typed_and_licensed(wheel):
    names = wheel.namelist()
    assert "tfcomp/py.typed" in names
    assert any(name.endswith("LICENSE") for name in names)
    assert "tfcomp/datasets/fashion_mnist_sample.LICENSE.txt" in names


def test_wheel_has_the_command(wheel):
    name = next(n for n in wheel.namelist() if n.endswith("entry_points.txt"))
    assert "tfcomp = tfcomp.cli:main" in wheel.read(name).decode()


def test_building_leaves_the_file_build_alone(source, wheel):
    before = (ROOT / "BUILD").read_bytes()
    assert (source / "BUILD").read_bytes() == before
    assert not (source / "build").is_dir()


def test_source_distribution_holds_what_the_wheel_is_made_of(source, unpacked):
    assert sources(unpacked) == sources(source)
    assert {"LICENSE", "README.md", "pyproject.toml", "setup.cfg"} <= {
        path.name for path in unpacked.iterdir()
    }


def test_source_distribution_builds_the_same_wheel(unpacked, wheel, tmp_path):
    with zipfile.ZipFile(build("wheel", unpacked, tmp_path)) as again:
        assert held(again) == held(wheel)
        for name in held(wheel):
            assert again.read(name) == wheel.read(name), name


def test_editable_install_finds_callbacks_outside_the_root(source, tmp_path):
    made = build("editable", source, tmp_path)
    # An environment of its own: this one may have the package in some form already.
    venv.create(tmp_path / "venv", with_pip=False)
    folder = next((tmp_path / "venv").glob("lib/python*/site-packages"))
    with zipfile.ZipFile(made) as archive:
        archive.extractall(folder)
    names = ["tfcomp", "tfcomp.callbacks", "tfcomp.graph"]
    code = f"import importlib.util as u\nfor name in {names}: print(u.find_spec(name).origin)"
    command = [str(tmp_path / "venv" / "bin" / "python"), "-I", "-c", code]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    expected = [source / name / "__init__.py" for name in ("tfcomp", "callbacks", "tfcomp/graph")]
    assert found.stdout.splitlines() == [str(path) for path in expected]
