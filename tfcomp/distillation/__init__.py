"""Knowledge distillation: a student learns from labels and from a teacher."""

from tfcomp.distillation.distiller import Distiller
from tfcomp.distillation.ensemble import Ensemble
from tfcomp.distillation.indices import with_indices
from tfcomp.distillation.inputs import DistillationInputs
from tfcomp.distillation.losses import (
    ActivationBoundaries,
    AttentionTransfer,
    ContrastiveRepresentationDistillation,
    CorrelationCongruence,
    FactorTransfer,
    FitNetsHint,
    FlowOfSolutionProcedure,
    GradientAttentionTransfer,
    KnowledgeDistillation,
    NeuronSelectivityTransfer,
    PerSampleLoss,
    ProbabilisticKnowledgeTransfer,
    RelationalKD,
    SimilarityPreserving,
    VariationalInformationDistillation,
)
from tfcomp.distillation.mutual import MutualLearning
from tfcomp.distillation.teachers import cache_teacher

__all__ = [
    "ActivationBoundaries",
    "AttentionTransfer",
    "ContrastiveRepresentationDistillation",
    "CorrelationCongruence",
    "DistillationInputs",
    "Distiller",
    "Ensemble",
    "FactorTransfer",
    "FitNetsHint",
    "FlowOfSolutionProcedure",
    "GradientAttentionTransfer",
    "KnowledgeDistillation",
    "MutualLearning",
    "NeuronSelectivityTransfer",
    "PerSampleLoss",
    "ProbabilisticKnowledgeTransfer",
    "RelationalKD",
    "SimilarityPreserving",
    "VariationalInformationDistillation",
    "cache_teacher",
    "with_indices",
]
