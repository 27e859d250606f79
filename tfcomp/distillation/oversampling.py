"""More unlabelled samples than there are, for a teacher to label."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfcomp.errors import TfcompError

Array = npt.NDArray[Any]


def munge(
    x: Any,
    size: int,
    probability: float,
    local_variance: float,
    categorical: Sequence[int] | None = None,
    seed: int = 0,
) -> tf.data.Dataset:
    """Makes samples that resemble `x`, each attribute mixed with that of a near neighbour.

    A pass copies x and visits each example e of the copy in turn. With e' the nearest other
    example of the copy, each attribute a is, with probability p and by itself:

    - continuous: e_a ← N(e'_a, σ) and e'_a ← N(e_a, σ), σ = |e_a − e'_a| / s, both from the
      values before;
    - categorical: swapped between e and e'.

    Both stay changed for the rest of the pass. Every pass starts from x and gives as many
    samples as x has; of the last one a random part is taken. Distances are √(Σ (Δ scaled)² +
    number of categories that differ), continuous attributes being scaled linearly to [0, 1]; the
    paper leaves open how the two kinds are added up. A pass takes n² distances.

    Args:
        x: Samples of shape (n, …), n ≥ 2; finite numbers, as an array. Not changed.
        size: How many samples to make.
        probability: p, in [0, 1].
        local_variance: s > 0: the larger, the closer to a mere swap.
        categorical: Positions of the categorical attributes in a (flattened) sample, their
            categories coded as numbers.
        seed: The same seed gives the same samples.

    Returns:
        A dataset of `size` samples of shape (…), not batched, in memory. Whole numbers become
        float32 unless every attribute is categorical.

    Raises:
        TfcompError: If an argument is out of range.

    Example:
        >>> import numpy as np
        >>> x = np.array([[0.0, 1.0], [0.1, 2.0], [5.0, 1.0], [5.1, 3.0]])
        >>> data = munge(x, 10, probability=0.5, local_variance=5.0, categorical=[1])
        >>> samples = np.array(list(data))
        >>> samples.shape, set(samples[:, 1].tolist()) <= {1.0, 2.0, 3.0}
        ((10, 2), True)

    Reference:
        Buciluă, Caruana, Niculescu-Mizil (2006), Model Compression, KDD, section 2.3.
    """
    x = _samples(x)
    if len(x) < 2:
        raise TfcompError("Neighbours are needed: expected two samples or more, received one.")
    _check_size(size)
    if isinstance(probability, bool) or not 0 <= probability <= 1:
        raise TfcompError(f"`probability` must be in [0, 1]. Received: {probability}.")
    if not (math.isfinite(local_variance) and local_variance > 0):
        raise TfcompError(f"`local_variance` must be a number above 0. Received: {local_variance}.")
    flat = x.reshape(len(x), -1).astype(np.float64)
    is_categorical = _mask(categorical, flat.shape[1])
    rng = np.random.default_rng(seed)
    made: list[Array] = []
    for count in _passes(len(x), size):
        mixed = _Pass(flat, is_categorical).run(probability, local_variance, rng)
        rows = np.arange(count) if count == len(x) else _part(len(x), count, rng)
        made.append(mixed[rows])
    keep = np.issubdtype(x.dtype, np.floating) or is_categorical.all()
    dtype = x.dtype if keep else np.dtype(np.float32)
    samples = np.concatenate(made).astype(dtype).reshape(-1, *x.shape[1:])
    return tf.data.Dataset.from_tensor_slices(samples)


class _Pass:
    """One pass over a copy of the samples: the copy, and what its distances are computed from."""

    def __init__(self, flat: Array, is_categorical: Array) -> None:
        self.values = flat.copy()
        self.is_categorical = is_categorical
        numbers = flat[:, ~is_categorical]
        self._low = numbers.min(axis=0)
        spread = numbers.max(axis=0) - self._low
        self._spread = np.where(spread > 0, spread, 1.0)
        self._scaled = (numbers - self._low) / self._spread
        self._squares = np.square(self._scaled).sum(axis=1)

    def run(self, probability: float, local_variance: float, rng: np.random.Generator) -> Array:
        """Visits every example once; returns the copy."""
        for row in range(len(self.values)):
            near = self._nearest(row)
            e, other = self.values[row].copy(), self.values[near].copy()
            chosen = rng.random(len(e)) < probability
            deviation = np.where(self.is_categorical, 0.0, np.abs(e - other) / local_variance)
            noise = rng.standard_normal((2, len(e))) * deviation
            self.values[row] = np.where(chosen, other + noise[0], e)
            self.values[near] = np.where(chosen, e + noise[1], other)
            self._refresh([row, near])
        return self.values

    def _nearest(self, row: int) -> int:
        # ‖a − b‖² without the term that is the same for all a.
        distances = self._squares - 2.0 * (self._scaled @ self._scaled[row])
        if self.is_categorical.any():
            categories = self.values[:, self.is_categorical]
            distances += (categories != categories[row]).sum(axis=1)
        distances[row] = np.inf
        return int(distances.argmin())

    def _refresh(self, rows: list[int]) -> None:
        numbers = self.values[rows][:, ~self.is_categorical]
        self._scaled[rows] = (numbers - self._low) / self._spread
        self._squares[rows] = np.square(self._scaled[rows]).sum(axis=1)


def oversample_with_noise(x: Any, size: int, stddev: float, seed: int = 0) -> tf.data.Dataset:
    """Makes noisy copies of images: x + N(0, stddev²), clipped to the range of the data.

    Every image is used equally often, as far as `size` allows; which come once more is drawn.

    Args:
        x: Images, or other samples, of shape (n, …); finite numbers, as an array. Not changed.
        size: How many samples to make.
        stddev: Standard deviation of the noise ≥ 0, in the units of x.
        seed: The same seed gives the same samples, in every pass.

    Returns:
        A dataset of `size` samples of shape (…) and x's type, not batched. The noise is drawn
        when a sample is read; whole numbers are rounded.

    Raises:
        TfcompError: If an argument is out of range.

    Example:
        >>> import numpy as np
        >>> images = np.zeros((4, 8, 8, 1), "uint8") + 200
        >>> images[0] = 255
        >>> noisy = np.array(list(oversample_with_noise(images, 10, stddev=16.0)))
        >>> noisy.shape, noisy.dtype, bool(noisy.min() >= 200)
        ((10, 8, 8, 1), dtype('uint8'), True)

    Reference:
        Buciluă, Caruana, Niculescu-Mizil (2006), Model Compression, KDD, for transfer sets of
        synthetic samples; noise in the place of MUNGE suits images.
    """
    x = _samples(x)
    _check_size(size)
    if isinstance(stddev, bool) or not (math.isfinite(stddev) and stddev >= 0):
        raise TfcompError(f"`stddev` must be a number ≥ 0. Received: {stddev}.")
    rng = np.random.default_rng(seed)
    parts = [
        np.arange(count) if count == len(x) else _part(len(x), count, rng)
        for count in _passes(len(x), size)
    ]
    images, start = tf.constant(x), tf.constant([seed, 0], tf.int64)
    low, high = float(x.min()), float(x.max())
    is_float = np.issubdtype(x.dtype, np.floating)
    inner = images.dtype if is_float else tf.float32

    def noisy(position: Any, row: Any) -> Any:
        own = tf.random.experimental.stateless_fold_in(start, position)
        image = tf.cast(images[row], inner)
        image += tf.random.stateless_normal(image.shape, own, stddev=stddev, dtype=inner)
        image = tf.clip_by_value(image, tf.cast(low, inner), tf.cast(high, inner))
        return image if is_float else tf.cast(tf.round(image), images.dtype)

    rows = tf.data.Dataset.from_tensor_slices(np.concatenate(parts)).enumerate()
    return rows.map(noisy, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def _samples(x: Any) -> Array:
    """`x` as an array of finite numbers."""
    if isinstance(x, tf.data.Dataset):
        raise TfcompError(
            "Expected samples as an array. Received: a dataset. Collect it with "
            "np.array(list(dataset.unbatch()))."
        )
    x = np.asarray(x)
    if x.dtype.kind not in "biuf" or x.ndim < 2 or not x.size or not np.isfinite(x).all():
        raise TfcompError(
            "Expected samples of shape (n, …) of finite numbers, categories coded as numbers. "
            f"Received: {x.dtype} of shape {x.shape}{', not all finite' if x.ndim > 1 else ''}."
        )
    return x


def _check_size(size: Any) -> None:
    if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or size < 1:
        raise TfcompError(f"`size` must be a whole number above 0. Received: {size!r}.")


def _mask(categorical: Sequence[int] | None, width: int) -> Array:
    mask = np.zeros(width, bool)
    for position in categorical or ():
        if not -width <= position < width:
            raise TfcompError(
                f"`categorical` must be positions of the {width} attributes. Received: {position}."
            )
        mask[position] = True
    return mask


def _passes(count: int, size: int) -> list[int]:
    """How many samples each pass contributes."""
    whole, rest = divmod(size, count)
    return [count] * whole + ([rest] if rest else [])


def _part(count: int, size: int, rng: np.random.Generator) -> Array:
    return np.sort(rng.choice(count, size, replace=False))
