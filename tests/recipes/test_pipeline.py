"""Training batches: seeded, augmented, and nothing lost."""

import numpy as np
import pytest
import tensorflow as tf

from tfcomp.datasets import Dataset
from tfcomp.recipes.pipeline import augment, training_batches
from tfcomp.recipes.recipe import Data


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(1, 256, (64, 8, 10, 2)).astype("uint8")


def test_flip_mirrors_about_half(images):
    out = augment(images, tf.constant([1, 2], tf.int64), Data("x", flip=True)).numpy()
    same = (out == images).all((1, 2, 3))
    mirrored = (out == images[:, :, ::-1]).all((1, 2, 3))
    assert (same ^ mirrored).all()
    assert 16 < mirrored.sum() < 48


def test_shift_moves_and_fills_with_black(images):
    out = augment(images, tf.constant([1, 2], tf.int64), Data("x", shift=2)).numpy()
    moves = set()
    for before, after in zip(images, out, strict=True):
        padded = np.pad(before, ((2, 2), (2, 2), (0, 0)))
        found = [
            (y, x)
            for y in range(5)
            for x in range(5)
            if (padded[y : y + 8, x : x + 10] == after).all()
        ]
        assert len(found) == 1
        moves.update(found)
    assert len(moves) > 15


def test_erase_blackens_one_rectangle(images):
    out = augment(images, tf.constant([1, 2], tf.int64), Data("x", erase=0.5)).numpy()
    changed = (out != images).any(-1)
    assert 16 < changed.any((1, 2)).sum() < 48
    for image, mask in zip(out, changed, strict=True):
        assert (image[mask] == 0).all()
        rows, columns = mask.any(1), mask.any(0)
        assert (mask == rows[:, None] & columns[None]).all()
        assert rows.sum() <= 4
        assert columns.sum() <= 5


@pytest.mark.parametrize("options", [{}, {"flip": True, "shift": 1, "erase": 0.5}])
def test_epochs_differ_and_runs_do_not(images, options):
    labels = np.arange(64)
    dataset = Dataset("x", images, labels, images, labels)
    settings = Data("x", batch_size=24, **options)

    def epochs(seed):
        batches = training_batches(dataset, settings, seed)
        return [[(x.numpy(), y.numpy()) for x, y in batches] for _ in range(2)]

    first, second = epochs(5)
    again, _ = epochs(5)
    assert [len(y) for _, y in first] == [24, 24, 16]
    assert sorted(np.concatenate([y for _, y in first])) == list(range(64))
    for (x, y), (x_again, y_again) in zip(first, again, strict=True):
        np.testing.assert_array_equal(x, x_again)
        np.testing.assert_array_equal(y, y_again)
    assert any((x != other).any() for (x, _), (other, _) in zip(first, second, strict=True))
    assert any((x != other).any() for (x, _), (other, _) in zip(first, epochs(6)[0], strict=True))
