"""The packaged photographs: 7,000 of Fashion-MNIST."""

from __future__ import annotations

import importlib.resources
import io

import numpy as np

from tfcomp.datasets.split import Dataset

CLASS_NAMES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


def fashion_mnist_sample() -> Dataset:
    """6,000 training and 1,000 test images of Fashion-MNIST, equally many of each class.

    The images are uint8 of shape (28, 28), as in the original; the test images are from the
    original test set. Drawn once with a fixed seed by `benchmarks/make_sample.py`.

    Returns:
        The sample, with its licence (MIT).

    Example:
        >>> sample = fashion_mnist_sample()
        >>> sample.x_train.shape, sample.x_test.shape, sample.classes
        ((6000, 28, 28, 1), (1000, 28, 28, 1), 10)

    Paper: Xiao, Rasul, Vollgraf 2017, "Fashion-MNIST: a Novel Image Dataset for Benchmarking
    Machine Learning Algorithms", arXiv:1708.07747.
    """
    data = importlib.resources.files("tfcomp.datasets") / "fashion_mnist_sample.npz"
    with np.load(io.BytesIO(data.read_bytes())) as arrays:
        return Dataset(
            name="Fashion-MNIST sample",
            x_train=arrays["x_train"][..., None],
            y_train=arrays["y_train"],
            x_test=arrays["x_test"][..., None],
            y_test=arrays["y_test"],
            licence="MIT",
        )
