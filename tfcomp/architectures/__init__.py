"""Small architectures to train, distil and shrink."""

from tfcomp.architectures.networks import convolutional_network, residual_network

__all__ = ["convolutional_network", "residual_network"]
