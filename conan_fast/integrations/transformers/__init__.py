"""`attn_implementation="conan_soft_mask"` for transformers' models: decoders at any alpha, encoders at alpha = 1.

    from conan_fast.integrations.transformers import register, soft_mask_alpha
    model = AutoModel.from_pretrained(name, attn_implementation=register())
    soft_mask_alpha(model, 0.3)

Batches may be padded (a 2-D attention_mask) or packed (cu_seq_lens_q and max_length_q, or position_ids that restart).
"""

import functools
from collections.abc import Callable
from typing import Any

from .._requirements import require

require("transformers", extra="transformers", minimum="5.2")

from transformers import AttentionInterface, PreTrainedModel  # noqa: E402
from transformers.masking_utils import AttentionMaskInterface  # noqa: E402

from .alpha import soft_mask_alpha  # noqa: E402
from .attention import attention_forward  # noqa: E402
from .callback import SoftMaskCallback  # noqa: E402
from .mask import NAME, create_mask  # noqa: E402
from .saved_model import mark_bidirectional  # noqa: E402

__all__ = ["NAME", "SoftMaskCallback", "mark_bidirectional", "register", "soft_mask_alpha"]


_REFUSING = "_conan_fast_refuses"


def register() -> str:
    """Make `NAME` known to transformers; may be called more than once. Returns the name.

    A model whose class has an attention of its own, which no implementation replaces, raises ValueError when it is
    built with `NAME`: transformers itself would build it, and use that attention with a mask made for ours.
    """
    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, create_mask)
    method = PreTrainedModel.get_correct_attn_implementation
    if not hasattr(method, _REFUSING):
        setattr(PreTrainedModel, method.__name__, _refusing(method))
    return NAME


def _refusing(method: Callable[..., str]) -> Callable[..., str]:
    @functools.wraps(method)
    def get_correct_attn_implementation(self: PreTrainedModel, requested: str | None, *args: Any, **kwargs: Any) -> str:
        if requested == NAME and not self._can_set_attn_implementation():
            raise ValueError(
                f"{type(self).__name__} has an attention of its own, which {NAME} cannot replace; load the model "
                "without attn_implementation"
            )
        return method(self, requested, *args, **kwargs)

    setattr(get_correct_attn_implementation, _REFUSING, True)
    return get_correct_attn_implementation
