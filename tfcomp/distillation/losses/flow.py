"""Flow of the solution procedure: how features change from one layer to a later one."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import keras

from tfcomp.distillation.losses.feature_loss import FeatureLoss
from tfcomp.distillation.losses.maps import at_positions, check_maps, float32
from tfcomp.distillation.pairing import feature_maps, pair_layers
from tfcomp.errors import TfcompError


@keras.saving.register_keras_serializable(package="tfcomp")
class FlowOfSolutionProcedure(FeatureLoss):
    """The student's features flow from layer to layer as the teacher's do.

    Σ_pairs ‖G_t − G_s‖²_F, G = 1/(HW) Σ_hw A₁ᵀ A₂

    for pairs of layers of one model, with A₁ and A₂ their features at a position; G is a matrix
    of the first layer's channels times the second's. Where the sizes in a pair differ, the larger
    map is max-pooled to the smaller. The two models' maps may have different sizes.

    Where the student's layer has other channels than the teacher's, a 1×1 convolution that is
    trained along with the student leads to the teacher's; where all are equal nothing is
    trained, as in the paper. The value is never negative; without such convolutions it is zero
    for equal maps. The paper trains with this loss alone first (`DistillationStage`).

    Args:
        teacher_layer: Pairs of the teacher's layers, by name or index:
            `[["first", "last"], ["first", "last"]]`. None for both: in each resolution that
            both models have, the first and the last map.
        student_layer: As many pairs of the student's layers.
        name: Name of its metric.

    Raises:
        TfcompError: If the layers do not come in pairs; at construction of the `Distiller`, if
            they do not give maps, or if no resolution has two layers in both models.

    Example:
        >>> import numpy as np
        >>> loss = FlowOfSolutionProcedure([["stem", "block"]], [["stem", "block"]])
        >>> first, last = np.ones((2, 8, 8, 3), "float32"), np.ones((2, 4, 4, 5), "float32")
        >>> loss.validate_outputs([[first, last]], [[first, 2 * last]])
        >>> float(loss.per_sample([[first, last]], [[first, 2 * last]])[0])  # 3·5 · (1 − 2)²
        15.0

    Reference:
        Yim, Joo, Bae, Kim (2017), A Gift from Knowledge Distillation: Fast Optimization, Network
        Minimization and Transfer Learning, CVPR.
    """

    several: ClassVar[bool] = True

    def __init__(
        self, teacher_layer: Any = None, student_layer: Any = None, name: str | None = None
    ) -> None:
        super().__init__(teacher_layer, student_layer, name)
        for layers in (self.teacher_layer, self.student_layer):
            if layers is not None and not all(map(_is_pair, layers)):
                raise TfcompError(
                    "FlowOfSolutionProcedure compares pairs of layers: expected "
                    f'[["first", "last"], …], received {layers!r}.'
                )
        self._regressors: list[list[keras.Layer | None]] = []

    def pair(self, teacher: keras.Model, student: keras.Model) -> tuple[Any, Any]:
        """The first and the last map of each common resolution."""
        pair_layers(teacher, student)  # Tells what the models have if they have nothing common.
        of_teacher, of_student = feature_maps(teacher), feature_maps(student)
        common = [
            (of_teacher[size], names)
            for size, names in of_student.items()
            if len(of_teacher.get(size, [])) >= 2 and len(names) >= 2
        ]
        if not common:
            raise TfcompError(
                "No flow can be compared: expected a resolution with two layers in both models, "
                f"received {of_teacher} in the teacher and {of_student} in the student. Name "
                "teacher_layer and student_layer."
            )
        return [[t[0], t[-1]] for t, _ in common], [[s[0], s[-1]] for _, s in common]

    def build(self, teacher_shapes: Any, student_shapes: Any) -> None:
        """Makes a regressor for each of the student's maps with other channels."""
        for teachers, students in zip(teacher_shapes, student_shapes, strict=True):
            for shapes in (teachers, students):
                check_maps(type(self).__name__, shapes[:1], [(*shapes[0][:-1], shapes[1][-1])])
                _check_sizes(*shapes)
        self._regressors = [
            [_regressor(s, t, f"flow_{i}_{j}") for j, (s, t) in enumerate(zip(*pair, strict=True))]
            for i, pair in enumerate(zip(student_shapes, teacher_shapes, strict=True))
        ]
        made = [layer for pair in self._regressors for layer in pair]
        self.layers = tuple(layer for layer in made if layer is not None)

    def per_sample(self, teacher_outputs: Any, student_outputs: Any) -> Any:
        """Values of shape (batch,)."""
        ops = keras.ops
        value = 0.0
        for teachers, students, regressors in zip(
            teacher_outputs, student_outputs, self._regressors, strict=True
        ):
            mapped = [
                layer(maps) if layer is not None else maps
                for layer, maps in zip(regressors, students, strict=True)
            ]
            gap = _flow(*teachers) - _flow(*mapped)
            value = value + ops.sum(ops.square(gap), axis=(1, 2))
        return value


def _is_pair(layers: Any) -> bool:
    return isinstance(layers, (list, tuple)) and len(layers) == 2


def _check_sizes(first: Any, second: Any) -> None:
    """Pooling shrinks: one map must be the larger one along every axis."""
    if len(first) == len(second) and None not in (*first[1:-1], *second[1:-1]):
        gaps = [a - b for a, b in zip(first[1:-1], second[1:-1], strict=True)]
        if min(gaps) >= 0 or max(gaps) <= 0:
            return
    raise TfcompError(
        f"FlowOfSolutionProcedure pools the larger map of a pair: expected two maps of known size "
        f"of which one is the larger one along every axis, received {tuple(first)} and "
        f"{tuple(second)}. Choose other layers."
    )


def _regressor(student: Any, teacher: Any, name: str) -> keras.Layer | None:
    if student[-1] == teacher[-1]:
        return None
    # Over the last axis of a map, a dense layer is a 1×1 convolution.
    layer = keras.layers.Dense(teacher[-1], dtype="float32", name=name)
    layer.build(tuple(student))
    return layer


def _flow(first: Any, second: Any) -> Any:
    """G, of shape (batch, channels of the first, channels of the second)."""
    ops = keras.ops
    first, second = float32(first), float32(second)
    first, second = _pooled(first, second.shape[1:-1]), _pooled(second, first.shape[1:-1])
    first, second = at_positions(first), at_positions(second)
    return ops.matmul(ops.transpose(first, (0, 2, 1)), second) / first.shape[1]


def _pooled(maps: Any, sizes: Any) -> Any:
    """Maps max-pooled to `sizes`, where these are smaller."""
    own = maps.shape[1:-1]
    if math.prod(own) <= math.prod(sizes):
        return maps
    strides = tuple(a // b for a, b in zip(own, sizes, strict=True))
    windows = tuple(a - (b - 1) * s for a, b, s in zip(own, sizes, strides, strict=True))
    return keras.ops.max_pool(maps, windows, strides, "valid", data_format="channels_last")
