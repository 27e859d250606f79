"""The packaged sample, and what is said when a full set is not there."""

import os
import pathlib

import numpy as np
import pytest

from tfcomp import datasets
from tfcomp.errors import TfcompError


def test_sample_is_balanced_small_and_licensed():
    sample = datasets.fashion_mnist_sample()
    assert sample.x_train.shape == (6000, 28, 28, 1)
    assert sample.x_test.shape == (1000, 28, 28, 1)
    assert sample.x_train.dtype == np.uint8
    assert np.bincount(sample.y_train).tolist() == [600] * 10
    assert np.bincount(sample.y_test).tolist() == [100] * 10
    folder = pathlib.Path(datasets.__file__).parent
    assert (folder / "fashion_mnist_sample.npz").stat().st_size < 5e6
    assert "MIT License" in (folder / "fashion_mnist_sample.LICENSE.txt").read_text()


def test_sample_has_no_image_twice():
    sample = datasets.fashion_mnist_sample()
    images = np.concatenate([sample.x_train, sample.x_test]).reshape(7000, -1)
    # The full set itself holds a few repeated images, so some are allowed.
    assert len(np.unique(images, axis=0)) > 6990


def test_fingerprint_follows_the_content():
    sample = datasets.fashion_mnist_sample()
    assert sample.fingerprint() == datasets.fashion_mnist_sample().fingerprint()
    x = sample.x_train.copy()
    x[0, 0, 0, 0] ^= 1
    other = datasets.Dataset("x", x, sample.y_train, sample.x_test, sample.y_test)
    assert other.fingerprint() != sample.fingerprint()


def test_own_npz(tmp_path):
    path = tmp_path / "mine.npz"
    x, y = np.zeros((4, 8, 8), np.uint8), np.arange(4)
    np.savez(path, x_train=x, y_train=y[:, None], x_test=x, y_test=y)
    data = datasets.load(str(path))
    assert data.name == "mine"
    assert data.input_shape == (8, 8, 1)
    assert data.classes == 4
    assert data.y_train.shape == (4,)


def _one_line(error) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_missing_data_is_told_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("TFCOMP_DATA", str(tmp_path))
    with pytest.raises(TfcompError, match=r"mnist\.npz does not exist") as error:
        datasets.load("mnist")
    _one_line(error)
    with pytest.raises(TfcompError, match="Annotations") as error:
        datasets.detection_folder("bccd")
    _one_line(error)
    with pytest.raises(TfcompError, match="expected one of fashion_mnist_sample, mnist") as error:
        datasets.load("imagenet")
    _one_line(error)


@pytest.mark.parametrize("keep", [0, 10, 200])
def test_truncated_npz_is_told_in_one_line(tmp_path, keep):
    path = tmp_path / "cut.npz"
    x, y = np.zeros((4, 8, 8), np.uint8), np.arange(4)
    np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(TfcompError, match=r"cut\.npz") as error:
        datasets.load(str(path))
    _one_line(error)


def test_arrays_that_do_not_fit(tmp_path):
    path = tmp_path / "odd.npz"
    x = np.zeros((4, 8, 8), np.uint8)
    np.savez(path, x_train=x, y_train=np.arange(3), x_test=x, y_test=np.arange(4))
    with pytest.raises(TfcompError, match="as many labels as inputs"):
        datasets.load(str(path))
    np.savez(path, x_train=x)
    with pytest.raises(TfcompError, match="Missing: y_train, x_test, y_test"):
        datasets.load(str(path))


@pytest.mark.skipif(
    "TFCOMP_DATA" not in os.environ, reason="TFCOMP_DATA names no folder of full sets"
)
@pytest.mark.parametrize("name, shape", [("fashion_mnist", (28, 28, 1)), ("cifar10", (32, 32, 3))])
def test_full_sets(name, shape):
    data = datasets.load(name)
    assert data.input_shape == shape
    assert len(data.x_test) == 10_000
    assert data.classes == 10
