"""Fewer weights: pruned to zero by schedule and mask, or channels removed physically."""

from tfcomp.pruning.criteria import Criterion, L1Norm, L2Norm, Random
from tfcomp.pruning.masks import Masked, keep_mask, keep_masks, pruned_count
from tfcomp.pruning.schedules import ConstantSparsity, CosineDecay, PolynomialDecay, Schedule
from tfcomp.pruning.shrink import LayerChannels, ShrinkReport, shrink
from tfcomp.pruning.sparsity import Kernel, KernelSparsity, find_kernels

__all__ = [
    "ConstantSparsity",
    "CosineDecay",
    "Criterion",
    "Kernel",
    "KernelSparsity",
    "L1Norm",
    "L2Norm",
    "LayerChannels",
    "Masked",
    "PolynomialDecay",
    "Random",
    "Schedule",
    "ShrinkReport",
    "find_kernels",
    "keep_mask",
    "keep_masks",
    "pruned_count",
    "shrink",
]
