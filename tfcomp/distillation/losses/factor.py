"""Factor transfer: the student translates itself into a paraphrase of the teacher."""

from __future__ import annotations

import math
from typing import Any, Literal

import keras
import tensorflow as tf

from tfcomp.distillation.extractor import FeatureExtractor
from tfcomp.distillation.inputs import fit_size, image_size, is_absent, unpack
from tfcomp.distillation.losses.arguments import choice
from tfcomp.distillation.losses.feature_loss import FeatureLoss
from tfcomp.distillation.losses.maps import check_maps, float32, norm, rest, same_sizes, unit
from tfcomp.distillation.pairing import layer_name
from tfcomp.errors import TfcompError

Variant = Literal["paper", "code"]
_CONVOLUTIONS = {
    3: (keras.layers.Conv1D, keras.layers.Conv1DTranspose),
    4: (keras.layers.Conv2D, keras.layers.Conv2DTranspose),
    5: (keras.layers.Conv3D, keras.layers.Conv3DTranspose),
}


@keras.saving.register_keras_serializable(package="tfcomp")
class FactorTransfer(FeatureLoss):
    """The student's translated features become the teacher's paraphrased ones.

    With the factors F_t = paraphraser(A_t), F_s = translator(A_s) and f = F/‖F‖₂ over each
    sample, by `variant`:

    - `"code"`: mean |f_s − f_t|^p, with which the published figures were made (β = 500 there).
    - `"paper"`: ‖f_s − f_t‖_p.

    In the paper's total, CE + β · this loss, set `student_loss_weight=0.5`, the weight β and
    twice the learning rate.

    Paraphraser and translator are three 3×3 convolutions with LeakyReLU(0.1), the last two of
    ⌊rate · teacher's channels⌉ channels. The translator is trained along with the student. The
    paraphraser is the encoder of an auto-encoder of the teacher's features. It is trained first,
    without labels, by `fit_paraphraser`, before or after the `Distiller` is made; from then on
    it is frozen, and saved with the `Distiller`. To train with one that has not been fitted is
    refused. In `AssistantChain` and `BornAgain` each lesson has a paraphraser of its own, which
    is trained when the lesson starts, on the data and the teacher of that lesson.

    Where the sizes of the two maps differ the larger factor is shrunk bilinearly. The value is
    never negative.

    Args:
        teacher_layer: Name or index of the teacher's layer, whose output is a map, channels
            last. None for both: the deepest maps of a resolution that both models have.
        student_layer: The student's layer.
        rate: Channels of the factors, as a fraction > 0 of the teacher's.
        p: 1 or 2.
        variant: The formula, see above.
        name: Name of its metric.
        paraphraser_epochs: How long `fit_paraphraser` trains unless it is told otherwise; the
            released code takes 5.

    Raises:
        TfcompError: If an argument is out of range; at construction of the `Distiller`, if the
            layers do not give maps; in the first step, if the paraphraser has not been fitted.

    Example:
        >>> import keras, numpy as np
        >>> def net(width):
        ...     layers = [keras.layers.Conv2D(width, 3, name="conv"), keras.layers.Flatten()]
        ...     return keras.Sequential([keras.Input((6, 6, 1)), *layers, keras.layers.Dense(3)])
        >>> teacher, images = net(8), np.random.rand(32, 6, 6, 1)
        >>> loss = FactorTransfer("conv", "conv")
        >>> errors = loss.fit_paraphraser(teacher, images, epochs=2, verbose=0)
        >>> list(errors.history), len(errors.history["loss"])
        (['loss'], 2)
        >>> from tfcomp.distillation import Distiller
        >>> distiller = Distiller(teacher, net(4), loss, student_loss_weight=0.0)
        >>> distiller.compile("sgd")
        >>> sorted(distiller.fit(images, verbose=0).history)
        ['distillation_loss', 'loss', 'student_loss']

    Reference:
        Kim, Park, Kwak (2018), Paraphrasing Complex Network: Network Compression via Factor
        Transfer, arXiv:1802.04977.
    """

    def __init__(
        self,
        teacher_layer: str | int | None = None,
        student_layer: str | int | None = None,
        rate: float = 0.5,
        p: int = 1,
        variant: Variant = "code",
        name: str | None = None,
        paraphraser_epochs: int = 5,
    ) -> None:
        super().__init__(teacher_layer, student_layer, name)
        if type(paraphraser_epochs) is not int or paraphraser_epochs < 1:
            raise TfcompError(
                f"`paraphraser_epochs` must be an int above 0. Received: {paraphraser_epochs!r}."
            )
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate < math.inf:
            raise TfcompError(f"`rate` must be a number above 0. Received: {rate!r}.")
        if p not in (1, 2) or isinstance(p, bool):
            raise TfcompError(f"`p` must be 1 or 2. Received: {p!r}.")
        self.rate = float(rate)
        self.p = int(p)
        self.variant = choice("variant", variant, Variant)
        self.paraphraser_epochs = paraphraser_epochs
        self._paraphraser: _Paraphraser | None = None
        self._fitted = False

    @property
    def paraphraser(self) -> keras.Layer | None:
        """The teacher's encoder; None before it is known how many channels it takes."""
        return self._paraphraser

    def build(self, teacher_shapes: Any, student_shapes: Any) -> None:
        """Makes the translator, and the paraphraser unless it has been fitted already."""
        check_maps(type(self).__name__, [teacher_shapes], [student_shapes])
        paraphraser = self._make_paraphraser(tuple(teacher_shapes))
        shape = tuple(student_shapes)
        widths = [shape[-1], paraphraser.channels, paraphraser.channels]
        self.layers = (_stack(shape, widths, 0, "translator"), paraphraser)

    def prepare(self, teacher: keras.Model, x: Any, **kwargs: Any) -> None:
        """Calls `fit_paraphraser`."""
        self.fit_paraphraser(teacher, x, **kwargs)

    def fit_paraphraser(
        self,
        teacher: keras.Model,
        x: Any,
        epochs: int | None = None,
        optimizer: Any = "adam",
        **kwargs: Any,
    ) -> keras.callbacks.History:
        """Trains the paraphraser to keep what is needed to reconstruct the teacher's features.

        It minimises the mean squared error of A_t against decoder(paraphraser(A_t)); the decoder
        is thrown away. The teacher is not changed. Labels in the data are not looked at. Called
        again, it goes on with a new decoder. Under a `tf.distribute` strategy call it in its scope.

        Args:
            teacher: The teacher, a functional or Sequential model.
            x: Data for `fit`, such as the dataset for the distillation; where it comes from
                `cache_teacher` with this layer, the teacher is not run.
            epochs: Number of passes over it; `paraphraser_epochs` by default.
            optimizer: A Keras optimizer or its name.
            **kwargs: Passed to `keras.Model.fit`: `batch_size`, `verbose`, ….

        Returns:
            The history, with the `loss` of each epoch.

        Raises:
            TfcompError: If the layers are to be paired automatically and no `Distiller` has been
                made yet.
        """
        layer = self._teacher_layer(teacher)
        extractor = FeatureExtractor(teacher, [layer], "teacher")
        features: Any = extractor.symbolic()
        shape = tuple(features.layers[layer].shape)
        check_maps(type(self).__name__, [shape], [shape])
        paraphraser = self._make_paraphraser(shape)
        autoencoder = _Autoencoder(paraphraser, shape, lambda x: _features(extractor, layer, x))
        paraphraser.trainable = True
        try:
            autoencoder.compile(optimizer, jit_compile=False)
            epochs = self.paraphraser_epochs if epochs is None else epochs
            history = autoencoder.fit(x, epochs=epochs, **kwargs)
        finally:
            paraphraser.trainable = False
        paraphraser.fitted.assign(1.0)
        return history

    def per_sample(self, teacher_outputs: Any, student_outputs: Any) -> Any:
        """Values of shape (batch,)."""
        self._check_fitted()
        ops = keras.ops
        translator, paraphraser = self.layers
        teacher = ops.stop_gradient(paraphraser(float32(teacher_outputs)))
        teacher, student = same_sizes(teacher, translator(float32(student_outputs)))
        gap = ops.abs(unit(student, rest(student)) - unit(teacher, rest(teacher)))
        if self.variant == "code":
            return ops.mean(gap if self.p == 1 else ops.square(gap), axis=rest(gap))
        return ops.sum(gap, axis=rest(gap)) if self.p == 1 else norm(gap, rest(gap))

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        own = {"rate": self.rate, "p": self.p, "variant": self.variant}
        return {**super().get_config(), **own, "paraphraser_epochs": self.paraphraser_epochs}

    def _teacher_layer(self, teacher: keras.Model) -> str:
        if self.teacher_layer is not None:
            return layer_name(teacher, self.teacher_layer, "teacher")
        if self.teacher_layer_name is None:
            raise TfcompError(
                "FactorTransfer does not know the teacher's layer yet: expected teacher_layer or a "
                "Distiller with this loss, received neither. Make the Distiller first."
            )
        return str(self.teacher_layer_name)

    def _make_paraphraser(self, shape: tuple[int | None, ...]) -> _Paraphraser:
        if self._paraphraser is None:
            self._paraphraser = _Paraphraser(self.rate, name="paraphraser")
            self._paraphraser.build(shape)
            self._paraphraser.trainable = False
        elif self._paraphraser.made_for[-1] != shape[-1]:
            raise TfcompError(
                f"This FactorTransfer has a paraphraser for other features: expected "
                f"{self._paraphraser.made_for}, received {shape}. Make one for each teacher."
            )
        return self._paraphraser

    def _check_fitted(self) -> None:
        if self._fitted:
            return
        # A variable of the layer, so that it is restored with the weights; read outside of the
        # step that is being traced.
        with tf.init_scope():
            self._fitted = bool(self.layers[1].fitted.value.numpy() > 0)
        if not self._fitted:
            raise TfcompError(
                "The paraphraser of FactorTransfer has not been trained: expected "
                "loss.fit_paraphraser(teacher, data) before fit, received random weights."
            )


@keras.saving.register_keras_serializable(package="tfcomp")
class _Paraphraser(keras.layers.Layer):
    """The encoder of a teacher's features."""

    def __init__(self, rate: float, name: str) -> None:
        super().__init__(name=name, dtype="float32")
        self.rate = rate

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Makes the weights."""
        self.made_for = tuple(input_shape)
        width = int(input_shape[-1] or 0)
        self.channels = max(1, round(self.rate * width))
        widths = [width, self.channels, self.channels]
        self.encoder = _stack(self.made_for, widths, 0, "encoder")
        self.fitted = self.add_weight(shape=(), initializer="zeros", trainable=False, name="fitted")

    def call(self, inputs: Any) -> Any:
        """The factors."""
        return self.encoder(inputs)


class _Autoencoder(keras.Model):
    """Trains a paraphraser together with a decoder."""

    def __init__(self, paraphraser: _Paraphraser, shape: tuple[int | None, ...], read: Any) -> None:
        super().__init__(name="autoencoder", dtype="float32")
        self.paraphraser = paraphraser
        width = shape[-1]
        widths = [paraphraser.channels, width, width]
        self.decoder = _stack((*shape[:-1], paraphraser.channels), widths, 1, "decoder")
        # Keras looks into no lambda: the teacher's weights are not this model's.
        self.read = read
        self.built = True

    def train_step(self, data: Any) -> dict[str, Any]:
        """One update of encoder and decoder."""
        features = self.read(keras.utils.unpack_x_y_sample_weight(data)[0])
        with tf.GradientTape() as tape:
            gap = self.decoder(self.paraphraser(features)) - features
            loss = keras.ops.mean(keras.ops.square(gap))
            scaled = loss / tf.distribute.get_strategy().num_replicas_in_sync
        variables = self.trainable_variables
        gradients = tape.gradient(scaled, variables)
        self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        loss_metric = next(metric for metric in self.metrics if metric.name == "loss")
        loss_metric.update_state(loss, sample_weight=keras.ops.shape(features)[0])
        return {"loss": loss_metric.result()}


def _features(extractor: FeatureExtractor, layer: str, x: Any) -> Any:
    """The teacher's features of a batch, from the cache if it has them."""
    inputs = unpack(x)
    if not is_absent(inputs.teacher_layers) and layer in inputs.teacher_layers:
        return float32(inputs.teacher_layers[layer])
    images = fit_size(inputs.inputs, image_size(extractor.model))
    features = extractor(images, training=False).detached()
    return float32(features.layers[layer])


def _stack(
    shape: tuple[int | None, ...], widths: list[Any], transposed: int, name: str
) -> keras.Model:
    """Convolutions of three positions a side, each followed by LeakyReLU."""
    convolution = _CONVOLUTIONS[len(shape)][transposed]
    x = inputs = keras.Input(shape[1:])
    for width in widths:
        settings = {"padding": "same", "data_format": "channels_last", "dtype": "float32"}
        x = convolution(width, 3, **settings)(x)
        x = keras.layers.LeakyReLU(0.1, dtype="float32")(x)
    return keras.Model(inputs, x, name=name)
