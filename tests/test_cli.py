"""The command line: help, exit codes, and mistakes in one line."""

import json
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

from tfcomp import cli


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    """Exit code, output and errors of `tfcomp ARGUMENTS`, in this process."""
    code = 0
    try:
        cli.main(list(arguments))
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def model_file(tmp_path_factory) -> pathlib.Path:
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.Conv2D(4, 3), keras.layers.Flatten(),
         keras.layers.Dense(3)]
    )  # fmt: skip
    path = tmp_path_factory.mktemp("cli") / "model.keras"
    model.save(path)
    return path


@pytest.fixture(scope="module")
def tflite_file(model_file) -> pathlib.Path:
    cli.main(["convert", str(model_file)])
    return model_file.with_suffix(".tflite")


@pytest.mark.parametrize("command", ["", *cli.COMMANDS])
def test_help(capsys, command):
    code, out, err = run(capsys, *command.split(), "--help")
    assert (code, err) == (0, "")
    assert out.startswith("usage: tfcomp" if command else "tfcomp:")
    assert all(len(line) <= 100 for line in out.splitlines())


def test_help_does_not_wait_for_tensorflow():
    code = "import sys, tfcomp.cli; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["comvert"], "Did you mean 'convert'?"),
        (["inspect"], "expected one .keras or .tflite file. Received: none."),
        (["inspect", "none.keras"], "none.keras"),
        (["inspect", "none.tflite"], "none.tflite"),
        (["benchmark"], "expected one .tflite file or more"),
        (["benchmark", "none.tflite"], "none.tflite"),
        (["compress", "none.yaml"], "none.yaml"),
        (["convert", "m.keras", "--dtype=int9"], "--dtype=int9"),
        (["demo", "extra"], "Received: extra"),
        (["demo", "--outt=x"], "Did you mean: out"),
        (["report", "nowhere"], "expected the folder of a finished run"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(capsys, arguments, words):
    code, out, err = run(capsys, *arguments)
    assert code == 2
    assert words in err
    assert err.count("\n") == 1
    assert out == ""


def test_interrupt_is_one_line(capsys, monkeypatch, tmp_path):
    def interrupted(*_args, **_kwargs):
        raise KeyboardInterrupt

    from tfcomp import recipes

    monkeypatch.setattr(recipes, "run", interrupted)
    code, _, err = run(capsys, "demo", f"--out={tmp_path / 'x'}")
    assert code == 130
    assert err.count("\n") == 1


def test_inspect_as_table_and_as_json(capsys, model_file, tflite_file):
    for path in (model_file, tflite_file):
        code, out, _ = run(capsys, "inspect", str(path))
        assert code == 0
        assert path.name in out or "model" in out
        code, out, _ = run(capsys, "inspect", str(path), "--json")
        assert code == 0
        assert json.loads(out)


@pytest.mark.parametrize("keep", [0, 7, 300])
def test_truncated_files(capsys, tmp_path, model_file, tflite_file, keep):
    for path in (model_file, tflite_file):
        cut = tmp_path / path.name
        cut.write_bytes(path.read_bytes()[:keep])
        code, _, err = run(capsys, "inspect", str(cut))
        assert (code, err.count("\n")) == (2, 1), err


def test_convert_with_calibration(capsys, tmp_path, model_file):
    x = np.random.default_rng(0).normal(size=(32, 8, 8, 1)).astype("float32")
    np.save(tmp_path / "x.npy", x)
    out_file = tmp_path / "m.tflite"
    arguments = ["convert", str(model_file), "--dtype=int8", f"--out={out_file}"]
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert "calibration" in err
    assert not out_file.exists()
    code, out, _ = run(capsys, *arguments, f"--calibration={tmp_path / 'x.npy'}", "--json")
    assert code == 0
    assert json.loads(out)
    assert out_file.exists()


def test_benchmark(capsys, tflite_file):
    code, out, _ = run(capsys, "benchmark", str(tflite_file), "--runs=5", "--json")
    assert code == 0
    assert json.loads(out)
