"""k-means of single numbers: clusters are stretches of the sorted values."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]
Borders = npt.NDArray[np.int64]

_STEPS = 10_000  # Lloyd's algorithm on lines may need thousands, of some µs each


class SortedValues:
    """Values sorted once, for steps of Lloyd's algorithm in O(k log n) each, not O(k n).

    A centroid has the values that are nearer to it than to others; between two equally near the
    lower has them. One step is c_j ← Σ_{i∈j} v_i / n_j, from sums of all values up to each. A
    centroid without values goes to a value of greatest distance from its own centroid, as
    scikit-learn does it.

    Args:
        values: Finite numbers, of any shape; at least one.

    Example:
        >>> line = SortedValues(np.array([0.0, 1.0, 10.0, 11.0]))
        >>> line.step(np.array([0.0, 4.0]), 2).tolist()
        [0.5, 10.5]
        >>> line.error(np.array([0.5, 10.5]))
        1.0
    """

    def __init__(self, values: npt.NDArray[Any]) -> None:
        self.values: Vector = np.sort(np.asarray(values).reshape(-1).astype(np.float64))
        self._sums = np.concatenate([[0.0], np.cumsum(self.values)])

    def distinct(self) -> int:
        """How many different values there are."""
        return 1 + int(np.count_nonzero(np.diff(self.values)))

    def borders(self, centroids: Vector) -> Borders:
        """Where the stretch of each centroid begins, and at last the number of values.

        Args:
            centroids: Ascending, [k].

        Returns:
            Indices into the sorted values, [k + 1].
        """
        middles = centroids[:-1] + (centroids[1:] - centroids[:-1]) / 2
        inner = np.searchsorted(self.values, middles, side="right")
        return np.concatenate([[0], inner, [self.values.size]])

    def step(self, centroids: Vector, clusters: int) -> Vector:
        """The means of what each centroid has, and up to `clusters` of them.

        Args:
            centroids: Ascending, [k].
            clusters: How many centroids there shall be.

        Returns:
            Ascending centroids: `clusters` of them, if that many different ones are to be had.
        """
        starts, ends = self._stretches(centroids)
        means = (self._sums[ends] - self._sums[starts]) / (ends - starts)
        means = np.clip(means, self.values[starts], self.values[ends - 1])
        missing = clusters - means.size
        if missing <= 0:
            return means
        edges = np.concatenate([self.values[starts], self.values[ends - 1]])
        far = np.abs(edges - np.concatenate([means, means]))
        order = np.argsort(-far, kind="stable")[:missing]
        return np.unique(np.concatenate([means, edges[order[far[order] > 0]]]))

    def kmeans(self, centroids: Vector) -> tuple[Vector, Vector]:
        """Steps until no value changes its centroid, 10,000 at most.

        Args:
            centroids: Where to start, in any order, [k].

        Returns:
            The centroids, each the mean of its values, ascending; and the lowest value of each.
        """
        clusters = centroids.size
        centroids = np.sort(centroids)
        before = None
        for _ in range(_STEPS):
            borders = self.borders(centroids)
            if before is not None and np.array_equal(borders, before):
                break
            before, centroids = borders, self.step(centroids, clusters)
        starts, ends = self._stretches(centroids)
        # Anew from the values, since differences of sums lose small ones.
        means = np.add.reduceat(self.values, starts) / (ends - starts)
        means = np.clip(means, self.values[starts], self.values[ends - 1])
        return means, self.values[starts]

    def error(self, centroids: Vector) -> float:
        """Σ (v − c)² with the nearest centroid of each value.

        Args:
            centroids: Ascending, [k].

        Returns:
            The sum of squares.
        """
        nearest = np.repeat(centroids, np.diff(self.borders(centroids)))
        return float(((self.values - nearest) ** 2).sum())

    def _stretches(self, centroids: Vector) -> tuple[Borders, Borders]:
        """First and last borders of the centroids that have values."""
        borders = self.borders(centroids)
        some = borders[1:] > borders[:-1]
        return borders[:-1][some], borders[1:][some]
