"""The networks that shrink is tested on, one for each way in which channels are coupled."""

import keras
import numpy as np
from keras import layers


def conv_bn(x, filters, size=3, name=None, **kwargs):
    x = layers.Conv2D(filters, size, padding="same", use_bias=False, name=name, **kwargs)(x)
    return layers.ReLU()(layers.BatchNormalization()(x))


def head(x, classes=3):
    return layers.Dense(classes, name="logits")(layers.GlobalAveragePooling2D()(x))


def plain():
    x = keras.Input((8, 8, 3))
    y = conv_bn(x, 8, name="a")
    y = layers.MaxPooling2D()(layers.PReLU()(y))
    y = conv_bn(y, 10, name="b")
    y = layers.SpatialDropout2D(0.1)(layers.PReLU(shared_axes=[1, 2])(y))
    y = layers.AveragePooling2D(2)(layers.ZeroPadding2D()(y))
    y = layers.Conv2D(7, 1, activation="swish", name="c")(layers.Cropping2D(1)(y))
    return keras.Model(x, head(layers.Dropout(0.2)(layers.UpSampling2D()(y))))


def flattened():
    return keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.Conv2D(5, 3, activation="relu", name="conv"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(9, activation="gelu", name="hidden"),
            layers.BatchNormalization(),
            layers.Dense(4, name="logits"),
        ]
    )


def residual():
    x = keras.Input((8, 8, 3))
    y = conv_bn(x, 6, name="stem")
    z = conv_bn(conv_bn(y, 5, name="i1"), 6, name="i2")
    y = layers.ReLU()(layers.Add()([y, z]))
    z = conv_bn(y, 7, strides=2, name="p1")
    z = layers.BatchNormalization()(layers.Conv2D(9, 3, padding="same", name="p2")(z))
    shortcut = layers.BatchNormalization()(layers.Conv2D(9, 1, strides=2, name="short")(y))
    y = layers.Activation("relu")(layers.Add()([shortcut, z]))
    return keras.Model(x, head(layers.Average()([y, conv_bn(y, 9, name="last")])))


def dense_net():
    x = keras.Input((8, 8, 3))
    y = conv_bn(x, 4, name="stem")
    for index in range(3):
        z = layers.ReLU()(layers.BatchNormalization()(y))
        z = layers.Conv2D(4 + index, 3, padding="same", name=f"grow{index}")(z)
        y = layers.Concatenate()([y, z])
    y = layers.Conv2D(8, 1, name="transition")(layers.BatchNormalization()(y))
    return keras.Model(x, layers.Dense(3, name="logits")(layers.Flatten()(y)))


def inception():
    x = keras.Input((8, 8, 3))
    branches = [
        conv_bn(x, 4, 1, name="one"),
        conv_bn(conv_bn(x, 3, 1, name="three_a"), 5, name="three_b"),
        layers.Conv2D(3, 1, name="pool")(layers.MaxPooling2D(3, 1, padding="same")(x)),
        x,
    ]
    y = layers.Concatenate()(branches)
    wide = layers.Conv2D(15, 3, padding="same", name="wide")(x)
    # One convolution coupled with several through a concatenation, the input among them.
    return keras.Model(x, head(layers.Maximum()([y, wide])))


def inverted_residual():
    x = keras.Input((8, 8, 3))
    y = conv_bn(x, 6, name="stem")
    for index in range(2):
        z = conv_bn(y, 12, 1, name=f"expand{index}")
        z = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=1 + index)(z)
        z = layers.ReLU(6.0)(layers.BatchNormalization()(z))
        z = layers.BatchNormalization()(layers.Conv2D(6, 1, name=f"project{index}")(z))
        y = layers.Add()([y, z])
    y = layers.SeparableConv2D(8, 3, depth_multiplier=2, name="separable")(y)
    return keras.Model(x, head(y))


def squeeze_excite():
    x = keras.Input((8, 8, 3))
    y = conv_bn(x, 8, name="body")
    gate = layers.GlobalAveragePooling2D(keepdims=True)(y)
    gate = layers.Conv2D(3, 1, activation="relu", name="squeeze")(gate)
    gate = layers.Conv2D(8, 1, activation="sigmoid", name="excite")(gate)
    y = layers.Multiply()([y, gate])
    gate = layers.Reshape((1, 1, 8))(layers.GlobalMaxPooling2D()(y))
    gate = layers.Dense(4, activation="relu", name="squeeze2")(gate)
    gate = layers.Dense(8, activation="hard_sigmoid", name="excite2")(gate)
    attention = layers.Conv2D(1, 1, activation="sigmoid", name="where")(y)
    return keras.Model(x, head((y * gate) * attention))


def two_in_two_out():
    image = keras.Input((8, 8, 3), name="image")
    facts = keras.Input((5,), name="facts")
    y = conv_bn(image, 6, name="conv")
    z = layers.Dense(6, activation="tanh", name="facts_up")(facts)
    y = layers.Add()([y, z])
    heat = layers.Conv2D(2, 1, name="heat")(y)
    joined = layers.Concatenate()([layers.GlobalMaxPooling2D()(y), facts])
    joined = layers.Dense(7, activation="relu", name="joined")(joined)
    score = layers.Dense(3, name="score")(joined)
    return keras.Model({"image": image, "facts": facts}, {"heat": heat, "score": score})


def shared():
    x = keras.Input((8, 8, 3))
    conv = layers.Conv2D(6, 3, padding="same", name="shared")
    norm = layers.BatchNormalization()
    a = layers.Conv2D(6, 3, padding="same", name="first")(x)
    b = norm(conv(layers.ReLU()(a)))
    c = norm(conv(layers.ReLU()(b)))
    return keras.Model(x, head(layers.Concatenate()([b, c])))


def nested():
    inner_x = keras.Input((8, 8, 5))
    inner_y = layers.Conv2D(5, 3, padding="same", name="inner")(inner_x)
    block = keras.Model(inner_x, layers.ReLU()(inner_x + layers.BatchNormalization()(inner_y)))
    tail = keras.Sequential([layers.Conv2D(6, 1, name="tail"), layers.GlobalAveragePooling2D()])
    x = keras.Input((8, 8, 3))
    y = block(layers.Conv2D(5, 1, name="outer")(x))
    return keras.Model(x, layers.Dense(3, name="logits")(tail(block(y))))


def operators():
    x = keras.Input((8, 8, 3))
    a = layers.Conv2D(6, 3, padding="same", name="a")(x)
    b = layers.Conv2D(6, 3, padding="same", name="b")(keras.ops.relu(a) * 2.0)
    y = (a + b) / 3.0 - keras.ops.sigmoid(b) * np.float32(0.5)
    y = keras.ops.concatenate([y, keras.ops.maximum(a, 0.1)], axis=-1)
    c = layers.Conv2D(6, 1, name="c")(keras.ops.clip(-y, -2.0, 2.0))
    y = keras.ops.mean(c, axis=[1, 2])
    y = keras.ops.reshape(y, (-1, 1, 6)) ** 2
    return keras.Model(x, layers.Dense(3, name="logits")(layers.Flatten()(y)))


def multi_consumer():
    x = keras.Input((8, 8, 3))
    y = conv_bn(x, 8, name="body")
    a = layers.Conv2D(4, 3, name="valid")(y)
    b = layers.Conv2D(4, 1, name="pointwise")(layers.Cropping2D(1)(y))
    c = layers.Dense(4, name="pixelwise")(
        layers.Cropping2D(1)(layers.DepthwiseConv2D(3, padding="same")(y))
    )
    d = layers.Conv2DTranspose(4, 3, padding="same", name="up")(layers.Cropping2D(1)(y))
    return keras.Model(x, head(a + b + c + d))


def rearranged():
    x = keras.Input((12,))
    y = layers.Dense(4 * 4 * 6, name="spread")(x)
    y = layers.Reshape((4, 4, 6))(y)
    y = layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same", name="conv")(y))
    # A channel shuffle.
    y = layers.Reshape((4, 4, 2, 4))(y)
    y = layers.Reshape((4, 4, 8))(layers.Permute((1, 2, 4, 3))(y))
    y = layers.Dense(5, name="pixel")(layers.Reshape((16, 8))(y))
    y = layers.Conv1D(6, 3, padding="causal", name="conv1d")(y)
    y = layers.Concatenate(axis=1)([y, layers.Dense(6, name="beside")(y)])
    return keras.Model(x, layers.Dense(3, name="logits")(layers.Reshape((-1,))(y)))


def volumes():
    x = keras.Input((4, 4, 4, 2))
    y = layers.Conv3D(5, 2, name="a")(x)
    y = layers.Conv3D(4, 1, name="b")(layers.MaxPooling3D()(layers.LeakyReLU()(y)))
    return keras.Model(x, layers.Dense(2, name="logits")(layers.GlobalAveragePooling3D()(y)))


def dynamic_size():
    x = keras.Input((None, None, 3))
    y = conv_bn(x, 6, name="a")
    return keras.Model(x, head(layers.Add()([y, conv_bn(y, 6, name="b")])))
