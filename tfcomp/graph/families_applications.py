"""What the layers of keras.applications do to channels, classes without a public name."""

from __future__ import annotations

from tfcomp.graph.channels import Call, Flow, handles
from tfcomp.graph.families import elementwise


@handles("applications.convnext.LayerScale")
def _layer_scale(call: Call) -> Flow | None:
    flow = call.flow_on(-1)
    ids = call.reads("gamma", 0, None if flow is None else flow.ids)
    call.counts("projection_dim", ids)
    return flow


@handles("applications.inception_resnet_v2.CustomScaleLayer")
def _scaled_sum(call: Call) -> Flow | None:
    return elementwise(call)
