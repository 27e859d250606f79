"""Criteria that look at data: what they share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras

from tfcomp.errors import TfcompError
from tfcomp.graph import Graph
from tfcomp.graph.feature_maps import channel_axis, feature_maps
from tfcomp.graph.trace import Tensor
from tfcomp.pruning.candidates import Candidates
from tfcomp.pruning.criteria import HoldsData
from tfcomp.pruning.samples import batches_of, check_shapes, inputs_of, labelled_batches

Maps = dict[str, tuple[Tensor, ...]]

# Their channels are heads, which are not an axis of what they give.
_ATTENTION = (keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention)


class DataCriterion(HoldsData):
    """A criterion that runs the model, in inference, on data.

    Args:
        data: Inputs as the model takes them (an array, or a list or dict of arrays), a tuple
            (inputs, labels) of them, or a batched `tf.data.Dataset` of either.
        batch_size: Size of a batch where `data` is not a dataset. Default 32.
    """

    of_channels = True

    def __init__(self, data: Any, batch_size: int = 32) -> None:
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise TfcompError(
                f"`batch_size` must be an integer of at least 1. Received: {batch_size!r}."
            )
        self.data = data
        self.batch_size = batch_size

    def _batches(self, graph: Graph, labels: bool = False) -> Iterator[tuple[Any, Any]]:
        """Inputs and labels, batch by batch; labels that are not asked for are not looked at."""
        user = type(self).__name__
        items = (labelled_batches if labels else batches_of)(self.data, self.batch_size, user)
        for index, item in enumerate(items):
            x, y = item if labels else (inputs_of(item, graph), None)
            if not index:
                check_shapes(graph, x, user)
            yield x, y

    def _maps(self, candidates: Candidates, through_sums: bool = False) -> Maps:
        """The feature maps of all layers that are judged, by name.

        Raises:
            TfcompError: If the channels of one are not an axis of its output.
        """
        maps: Maps = {}
        for name, producer in candidates.producers.items():
            maps[name] = feature_maps(candidates.graph, name, through_sums=through_sums)
            axis = channel_axis(producer.layer)
            sizes = {tensor.shape[axis] for tensor in maps[name]}
            heads = isinstance(producer.layer, _ATTENTION)
            if heads or sizes != {len(producer.units)}:
                kind = type(producer.layer).__name__
                raise TfcompError(
                    f"{type(self).__name__} expects the {len(producer.units)} channels of "
                    f"{name!r} on an axis of its output. Received: a {kind}, which has none "
                    f"of that kind. Spare it, or use a criterion on weights."
                )
        return maps
