"""The one place that walks and rewrites a Keras model."""

from tfcomp.graph.rebuild import clone_op, rebuild
from tfcomp.graph.trace import Graph, Node, Tensor, check_model, is_graph_model, trace

__all__ = [
    "Graph",
    "Node",
    "Tensor",
    "check_model",
    "clone_op",
    "is_graph_model",
    "rebuild",
    "trace",
]
