"""Distillation losses: a paper is a class."""

from tfcomp.distillation.losses.contrastive import ContrastiveRepresentationDistillation
from tfcomp.distillation.losses.feature import FitNetsHint
from tfcomp.distillation.losses.per_sample import PerSampleLoss
from tfcomp.distillation.losses.relation import (
    CorrelationCongruence,
    ProbabilisticKnowledgeTransfer,
    RelationalKD,
    SimilarityPreserving,
)
from tfcomp.distillation.losses.response import KnowledgeDistillation

__all__ = [
    "ContrastiveRepresentationDistillation",
    "CorrelationCongruence",
    "FitNetsHint",
    "KnowledgeDistillation",
    "PerSampleLoss",
    "ProbabilisticKnowledgeTransfer",
    "RelationalKD",
    "SimilarityPreserving",
]
