"""Operators for training text embedders the Conan-Embedding-v2 way (arXiv 2509.12892)."""

from ._backends import build_info
from ._version import __version__
from .attention.operator import soft_mask_attention, soft_mask_attention_varlen
from .attention.soft_mask import SoftMaskSchedule, soft_mask
from .contrastive.cosent import cosent
from .contrastive.info_nce import info_nce
from .contrastive.result import InfoNCE

__all__ = [
    "InfoNCE",
    "SoftMaskSchedule",
    "__version__",
    "build_info",
    "cosent",
    "info_nce",
    "soft_mask",
    "soft_mask_attention",
    "soft_mask_attention_varlen",
]
