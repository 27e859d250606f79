"""Knowledge distillation: a student learns from labels and from a teacher."""

from tfcomp.distillation.adversarial import AdversarialDistiller, LogitL1
from tfcomp.distillation.assistants import AssistantChain
from tfcomp.distillation.born_again import BornAgain
from tfcomp.distillation.course_report import CourseReport
from tfcomp.distillation.distiller import Distiller
from tfcomp.distillation.ensemble import Ensemble
from tfcomp.distillation.indices import with_indices
from tfcomp.distillation.inputs import DistillationInputs
from tfcomp.distillation.lesson import Lesson
from tfcomp.distillation.losses import (
    DIST,
    ActivationBoundaries,
    AttentionJacobianMatching,
    AttentionTransfer,
    ContrastiveRepresentationDistillation,
    CorrelationCongruence,
    DecoupledKD,
    FactorTransfer,
    FeatureLoss,
    FitNetsHint,
    FlowOfSolutionProcedure,
    GradientAttentionTransfer,
    JacobianMatching,
    KnowledgeDistillation,
    LogitRegression,
    NeuronSelectivityTransfer,
    NoisyInputMatching,
    NoisyTeacher,
    PerSampleLoss,
    ProbabilisticKnowledgeTransfer,
    RelationalKD,
    SimilarityPreserving,
    VariationalInformationDistillation,
)
from tfcomp.distillation.mutual import MutualLearning
from tfcomp.distillation.oversampling import munge, oversample_with_noise
from tfcomp.distillation.pairing import pair_layers
from tfcomp.distillation.projection import KnowledgeProjection, PrunedRoute
from tfcomp.distillation.teachers import cache_teacher
from tfcomp.distillation.transfer_sets import augmented_views, mix_unlabelled, pseudo_labels

__all__ = [
    "DIST",
    "ActivationBoundaries",
    "AdversarialDistiller",
    "AssistantChain",
    "AttentionJacobianMatching",
    "AttentionTransfer",
    "BornAgain",
    "ContrastiveRepresentationDistillation",
    "CorrelationCongruence",
    "CourseReport",
    "DecoupledKD",
    "DistillationInputs",
    "Distiller",
    "Ensemble",
    "FactorTransfer",
    "FeatureLoss",
    "FitNetsHint",
    "FlowOfSolutionProcedure",
    "GradientAttentionTransfer",
    "JacobianMatching",
    "KnowledgeDistillation",
    "KnowledgeProjection",
    "Lesson",
    "LogitL1",
    "LogitRegression",
    "MutualLearning",
    "NeuronSelectivityTransfer",
    "NoisyInputMatching",
    "NoisyTeacher",
    "PerSampleLoss",
    "ProbabilisticKnowledgeTransfer",
    "PrunedRoute",
    "RelationalKD",
    "SimilarityPreserving",
    "VariationalInformationDistillation",
    "augmented_views",
    "cache_teacher",
    "mix_unlabelled",
    "munge",
    "oversample_with_noise",
    "pair_layers",
    "pseudo_labels",
    "with_indices",
]
