"""`attn_implementation="conan_soft_mask"` for transformers' models: decoders at any alpha, encoders at alpha = 1.

    from conan_fast.integrations.transformers import register, soft_mask_alpha
    model = AutoModel.from_pretrained(name, attn_implementation=register())
    soft_mask_alpha(model, 0.3)

Batches may be padded (a 2-D attention_mask) or packed (cu_seq_lens_q and max_length_q, or position_ids that restart).
"""

from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from .alpha import soft_mask_alpha
from .attention import attention_forward
from .callback import SoftMaskCallback
from .mask import NAME, create_mask
from .saved_model import mark_bidirectional

__all__ = ["NAME", "SoftMaskCallback", "mark_bidirectional", "register", "soft_mask_alpha"]


def register() -> str:
    """Make `NAME` known to transformers; may be called more than once. Returns the name."""
    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, create_mask)
    return NAME
