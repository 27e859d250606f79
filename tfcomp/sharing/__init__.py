"""Weights that share few values."""

from tfcomp.sharing.clustering import (
    ClusteringReport,
    KernelClusters,
    cluster_array,
    cluster_weights,
)
from tfcomp.sharing.kmeans import SortedValues
from tfcomp.sharing.shared import Shared
from tfcomp.sharing.values import KernelValues, count_values, measure_values

__all__ = [
    "ClusteringReport",
    "KernelClusters",
    "KernelValues",
    "Shared",
    "SortedValues",
    "cluster_array",
    "cluster_weights",
    "count_values",
    "measure_values",
]
