"""Recipe files: what is read, and how mistakes in them are told."""

import contextlib
import pathlib

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tfcomp import recipes
from tfcomp.errors import TfcompError
from tfcomp.recipes import parse
from tfcomp.recipes.recipe import Quantize

GOOD = {
    "title": "Small",
    "seed": 3,
    "data": {"name": "fashion_mnist_sample", "batch_size": 32},
    "stages": [
        {"train": {"name": "big", "model": {"network": "residual", "widths": [4, 8]}}},
        {"distill": {"name": "small", "teacher": "big",
                     "model": {"network": "convolutional", "widths": [4]}}},
        {"shrink": {"name": "half", "ratio": 0.5}},
        {"prune": {"name": "sparse", "sparsity": 0.8}},
        {"quantize": {"name": "aware", "teacher": "big", "epochs": 2}},
        {"convert": {"name": "file"}},
    ],
}  # fmt: skip


def with_stage(kind: str, **changes):
    """GOOD with one stage changed."""
    stages = [
        {k: {**v, **changes} if k == kind else v for k, v in s.items()} for s in GOOD["stages"]
    ]
    return {**GOOD, "stages": stages}


def refusal(value, tmp_path=pathlib.Path()) -> str:
    with pytest.raises(TfcompError) as error:
        parse(value, tmp_path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_stages_follow_each_other():
    recipe = parse(GOOD)
    assert [s.kind for s in recipe.stages] == [
        "train", "distill", "shrink", "prune", "quantize", "convert",
    ]  # fmt: skip
    assert [s.model for s in recipe.stages[2:]] == ["small", "half", "sparse", "aware"]
    assert recipe.stages[4] == Quantize("aware", "sparse", "big", epochs=2)


def test_plain_values_round_trip():
    recipe = parse(GOOD)
    assert parse(yaml.safe_load(yaml.safe_dump(recipe.to_dict()))) == recipe


def test_demo_is_a_recipe():
    recipe = recipes.demo()
    assert {s.kind for s in recipe.stages} >= {"train", "distill", "shrink", "quantize", "convert"}
    shrink = next(s for s in recipe.stages if s.kind == "shrink")
    assert shrink.ratio == 0.5


@pytest.mark.parametrize(
    "value, words",
    [
        ([], "A recipe is a mapping"),
        ({"stages": []}, "`data` is needed"),
        ({**GOOD, "stagess": 1}, "unknown key 'stagess'. Did you mean 'stages'?"),
        ({**GOOD, "stages": []}, "a list of one stage or more"),
        ({**GOOD, "stages": [{"trian": {"name": "a"}}]}, "Did you mean 'train'?"),
        ({**GOOD, "stages": [{"shrink": {"name": "a"}}]}, "there is no stage before"),
        ({**GOOD, "stages": ["train"]}, "expected one kind with its settings"),
        ({**GOOD, "seed": "x"}, "seed must be int"),
        ({**GOOD, "data": {"name": "mnist", "batch": 3}}, "Did you mean 'batch_size'?"),
        (with_stage("shrink", ratio=50), "Did you mean 0.5?"),
        (with_stage("prune", sparsity=80), "Did you mean 0.8?"),
        (with_stage("shrink", ratio=1.0), "a fraction in [0, 1)"),
        (with_stage("shrink", criterion="l3"), "must be one of l1, l2, random"),
        (with_stage("distill", teecher="big"), "Did you mean 'teacher'?"),
        (with_stage("distill", teacher="bigg"), "Did you mean 'big'?"),
        (with_stage("distill", temperature=0), "must be greater than 0"),
        (with_stage("distill", name="big"), "taken by an earlier stage"),
        (with_stage("distill", name="a/b"), "letters, digits"),
        (with_stage("quantize", epochs=1.5), "`epochs` must be int"),
        (with_stage("quantize", epochs=0), "at least 1"),
        (with_stage("quantize", epochs=True), "`epochs` must be int"),
        (with_stage("train", model={"network": "x", "widths": [4]}), "must be one of residual"),
        (with_stage("train", model={"network": "residual", "widths": 4}), "list of positive"),
        (with_stage("convert", dtype="int4"), "must be one of int8"),
    ],
)  # fmt: skip
def test_mistakes_are_told_in_one_line(value, words):
    assert words in refusal(value)


def test_missing_model_file(tmp_path):
    assert "does not exist" in refusal(with_stage("train", model="mine.keras"), tmp_path)


def test_files_are_relative_to_the_recipe(tmp_path):
    (tmp_path / "mine.keras").touch()
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(with_stage("train", model="mine.keras")))
    recipe = recipes.load_recipe(tmp_path / "r.yaml")
    assert recipe.stages[0].model == str(tmp_path / "mine.keras")


@pytest.mark.parametrize("text", [b"stages: [", b"\xff\xfe\x00", b"a: b: c", b""])
def test_files_that_are_not_recipes(tmp_path, text):
    (tmp_path / "r.yaml").write_bytes(text)
    with pytest.raises(TfcompError) as error:
        recipes.load_recipe(tmp_path / "r.yaml")
    assert "\n" not in str(error.value)


def test_missing_recipe(tmp_path):
    with pytest.raises(TfcompError, match="No such file"):
        recipes.load_recipe(tmp_path / "none.yaml")


_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 200)
    | st.floats(allow_nan=False)
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["name", "model", "epochs", "train", "stages", "data"]), inner
        )
    ),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(_values)
def test_any_value_is_read_or_refused(value):
    for recipe in (
        value,
        {"data": "mnist", "stages": value},
        {"data": value, "stages": [{"train": value}]},
    ):
        with contextlib.suppress(TfcompError):
            assert parse(recipe).stages
