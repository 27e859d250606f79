"""Data that a teacher labels: pseudo-labels, unlabelled samples mixed in, augmented views."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcomp.distillation.inputs import DistillationInputs, is_absent, unpack
from tfcomp.distillation.losses.ending import Ending, endings
from tfcomp.distillation.teachers import cache_teacher
from tfcomp.errors import TfcompError
from tfcomp.graph import is_graph_model


def pseudo_labels(
    data: Any,
    teacher: keras.Model,
    hard: bool = False,
    from_logits: bool | None = None,
    batch_size: int = 128,
) -> tf.data.Dataset:
    """Labels samples with what a teacher says of them; the teacher is asked once.

    A soft label is the teacher's probabilities: its outputs if it ends in a softmax or sigmoid,
    the softmax of its logits otherwise. A hard one is argmax_c of them, or p > ½ where they come
    from a sigmoid. Train on soft labels with `CategoricalCrossentropy`, or with a squared error as
    the paper does; on hard ones with the usual losses. To distil from logits, with a
    temperature or from layers, give `cache_teacher(data, teacher)` to a `Distiller` instead.

    Args:
        data: An array of samples, or a finite dataset of x, (x, y) or (x, y, sample_weight),
            batched or not. Only x is used.
        teacher: A built model, an `Ensemble` for one; run with `training=False`.
        hard: Whether labels are classes.
        from_logits: Whether the teacher's outputs are the logits of a softmax. None: read from
            its last layer.
        batch_size: For an array, or a dataset that is not batched.

    Returns:
        A dataset of batches of (x, label), kept in memory. Soft labels are shaped like the
        teacher's outputs, hard ones are int32 without the axis of classes (with it where they
        come from a sigmoid).

    Raises:
        TfcompError: If the data does not fit the teacher, or its ending cannot be read.

    Example:
        >>> import keras, numpy as np
        >>> from tfcomp.distillation import munge
        >>> teacher = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "softmax")])
        >>> x = np.random.rand(20, 4).astype("float32")
        >>> transfer_set = pseudo_labels(munge(x, 50, 0.5, 5.0), teacher, batch_size=32)
        >>> for samples, labels in transfer_set:
        ...     print(samples.shape, labels.shape, float(labels[0].numpy().sum().round(3)))
        (32, 4) (32, 3) 1.0
        (18, 4) (18, 3) 1.0

    Reference:
        Buciluă, Caruana, Niculescu-Mizil (2006), Model Compression, KDD. Hard labels: Lee (2013),
        Pseudo-Label, ICML workshop on challenges in representation learning.
    """
    if not isinstance(data, tf.data.Dataset):
        data = tf.data.Dataset.from_tensor_slices(data).batch(batch_size)
    found = _endings(teacher, from_logits)
    inputs = data.map(lambda *element: unpack(element[0]).inputs)
    cached = cache_teacher(inputs, teacher)
    if tf.nest.flatten(cached.element_spec)[0].shape[0] is not None:
        cached = cached.batch(batch_size)

    def label(known: Any) -> Any:
        outputs = tf.nest.flatten(known.teacher_outputs)
        of_each = found * len(outputs) if len(found) == 1 else found
        labels = [_label(out, end, hard) for out, end in zip(outputs, of_each, strict=True)]
        return known.inputs, tf.nest.pack_sequence_as(known.teacher_outputs, labels)

    return cached.map(label)


def _endings(teacher: keras.Model, from_logits: bool | None) -> list[Ending]:
    """What the teacher's outputs are; one entry where the caller says so for all."""
    if from_logits is not None:
        return ["logits" if from_logits else "softmax"]
    if not isinstance(teacher, keras.Model) or not is_graph_model(teacher):
        raise TfcompError(
            "Cannot read what the teacher ends in: expected a functional or Sequential model, "
            f"received {teacher!r}. Pass from_logits=True or False."
        )
    return endings(teacher)


def _label(outputs: Any, ending: Ending, hard: bool) -> Any:
    outputs = tf.cast(outputs, tf.float32)
    if ending == "logits" and not hard:
        return tf.nn.softmax(outputs)
    if not hard:
        return outputs
    if ending == "sigmoid":
        return tf.cast(outputs > 0.5, tf.int32)
    return tf.argmax(outputs, axis=-1, output_type=tf.int32)


def mix_unlabelled(labelled: tf.data.Dataset, unlabelled: tf.data.Dataset) -> tf.data.Dataset:
    """Puts unlabelled samples into the batches of a labelled dataset, marked as such.

    Each batch is one of `labelled` followed by one of `unlabelled`; how many of each is what
    they were batched with. x becomes `DistillationInputs` whose `labelled` is 1 or 0 per sample,
    uint8, and the labels of the unlabelled ones are filled with zeros. A `Distiller` then leaves
    these out of the student's own loss and of the metrics; in the distillation losses all count.
    Both sums are divided by the size of the whole batch, as sample weights of zero are.

    An epoch lasts as long as the longer of both; the other one begins anew where it ends.

    Args:
        labelled: Batches of (x, y) or (x, y, sample_weight).
        unlabelled: Batches of x, or of tuples that begin with x; what follows is not used.
            Sample weights are 1 for these.

    Returns:
        A dataset of (DistillationInputs, y) or (DistillationInputs, y, sample_weight).

    Raises:
        TfcompError: If the elements do not fit together, or a length is unknown.

    Example:
        >>> import numpy as np, tensorflow as tf
        >>> slices = tf.data.Dataset.from_tensor_slices
        >>> few = slices((np.ones((4, 3)), np.array([1, 2, 1, 2]))).batch(2)
        >>> many = slices(np.zeros((12, 3))).batch(3)
        >>> mixed = mix_unlabelled(few, many)
        >>> inputs, labels = next(iter(mixed))
        >>> inputs.inputs.shape, inputs.labelled.numpy(), labels.numpy(), len(mixed)
        (TensorShape([5, 3]), array([1, 1, 0, 0, 0], dtype=uint8), array([1, 2, 0, 0, 0]), 4)

    Reference:
        Buciluă, Caruana, Niculescu-Mizil (2006), Model Compression, KDD; Lopez-Paz, Bottou,
        Schölkopf, Vapnik (2016), Unifying distillation and privileged information,
        arXiv:1511.03643, section 4.1.
    """
    for argument, dataset in (("labelled", labelled), ("unlabelled", unlabelled)):
        if not isinstance(dataset, tf.data.Dataset):
            raise TfcompError(f"`{argument}` must be a tf.data.Dataset. Received: {dataset!r}.")
    _check_mixable(labelled.element_spec, unlabelled.element_spec)
    longer, shorter = _lengths(labelled, unlabelled)
    both = tf.data.Dataset.zip(longer, shorter)
    return both.map(_joined, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def _lengths(labelled: tf.data.Dataset, unlabelled: tf.data.Dataset) -> Any:
    """Both datasets, the shorter one repeated."""
    lengths = [int(dataset.cardinality()) for dataset in (labelled, unlabelled)]
    if int(tf.data.UNKNOWN_CARDINALITY) in lengths or 0 in lengths:
        raise TfcompError(
            "The longer dataset sets the length of an epoch: expected datasets with a known number "
            f"of batches above 0, received {lengths[0]} and {lengths[1]} (-2: unknown). Use "
            "dataset.apply(tf.data.experimental.assert_cardinality(batches))."
        )
    first, second = (math.inf if length < 0 else length for length in lengths)
    # One that repeats for ever lets the other one set the length.
    if math.isinf(first) or (first < second and not math.isinf(second)):
        return labelled.repeat(), unlabelled
    return labelled, unlabelled.repeat()


def _check_mixable(first: Any, second: Any) -> None:
    if not isinstance(first, tuple) or isinstance(first, DistillationInputs) or len(first) < 2:
        raise TfcompError(
            f"`labelled` must hold (x, y) or (x, y, sample_weight). Received: elements {first}."
        )
    ours, theirs = _inputs(first), _inputs(second)
    for known in (ours, theirs):
        for part in ("index", "labelled"):
            if not is_absent(getattr(known, part)):
                raise TfcompError(
                    f"Samples must be mixed before they get their {part!r}: expected inputs "
                    "without, received such with. Call mix_unlabelled once and first."
                )
    try:
        tf.nest.assert_same_structure(ours, theirs)
        pairs = zip(tf.nest.flatten(ours), tf.nest.flatten(theirs), strict=True)
        fits = all(a.dtype == b.dtype and _same_samples(a.shape, b.shape) for a, b in pairs)
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise TfcompError(
            f"Both datasets must hold batches of the same x: expected {ours.inputs} with what is "
            f"cached for it, received {theirs.inputs} as unlabelled. Batch both, and cache the "
            "teacher for both or for none."
        )
    if any(leaf.shape.rank == 0 for leaf in tf.nest.flatten(first)):
        raise TfcompError(f"`labelled` must hold batches. Received: single samples {first}.")


def _same_samples(first: Any, second: Any) -> bool:
    """Whether two shapes can be concatenated along the batch."""
    if first.rank is None or second.rank is None or 0 in (first.rank, second.rank):
        return False
    return bool(first[1:].is_compatible_with(second[1:]))


def _inputs(element: Any) -> DistillationInputs:
    """What is known about the samples of an element of a dataset."""
    alone = not isinstance(element, tuple) or isinstance(element, DistillationInputs)
    return unpack(element if alone else element[0])


def _joined(labelled: Any, unlabelled: Any) -> Any:
    ours, theirs = _inputs(labelled), _inputs(unlabelled)
    known, unknown = (tf.shape(tf.nest.flatten(part.inputs)[0])[0] for part in (ours, theirs))

    def filled(value: float) -> Callable[[Any], Any]:
        def fill(tensor: Any) -> Any:
            shape = tf.concat([[unknown], tf.shape(tensor)[1:]], 0)
            return tf.concat([tensor, tf.fill(shape, tf.cast(value, tensor.dtype))], 0)

        return fill

    inputs = tf.nest.map_structure(lambda a, b: tf.concat([a, b], 0), ours, theirs)
    # MirroredStrategy adds up the replicas' parts of a batch, which it cannot with bool.
    marks = tf.concat([tf.ones([known], tf.uint8), tf.zeros([unknown], tf.uint8)], 0)
    _, labels, *weights = labelled
    return (
        inputs._replace(labelled=marks),
        tf.nest.map_structure(filled(0), labels),
        *(tf.nest.map_structure(filled(1), weight) for weight in weights),
    )


def augmented_views(
    dataset: tf.data.Dataset, augment: Callable[[Any, Any], Any], views: int, seed: int = 0
) -> tf.data.Dataset:
    """Reads a dataset several times, each time augmented otherwise, but the same for ever.

    The result is finite and holds `views` augmented readings of `dataset`, one after the other,
    for `cache_teacher` to ask the teacher what it says of each. Its elements are the same bytes
    every time they are read, also by another process: the seed of an element depends on
    `seed`, the view and the element's position alone. Hence `dataset` must have a fixed order,
    and `augment` must draw from its seed alone; shuffle the result.

    Args:
        dataset: Finite, of x, (x, y) or (x, y, sample_weight). Give samples, not batches, if
            each sample is to have a seed of its own.
        augment: `augment(x, seed)` returns the augmented x. `seed` is an int64 tensor of shape
            (2,), as `tf.image.stateless_random_…` take.
        views: How many readings.
        seed: The same seed gives the same views.

    Returns:
        A dataset with elements like those of `dataset`, `views` times as many.

    Raises:
        TfcompError: If the dataset is infinite, empty or has the teacher's outputs, or if
            `augment` does not give the same twice.

    Example:
        >>> import numpy as np, tensorflow as tf
        >>> data = tf.data.Dataset.from_tensor_slices((np.ones((3, 4)), np.arange(3)))
        >>> def jitter(x, seed):
        ...     return x + tf.random.stateless_normal(x.shape, seed, dtype=x.dtype)
        >>> once, again = (list(augmented_views(data, jitter, views=2)) for _ in range(2))
        >>> len(once), bool(np.array_equal(once[5][0], again[5][0]))
        (6, True)
        >>> bool(np.array_equal(once[2][0], once[5][0]))
        False
    """
    if not isinstance(dataset, tf.data.Dataset):
        raise TfcompError(f"Expected a tf.data.Dataset. Received: {type(dataset).__name__}.")
    if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise TfcompError("Expected a finite dataset, received one that repeats.")
    if isinstance(views, bool) or not isinstance(views, (int, np.integer)) or views < 1:
        raise TfcompError(f"`views` must be a whole number above 0. Received: {views!r}.")
    known = _inputs(dataset.element_spec)
    if not (is_absent(known.teacher_outputs) and is_absent(known.teacher_layers)):
        raise TfcompError(
            "The teacher is to see the views: expected plain inputs, received those of "
            "cache_teacher. Cache the result instead."
        )
    start = tf.constant([seed, 0], tf.int64)
    fold_in = tf.random.experimental.stateless_fold_in

    def view(number: int) -> tf.data.Dataset:
        def changed(position: Any, element: Any) -> Any:
            own = fold_in(fold_in(start, number), position)
            return _with_inputs(element, augment(_inputs(element).inputs, own))

        return dataset.enumerate().map(
            changed, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
        )

    readings = [view(number) for number in range(views)]
    _check_repeatable(readings[0])
    result = readings[0]
    for reading in readings[1:]:
        result = result.concatenate(reading)
    return result


def _with_inputs(element: Any, inputs: Any) -> Any:
    """The element of a dataset with other inputs."""
    if isinstance(element, DistillationInputs):
        return element._replace(inputs=inputs)
    if not isinstance(element, tuple):
        return inputs
    return (_with_inputs(element[0], inputs), *element[1:])


def _check_repeatable(dataset: tf.data.Dataset) -> None:
    """Raises if the first elements are others when they are read again."""
    once, again = (tf.nest.flatten(list(dataset.take(8))) for _ in range(2))
    if not once:
        raise TfcompError("The dataset is empty: expected samples, received none.")
    if any(a.numpy().tobytes() != b.numpy().tobytes() for a, b in zip(once, again, strict=True)):
        raise TfcompError(
            "Views must be the same every time they are read: expected a dataset of fixed order "
            "and an `augment` that draws from its seed, received others when read again. Use "
            "tf.image.stateless_random_… and shuffle the result."
        )
