"""The rank of feature maps as importance."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tfcomp.errors import TfcompError
from tfcomp.graph.feature_maps import feature_model
from tfcomp.pruning.candidates import Candidates, Scores
from tfcomp.pruning.data_criterion import DataCriterion


class HRank(DataCriterion):
    """score(c) = mean rank of channel c's feature maps over samples (and calls of a shared layer).

    The rank of a map, [height, width], is the number of its singular values above
    max(height, width)·ε·σ₁, ε being that of float32. The map is taken behind the
    BatchNormalization and the activation that follow the layer, and behind the addition where a
    residual block ends. Other shapes come down to the same: of a volume, all axes but the last
    are the rows; of a sequence or of a dense layer's output a map is a vector or a number, whose
    rank is 1 unless it is zero. Channels are compared within a layer, as in the paper.

    Lin, Ji, Wang, Zhang, Zhang, Tian and Shao 2020, "HRank: Filter Pruning using High-Rank
    Feature Map", arXiv:2002.10179, which takes 500 images.

    Args:
        data: Inputs as the model takes them (an array, or a list or dict of arrays), a tuple
            (inputs, labels) of which labels are not used, or a batched `tf.data.Dataset` of
            either.
        batch_size: Size of a batch where `data` is not a dataset. Default 32.

    Raises:
        TfcompError: In `scores`, if the data is not as described, or feature maps are not finite.

    Example:
        >>> import keras
        >>> from tfcomp.pruning import Candidates
        >>> conv = keras.layers.Conv2D(2, 1, use_bias=False, name="c")
        >>> model = keras.Sequential([keras.Input((2, 2, 2)), conv, keras.layers.Flatten(),
        ...                           keras.layers.Dense(1)])
        >>> conv.set_weights([np.eye(2).reshape(1, 1, 2, 2)])
        >>> image = np.stack([np.eye(2), np.ones((2, 2))], axis=-1)
        >>> HRank(image[None]).scores(Candidates.of_channels(model))["c"].tolist()
        [2.0, 1.0]
    """

    def scores(self, candidates: Candidates) -> dict[str, Scores]:
        """The mean rank of each channel."""
        maps = self._maps(candidates, through_sums=True)
        scores = {name: np.zeros(len(candidates.producers[name].units)) for name in maps}
        if not maps:
            return scores
        model = feature_model(candidates.graph, maps)
        counts = dict.fromkeys(maps, 0)
        for x, _ in self._batches(candidates.graph):
            for name, calls in model(x, training=False).items():
                for feature_map in calls:
                    values = np.asarray(feature_map, np.float32)
                    if not np.isfinite(values).all():
                        raise TfcompError(
                            f"HRank expects finite feature maps. Received: others behind {name!r}. "
                            "Look at the data, and at the model's weights."
                        )
                    ranks = _ranks(values)
                    scores[name] += ranks.sum(axis=0)
                    counts[name] += len(ranks)
        return {name: scores[name] / max(counts[name], 1) for name in scores}


def _ranks(feature_map: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """The rank of each sample's map of each channel, [samples, channels]."""
    samples, *shape, channels = feature_map.shape
    width = shape[-1] if len(shape) > 1 else 1
    maps = np.moveaxis(feature_map, -1, 1).reshape(samples, channels, -1, width)
    return np.linalg.matrix_rank(maps)
