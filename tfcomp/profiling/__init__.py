"""What a model costs: parameters, non-zeros, multiply-adds, bytes; and what a file holds."""

from tfcomp.profiling.inspection import Inspection, inspect_file, load_keras
from tfcomp.profiling.profile import FileSize, LayerProfile, Profile, file_size, profile

__all__ = [
    "FileSize",
    "Inspection",
    "LayerProfile",
    "Profile",
    "file_size",
    "inspect_file",
    "load_keras",
    "profile",
]
