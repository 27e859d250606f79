"""Distillation losses: a paper is a class."""

from tfcomp.distillation.losses.attention import AttentionTransfer, GradientAttentionTransfer
from tfcomp.distillation.losses.boundaries import ActivationBoundaries
from tfcomp.distillation.losses.contrastive import ContrastiveRepresentationDistillation
from tfcomp.distillation.losses.correlation import DIST
from tfcomp.distillation.losses.decoupled import DecoupledKD
from tfcomp.distillation.losses.factor import FactorTransfer
from tfcomp.distillation.losses.feature import FitNetsHint
from tfcomp.distillation.losses.feature_loss import FeatureLoss
from tfcomp.distillation.losses.flow import FlowOfSolutionProcedure
from tfcomp.distillation.losses.information import VariationalInformationDistillation
from tfcomp.distillation.losses.jacobian import (
    AttentionJacobianMatching,
    JacobianMatching,
    NoisyInputMatching,
)
from tfcomp.distillation.losses.logits import LogitRegression, NoisyTeacher
from tfcomp.distillation.losses.per_sample import PerSampleLoss
from tfcomp.distillation.losses.relation import (
    CorrelationCongruence,
    ProbabilisticKnowledgeTransfer,
    RelationalKD,
    SimilarityPreserving,
)
from tfcomp.distillation.losses.response import KnowledgeDistillation
from tfcomp.distillation.losses.selectivity import NeuronSelectivityTransfer

__all__ = [
    "DIST",
    "ActivationBoundaries",
    "AttentionJacobianMatching",
    "AttentionTransfer",
    "ContrastiveRepresentationDistillation",
    "CorrelationCongruence",
    "DecoupledKD",
    "FactorTransfer",
    "FeatureLoss",
    "FitNetsHint",
    "FlowOfSolutionProcedure",
    "GradientAttentionTransfer",
    "JacobianMatching",
    "KnowledgeDistillation",
    "LogitRegression",
    "NeuronSelectivityTransfer",
    "NoisyInputMatching",
    "NoisyTeacher",
    "PerSampleLoss",
    "ProbabilisticKnowledgeTransfer",
    "RelationalKD",
    "SimilarityPreserving",
    "VariationalInformationDistillation",
]
