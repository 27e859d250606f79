"""The one place that walks and rewrites a Keras model."""

from tfcomp.graph.activations import pre_activation
from tfcomp.graph.channels import AxisKey, SizeKey
from tfcomp.graph.dependency import (
    FIXED,
    Dependencies,
    Group,
    Producer,
    dependencies,
    removed_channels,
)
from tfcomp.graph.folding import fold_batch_norm
from tfcomp.graph.rebuild import clone_op, rebuild
from tfcomp.graph.removal import remove_units
from tfcomp.graph.trace import (
    Graph,
    Node,
    Tensor,
    as_functional,
    check_model,
    functional_class,
    is_graph_model,
    trace,
)

__all__ = [
    "FIXED",
    "AxisKey",
    "Dependencies",
    "Graph",
    "Group",
    "Node",
    "Producer",
    "SizeKey",
    "Tensor",
    "as_functional",
    "check_model",
    "clone_op",
    "dependencies",
    "fold_batch_norm",
    "functional_class",
    "is_graph_model",
    "pre_activation",
    "rebuild",
    "remove_units",
    "removed_channels",
    "trace",
]
