"""The packaged Fashion-MNIST sample, and full sets where the user has them."""

from tfcomp.datasets.fashion_mnist import CLASS_NAMES, fashion_mnist_sample
from tfcomp.datasets.full import detection_folder, load
from tfcomp.datasets.inputs import load_inputs
from tfcomp.datasets.split import Dataset

__all__ = [
    "CLASS_NAMES",
    "Dataset",
    "detection_folder",
    "fashion_mnist_sample",
    "load",
    "load_inputs",
]
