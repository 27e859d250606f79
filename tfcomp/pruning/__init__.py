"""Fewer weights: pruned to zero by schedule and mask, or channels removed physically."""

from tfcomp.pruning.activation_criteria import (
    ActivationMean,
    ActivationStandardDeviation,
    APoZ,
)
from tfcomp.pruning.batch_norm_scale import BatchNormScale
from tfcomp.pruning.budget import Budget, Spending
from tfcomp.pruning.candidates import Candidate, Candidates
from tfcomp.pruning.connectivity import ErrorBarrier, error_barrier
from tfcomp.pruning.criteria import Criterion, L1Norm, L2Norm, Magnitude, Random, RandomWeights
from tfcomp.pruning.energy import Energy, EnergyCosts, LayerEnergy, estimate_energy
from tfcomp.pruning.energy_aware import EnergyAware, EnergyReport, LayerError, prune_by_energy
from tfcomp.pruning.geometric_median import FPGM
from tfcomp.pruning.hrank import HRank
from tfcomp.pruning.initialization import (
    SNIP,
    GraSP,
    InitializationReport,
    SynFlow,
    prune_at_initialization,
)
from tfcomp.pruning.lottery import Round, Ticket, find_ticket
from tfcomp.pruning.masks import Masked, keep_mask, keep_masks, pruned_count
from tfcomp.pruning.schedules import (
    ConstantSparsity,
    CosineDecay,
    IterativeSparsity,
    PolynomialDecay,
    Schedule,
)
from tfcomp.pruning.sensitivity import Sensitivity, sensitivity
from tfcomp.pruning.shrink import LayerChannels, ShrinkReport, shrink
from tfcomp.pruning.sparsity import Kernel, KernelSparsity, find_kernels
from tfcomp.pruning.supermask import Supermask, SupermaskTrainer, supermask
from tfcomp.pruning.taylor import Oracle, Taylor
from tfcomp.pruning.thresholds import threshold_ratios
from tfcomp.pruning.units import NM, Blocks, Filters, Kernels, Layers, Unit, Weights

__all__ = [
    "FPGM",
    "NM",
    "SNIP",
    "APoZ",
    "ActivationMean",
    "ActivationStandardDeviation",
    "BatchNormScale",
    "Blocks",
    "Budget",
    "Candidate",
    "Candidates",
    "ConstantSparsity",
    "CosineDecay",
    "Criterion",
    "Energy",
    "EnergyAware",
    "EnergyCosts",
    "EnergyReport",
    "ErrorBarrier",
    "Filters",
    "GraSP",
    "HRank",
    "InitializationReport",
    "IterativeSparsity",
    "Kernel",
    "KernelSparsity",
    "Kernels",
    "L1Norm",
    "L2Norm",
    "LayerChannels",
    "LayerEnergy",
    "LayerError",
    "Layers",
    "Magnitude",
    "Masked",
    "Oracle",
    "PolynomialDecay",
    "Random",
    "RandomWeights",
    "Round",
    "Schedule",
    "Sensitivity",
    "ShrinkReport",
    "Spending",
    "Supermask",
    "SupermaskTrainer",
    "SynFlow",
    "Taylor",
    "Ticket",
    "Unit",
    "Weights",
    "error_barrier",
    "estimate_energy",
    "find_kernels",
    "find_ticket",
    "keep_mask",
    "keep_masks",
    "prune_at_initialization",
    "prune_by_energy",
    "pruned_count",
    "sensitivity",
    "shrink",
    "supermask",
    "threshold_ratios",
]
