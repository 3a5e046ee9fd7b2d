"""FlashAttention 2, 3 and 4 without a mask, as bounds, and 4 with the soft mask as its score_mod, as a rival.

Written against the sources of flash-attn 2.8.3, of FlashAttention-3 in the same repository, and of flash-attn-4
4.0.0b36. Not yet run on a GPU; version 4 was compiled for one (sm_90a).
"""

import operator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from benchmarks.attention.cases import ALPHA, Attention, AttentionImplementation, Build, Case
from benchmarks.attention.peers.flex import key_bias


def _version_2(case: Case, device: torch.device) -> Attention:
    from flash_attn import flash_attn_func

    return lambda q, k, v: flash_attn_func(q, k, v)


def _version_3(case: Case, device: torch.device) -> Attention:
    try:
        from flash_attn_3.flash_attn_interface import flash_attn_func
    except ImportError:  # before that package there was only the module
        from flash_attn_interface import flash_attn_func

    return lambda q, k, v: _output(flash_attn_func(q, k, v))


def _version_4(soft_mask: bool, case: Case, device: torch.device) -> Attention:
    from flash_attn.cute import flash_attn_func

    options = _score_mod(case, device) if soft_mask else {}
    # Its backward pass for Hopper does not compile for head_dim 112: the tile of dQ does not fit the warps.
    width = -case.head_dim % 32

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if width:
            q, k, v = (pad(x, (0, width)) for x in (q, k, v))
        out = flash_attn_func(q, k, v, softmax_scale=case.head_dim**-0.5, **options)
        return _output(out)[..., : case.head_dim]

    return attention


def _score_mod(case: Case, device: torch.device) -> dict[str, Any]:
    """log M from a table: logarithms would compete with the exponentials of the softmax.

    The arguments are vectors; with a table, of one score.
    """
    import cutlass
    import cutlass.cute as cute

    @cute.jit
    def soft_mask(score, batch, head, q_idx, kv_idx, seqlen_info, aux_tensors):  # type: ignore[no-untyped-def]
        key = cute.make_rmem_tensor(1, cutlass.Int32)
        key.store(kv_idx)
        log_m = cute.make_rmem_tensor(1, cutlass.Float32)
        log_m[0] = aux_tensors[0][key[0]]
        return cute.where(operator.gt(kv_idx, q_idx), score + log_m.load(), score)

    @cute.jit
    def gradient(grad, score, batch, head, q_idx, kv_idx, seqlen_info, aux_tensors):  # type: ignore[no-untyped-def]
        return grad

    table = key_bias(case.length, ALPHA, device)
    return {"score_mod": soft_mask, "score_mod_bwd": gradient, "aux_tensors": [table]}


def _output(result: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Some versions return logsumexp too."""
    return result[0] if isinstance(result, tuple) else result


BUILDS: dict[int, Build] = {2: _version_2, 3: _version_3, 4: partial(_version_4, False)}
MASKED = "FlashAttention-4, the soft mask as score_mod"
IMPLEMENTATIONS = (
    *(
        AttentionImplementation(
            f"flash_attention_{i}_unmasked", "bound", f"FlashAttention-{i}, no mask", build, alpha=1.0
        )
        for i, build in BUILDS.items()
    ),
    AttentionImplementation("flash_attention_4", "rival", MASKED, partial(_version_4, True)),
)
