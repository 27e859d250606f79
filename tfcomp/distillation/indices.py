"""Which sample is which: a dataset whose samples know their position."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfcomp.distillation.inputs import DistillationInputs, is_absent, unpack
from tfcomp.errors import TfcompError


def with_indices(dataset: tf.data.Dataset, batched: bool | None = None) -> tf.data.Dataset:
    """Tells each sample its position in the dataset, for losses that remember samples.

    The new dataset has the elements of `dataset` in the same batches, with `DistillationInputs`
    in the place of x, whose `index` counts 0, 1, 2, … from the start of every pass. It may then
    be shuffled, batched, repeated and augmented, and be given to `cache_teacher`, as it may come
    from there. What is shuffled before would get other positions in each epoch, which cannot
    be seen from here: call this first.

    Args:
        dataset: Finite, of x, (x, y) or (x, y, sample_weight), batched or not.
        batched: Whether elements are batches. None: read from the shapes: a first axis of
            unknown size in all of them is the batch, a scalar or first axes that differ are none.

    Returns:
        A dataset of (DistillationInputs, …); `index` is int64, of shape (batch,), () unbatched.

    Raises:
        TfcompError: If the dataset is infinite or of another kind, has indices, or does not show
            whether it is batched.

    Example:
        >>> import numpy as np, tensorflow as tf
        >>> data = tf.data.Dataset.from_tensor_slices((np.ones((5, 4)), np.arange(5)))
        >>> for inputs, labels in with_indices(data).shuffle(5, seed=1).batch(3):
        ...     print(inputs.inputs.shape, bool((inputs.index == labels).numpy().all()))
        (3, 4) True
        (2, 4) True
        >>> for inputs, labels in with_indices(data.batch(3)):
        ...     print(inputs.index.numpy())
        [0 1 2]
        [3 4]
    """
    if not isinstance(dataset, tf.data.Dataset):
        raise TfcompError(
            f"Expected a tf.data.Dataset. Received: {type(dataset).__name__}. Wrap arrays with "
            "tf.data.Dataset.from_tensor_slices((x, y))."
        )
    if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise TfcompError(
            "Expected a finite dataset, received one that repeats. Repeat the result."
        )
    inputs, _ = _parts(dataset.element_spec)
    if isinstance(inputs, DistillationInputs) and not is_absent(inputs.index):
        raise TfcompError("Expected a dataset without indices, received one with. Call this once.")
    in_batches = _is_batched(dataset.element_spec) if batched is None else batched

    def number(position: Any, element: Any) -> tuple[Any, Any]:
        inputs, rest = _parts(element)
        index = position
        following = position + 1
        if in_batches:
            count = tf.shape(tf.nest.flatten(element)[0], tf.int64)[0]
            index, following = tf.range(position, position + count), position + count
        return following, (unpack(inputs)._replace(index=index), *rest)

    return dataset.scan(tf.constant(0, tf.int64), number)


def _parts(element: Any) -> tuple[Any, tuple[Any, ...]]:
    """The inputs of an element, and what follows them."""
    if isinstance(element, tuple) and not isinstance(element, DistillationInputs):
        return element[0], element[1:]
    return element, ()


def _is_batched(element: Any) -> bool:
    shapes = [getattr(leaf, "shape", None) for leaf in tf.nest.flatten(element)]
    known = [shape for shape in shapes if shape is not None and shape.rank is not None]
    firsts = {shape[0] if shape.rank else "none" for shape in known}
    if len(known) == len(shapes) and firsts == {None}:
        return True
    if len(firsts) > 1 or firsts == {"none"}:
        return False
    raise TfcompError(
        f"Cannot see whether the dataset is batched: expected first axes that tell it, received "
        f"{element}. Pass batched=True or batched=False."
    )
