"""Wrong arguments of soft-masked attention raise an error that names the argument."""

import pytest
import torch

from conan_fast import soft_mask_attention, soft_mask_attention_varlen

Q, K, V = torch.zeros(2, 5, 4, 8), torch.zeros(2, 5, 2, 8), torch.zeros(2, 5, 2, 8)


def call(**changes):
    arguments = {"q": Q, "k": K, "v": V, "alpha": 0.5} | changes
    return soft_mask_attention(**arguments)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"q": Q[0]}, ValueError, r"q must have shape \[B, L, Hq, D\], got \[5, 4, 8\]"),
        ({"k": K.tolist()}, TypeError, r"k must be a torch.Tensor \[B, L, Hkv, D\], got list"),
        ({"q": Q.int(), "k": K.int(), "v": V.int()}, TypeError, "q must be bfloat16.* got torch.int32"),
        ({"k": K.double()}, TypeError, "k must have the dtype of q"),
        ({"v": V.half()}, TypeError, "v must have the dtype of q"),
        ({"k": K.to("meta")}, ValueError, "k must be on the device of q"),
        ({"v": V[:, :4]}, ValueError, "v must have the shape of k"),
        ({"k": K[:, :4], "v": V[:, :4]}, ValueError, "k must have the tokens of q"),
        ({"k": K[..., :4], "v": V[..., :4]}, ValueError, "k must have the head_dim of q"),
        ({"q": Q[:, :, :3]}, ValueError, "q must have a multiple of the 2 heads"),
        ({"k": K[:, :, :0], "v": V[:, :, :0]}, ValueError, "q must have a multiple of the 0 heads"),
        ({"alpha": 1.5}, ValueError, "alpha must be in"),
        ({"alpha": -1e-9}, ValueError, "alpha must be in"),
        ({"alpha": float("nan")}, ValueError, "alpha must be in"),
        ({"alpha": torch.tensor(float("nan"))}, ValueError, "alpha must be in"),
        ({"alpha": torch.tensor([0.5])}, ValueError, "alpha as a tensor must have no dimension"),
        ({"alpha": torch.tensor(1)}, TypeError, "alpha as a tensor must be floating point"),
        ({"alpha": torch.tensor(0.5, device="meta")}, ValueError, "alpha as a tensor must be on cpu"),
        ({"alpha": None}, TypeError, "alpha must be a float"),
        ({"saturation": "row"}, ValueError, "saturation must be one of"),
        ({"scale": 0.0}, ValueError, "scale must be None or positive"),
        ({"scale": float("inf")}, ValueError, "scale must be None or positive"),
        ({"scale": "1"}, TypeError, "scale must be None or a float"),
        ({"backend": "fast"}, ValueError, "backend must be one of"),
    ],
)
def test_padded_raises(changes, error, message):
    with pytest.raises(error, match=message):
        call(**changes)


@pytest.mark.parametrize(
    ("cu_seqlens", "longest", "error", "message"),
    [
        ([0, 5], 5, TypeError, "cu_seqlens must be a torch.Tensor"),
        (torch.tensor([0, 5]), 5, TypeError, "cu_seqlens must be int32"),
        (torch.tensor([[0, 5]], dtype=torch.int32), 5, ValueError, "cu_seqlens must have shape"),
        (torch.tensor([], dtype=torch.int32), 5, ValueError, "cu_seqlens must have S \\+ 1 >= 1 entries"),
        (torch.tensor([0, 5], dtype=torch.int32, device="meta"), 5, ValueError, "cu_seqlens must be on the device"),
        (torch.tensor([1, 5], dtype=torch.int32), 5, ValueError, "start at 0 and end at the 5 tokens"),
        (torch.tensor([0, 4], dtype=torch.int32), 5, ValueError, "start at 0 and end at the 5 tokens"),
        (torch.tensor([0, 4, 3, 5], dtype=torch.int32), 5, ValueError, "must not fall"),
        (torch.tensor([0, 5], dtype=torch.int32), 4, ValueError, "max_seqlen must be at least the longest sequence, 5"),
        (torch.tensor([0, 5], dtype=torch.int32), 5.0, TypeError, "max_seqlen must be an int"),
    ],
)
def test_packed_raises(cu_seqlens, longest, error, message):
    with pytest.raises(error, match=message):
        soft_mask_attention_varlen(Q[0], K[0], V[0], cu_seqlens, longest, 0.5)
