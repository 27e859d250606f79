"""Knowledge distillation: a student learns from labels and from a teacher."""

from tfcomp.distillation.distiller import Distiller
from tfcomp.distillation.losses import FitNetsHint, KnowledgeDistillation, PerSampleLoss
from tfcomp.distillation.teachers import CachedInputs, cache_teacher

__all__ = [
    "CachedInputs",
    "Distiller",
    "FitNetsHint",
    "KnowledgeDistillation",
    "PerSampleLoss",
    "cache_teacher",
]
