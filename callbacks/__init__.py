"""What a user adds to `model.fit`."""

from tfcomp.callbacks.distillation_schedules import LossWeightSchedule, TemperatureSchedule
from tfcomp.callbacks.distillation_stage import DistillationStage
from tfcomp.callbacks.network_slimming import NetworkSlimming
from tfcomp.callbacks.prune_weights import PruneWeights
from tfcomp.callbacks.pruning_report import PruningReport
from tfcomp.callbacks.share_weights import ShareWeights
from tfcomp.callbacks.sharing_session import SharingReport
from tfcomp.callbacks.sparsity_logger import SparsityLogger

__all__ = [
    "DistillationStage",
    "LossWeightSchedule",
    "NetworkSlimming",
    "PruneWeights",
    "PruningReport",
    "ShareWeights",
    "SharingReport",
    "SparsityLogger",
    "TemperatureSchedule",
]
