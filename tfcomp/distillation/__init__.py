"""Knowledge distillation: a student learns from labels and from a teacher."""

from tfcomp.distillation.distiller import Distiller
from tfcomp.distillation.losses import KnowledgeDistillation, PerSampleLoss
from tfcomp.distillation.teachers import CachedInputs, cache_teacher

__all__ = [
    "CachedInputs",
    "Distiller",
    "KnowledgeDistillation",
    "PerSampleLoss",
    "cache_teacher",
]
