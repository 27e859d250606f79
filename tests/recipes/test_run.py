"""A whole run on tiny data: all stages, interruptions, and folders that do not do."""

import json
import pathlib
import re
import resource
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import yaml

from tfcomp import recipes
from tfcomp.errors import TfcompError
from tfcomp.recipes import training

TIMED = {"created", "latency_ms", "train_seconds"}


def without_times(value):
    """A report without what a clock decides."""
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in TIMED}
    if isinstance(value, list):
        return [without_times(v) for v in value]
    return value


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory) -> pathlib.Path:
    """Three classes of 8×8 images, told apart by the row that is bright."""
    folder = tmp_path_factory.mktemp("recipe")
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 192), ("test", 96)):
        y = rng.integers(0, 3, count)
        x = rng.integers(0, 80, (count, 8, 8, 1))
        x[np.arange(count), 1 + 2 * y] += 150
        arrays |= {f"x_{part}": x.astype("uint8"), f"y_{part}": y}
    np.savez(folder / "rows.npz", **arrays)
    value = {
        "title": "Rows",
        "data": {"name": "rows.npz", "batch_size": 32, "flip": True},
        "stages": [
            {"train": {"name": "big", "model": {"network": "residual", "widths": [8, 16]},
                       "epochs": 6, "learning_rate": 0.01}},
            {"distill": {"name": "small", "teacher": "big", "learning_rate": 0.01,
                         "model": {"network": "convolutional", "widths": [8, 16]}, "epochs": 6}},
            {"shrink": {"name": "half", "ratio": 0.5}},
            {"quantize": {"name": "aware", "teacher": "big", "epochs": 6, "learning_rate": 0.01}},
            {"convert": {"name": "int8"}},
        ],
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(value))
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def whole(recipe_file, tmp_path_factory):
    """Folder and report of a run that nothing interrupted."""
    out = tmp_path_factory.mktemp("run") / "whole"
    return out, recipes.run(recipes.load_recipe(recipe_file), out)


def test_everything_is_written(whole):
    out, report = whole
    names = {p.name for p in out.iterdir()}
    for number, stage in enumerate(("big", "small", "half", "aware"), start=1):
        assert {f"{number}-{stage}.keras", f"{number}-{stage}.tflite"} <= names
    assert {"5-int8.tflite", "report.json", "report.html", "run.json"} <= names
    assert not [name for name in names if name.startswith(".")]
    assert json.loads((out / "report.json").read_text()) == report


def test_report_tells_what_was_bought(whole):
    _, report = whole
    stages = {stage["name"]: stage for stage in report["stages"]}
    assert stages["half"]["parameters"] < stages["small"]["parameters"] / 2
    assert stages["aware"]["parameters"] == stages["half"]["parameters"]
    assert stages["int8"]["macs"] == stages["half"]["macs"]
    for stage in report["stages"]:
        assert 0 < stage["gzip_bytes"] < stage["bytes"]
        assert 0 < stage["latency_ms"]["median"] <= stage["latency_ms"]["p90"]
        assert 0 <= stage["accuracy"] <= 1
    assert stages["int8"]["accuracy"] > 0.8
    assert report["file"]["float_ops"] == []
    assert report["parity"]["argmax_agreement"] > 0.95
    assert report["edgetpu"]["total"] == len(report["edgetpu"]["ops"])
    assert sum(layer["parameters"] for layer in report["layers"]) == stages["int8"]["parameters"]
    html = pathlib.Path(whole[0] / "report.html").read_text()
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", html) or "src=" not in html


def test_stages_are_plain_keras(whole):
    out, _ = whole
    code = (
        "import sys, keras; m = keras.saving.load_model(sys.argv[1]); m.summary();"
        "sys.exit(any(name.startswith('tfcomp') for name in sys.modules))"
    )
    for name in ("1-big", "2-small", "3-half"):
        done = subprocess.run([sys.executable, "-c", code, str(out / f"{name}.keras")], check=False)
        assert done.returncode == 0


@pytest.mark.parametrize("stop_at", [pytest.param(1, marks=pytest.mark.long), 2])
def test_interrupted_run_resumes_to_the_same_report(
    whole, recipe_file, tmp_path, monkeypatch, stop_at
):
    recipe = recipes.load_recipe(recipe_file)
    calls = []
    fit = training.fit

    def stopping(*args, **kwargs):
        calls.append(args)
        if len(calls) == stop_at + 1:
            raise KeyboardInterrupt
        return fit(*args, **kwargs)

    monkeypatch.setattr(training, "fit", stopping)
    with pytest.raises(KeyboardInterrupt):
        recipes.run(recipe, tmp_path / "run")
    monkeypatch.setattr(training, "fit", fit)
    with pytest.raises(TfcompError, match="--resume"):
        recipes.run(recipe, tmp_path / "run")
    # What a kill in the middle of writing leaves.
    leftover = tmp_path / "run" / ".2-small.abcd.keras"
    leftover.touch()
    # Other work in between must not change what comes out.
    keras.layers.Dense(3)(np.random.normal(size=(2, 2)))
    report = recipes.run(recipe, tmp_path / "run", resume=True)
    assert without_times(report) == without_times(whole[1])
    assert not leftover.exists()


def test_finished_run_resumes_at_once(whole, recipe_file, monkeypatch):
    monkeypatch.setattr(training, "fit", None)
    report = recipes.run(recipes.load_recipe(recipe_file), whole[0], resume=True)
    assert without_times(report) == without_times(whole[1])


@pytest.mark.long
@pytest.mark.parametrize("delay", [6.0, 11.0, 17.0, 23.0])
def test_killed_run_resumes_to_the_same_report(whole, recipe_file, tmp_path, delay):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "tfcomp.cli", "compress", str(recipe_file), f"--out={out}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads((out / "report.json").read_text())
    assert without_times(report) == without_times(whole[1])
    assert not [p for p in out.iterdir() if p.name.startswith(".")]


def test_folder_of_another_recipe(whole, recipe_file):
    value = yaml.safe_load(recipe_file.read_text())
    value["stages"][2]["shrink"]["ratio"] = 0.25
    other = recipes.parse(value, recipe_file.parent)
    with pytest.raises(
        TfcompError, match=r"another recipe \(recipe.stages\[2\].shrink.ratio was 0"
    ):
        recipes.run(other, whole[0], resume=True)


def test_folder_that_holds_other_things(recipe_file, tmp_path):
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(TfcompError, match=r"holds no run \('holiday.jpg' is in it\)"):
        recipes.run(recipes.load_recipe(recipe_file), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["holiday.jpg"]


def test_folder_that_cannot_be_made(recipe_file, tmp_path):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(TfcompError) as error:
            recipes.run(recipes.load_recipe(recipe_file), out)
        assert "\n" not in str(error.value)


def test_other_data_than_before(whole, recipe_file, tmp_path):
    value = yaml.safe_load(recipe_file.read_text())
    arrays = dict(np.load(recipe_file.parent / "rows.npz"))
    arrays["x_test"] = arrays["x_test"][::-1]
    np.savez(tmp_path / "rows.npz", **arrays)
    recipe = recipes.parse(value, recipe_file.parent)
    moved = recipes.parse(value, tmp_path)
    run_file = json.loads((whole[0] / "run.json").read_text())
    assert run_file["recipe"] == recipe.to_dict()
    (tmp_path / "run").mkdir()
    run_file["recipe"] = moved.to_dict()
    (tmp_path / "run" / "run.json").write_text(json.dumps(run_file))
    with pytest.raises(TfcompError, match="other data"):
        recipes.run(moved, tmp_path / "run", resume=True)


def test_model_that_does_not_fit_the_data(recipe_file, tmp_path):
    model = keras.Sequential(
        [keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(3)]
    )
    model.save(recipe_file.parent / "odd.keras")
    value = yaml.safe_load(recipe_file.read_text())
    value["stages"] = [{"train": {"name": "a", "model": "odd.keras"}}]
    with pytest.raises(TfcompError, match="does not fit the data 'rows'"):
        recipes.run(recipes.parse(value, recipe_file.parent), tmp_path / "run")


def test_disk_that_is_full(recipe_file, tmp_path):
    recipe = recipes.load_recipe(recipe_file)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(TfcompError, match="Cannot write") as error:
            recipes.run(recipe, tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "run").glob("1-big.*"))
    # With room again, the run goes on.
    one_stage = recipes.Recipe(recipe.title, recipe.data, recipe.stages[:1])
    assert recipes.run(one_stage, tmp_path / "other")["stages"][0]["name"] == "big"


def test_pruned_weights_stay_pruned_through_later_stages(recipe_file, tmp_path):
    value = yaml.safe_load(recipe_file.read_text())
    value["stages"] = [
        value["stages"][0],
        {"prune": {"name": "sparse", "sparsity": 0.8, "epochs": 2}},
        {"quantize": {"name": "aware", "epochs": 2}},
        {"convert": {"name": "int8"}},
    ]
    report = recipes.run(recipes.parse(value, recipe_file.parent), tmp_path / "run")
    dense, sparse, aware, int8 = report["stages"]
    assert dense["nonzero_parameters"] > 0.9 * dense["parameters"]
    assert sparse["nonzero_parameters"] < 0.4 * dense["parameters"]
    assert aware["nonzero_parameters"] <= sparse["nonzero_parameters"]
    assert aware["notes"] == ["The zeros that earlier pruning left were kept."]
    assert int8["gzip_bytes"] < int8["bytes"]
