"""What the built package holds."""

import pathlib
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    # A copy: building in place would leave build/ and egg-info behind.
    for name in tracked:
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
         "--wheel-dir", str(folder), str(source)],
        check=True,
    )  # fmt: skip
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def test_wheel_holds_every_source_and_data_file(wheel):
    expected = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "tfcomp").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    expected |= {f"tfcomp/callbacks/{path.name}" for path in (ROOT / "callbacks").glob("*.py")}
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert held == expected


def test_wheel_is_typed_and_licensed(wheel):
    names = wheel.namelist()
    assert "tfcomp/py.typed" in names
    assert any(name.endswith("LICENSE") for name in names)
    assert "tfcomp/datasets/fashion_mnist_sample.LICENSE.txt" in names


def test_wheel_has_the_command(wheel):
    name = next(n for n in wheel.namelist() if n.endswith("entry_points.txt"))
    assert "tfcomp = tfcomp.cli:main" in wheel.read(name).decode()
