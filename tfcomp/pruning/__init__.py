"""Fewer weights: schedules and masks for pruning them to zero."""

from tfcomp.pruning.masks import Masked, keep_mask, keep_masks, pruned_count
from tfcomp.pruning.schedules import ConstantSparsity, CosineDecay, PolynomialDecay, Schedule
from tfcomp.pruning.sparsity import Kernel, KernelSparsity, find_kernels

__all__ = [
    "ConstantSparsity",
    "CosineDecay",
    "Kernel",
    "KernelSparsity",
    "Masked",
    "PolynomialDecay",
    "Schedule",
    "find_kernels",
    "keep_mask",
    "keep_masks",
    "pruned_count",
]
