"""The FLOP that torch's counter counts, beside those of torch's own attention and of the GEMMs that are made."""

from itertools import product

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from conan_fast import soft_mask_attention, soft_mask_attention_varlen
from conan_fast.attention import torch_backend
from conan_fast.attention.settings import Saved, Settings
from tests.support.attention import offsets, random_qkv

GEMM = 2 * 4 * 8  # FLOP per pair of query and key, for 4 heads of 8

# torch has these formulas for its kernels on GPUs. The one for CPUs does the same.
CPU_KERNEL = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda *shapes, **_: sdpa_flop_count(*shapes[:3]),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda *shapes, **_: sdpa_backward_flop_count(*shapes[:4])
    ),
}


def counted(function):
    with FlopCounterMode(display=False, custom_mapping=CPU_KERNEL) as counter:
        function()
    return counter.get_total_flops()


@pytest.mark.parametrize("alpha", [0.0, 0.4, torch.tensor(0.4), 1.0])
@pytest.mark.parametrize("backward", [False, True])
def test_a_padded_batch_counts_as_in_sdpa(alpha, backward):
    inputs = random_qkv(2, 9, heads=(4, 4), dtype=torch.float32)

    def finish(out):
        if backward:
            out.sum().backward()

    ours = counted(lambda: finish(soft_mask_attention(*inputs, alpha)))
    theirs = counted(lambda: finish(scaled_dot_product_attention(*(x.transpose(1, 2) for x in inputs))))
    assert ours == theirs == (7 if backward else 2) * GEMM * 2 * 9**2


def test_a_packed_batch_counts_its_sequences():
    inputs = random_qkv(17, dtype=torch.float32)
    cu_seqlens = offsets([5, 0, 12])
    flops = counted(lambda: soft_mask_attention_varlen(*inputs, cu_seqlens, 15, 0.5).sum().backward())
    assert flops == 7 * GEMM * (5**2 + 12**2)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = [mode.from_tensor(x.detach()) for x in (*inputs, cu_seqlens)]
        assert counted(lambda: soft_mask_attention_varlen(*fake, 15, 0.5)) == 2 * GEMM * 3 * 15**2


@pytest.mark.parametrize("needed", list(product([False, True], repeat=3))[1:])
def test_only_the_gemms_of_the_needed_gradients_are_made_and_counted(needed):
    q, k, v = random_qkv(1, 9, dtype=torch.float32)
    for x, wanted in zip((q, k, v), needed, strict=True):
        x.requires_grad_(wanted)
    out = soft_mask_attention(q, k, v, 1.0)
    flops = counted(lambda: out.sum().backward())

    settings = Settings(None, 0, 1.0, 1.0, "key", False)
    saved = [x.detach() for x in (q, k, v)]
    saved = Saved(*saved, *torch_backend.forward(*saved, settings))
    made = counted(lambda: torch_backend.backward(saved.out, saved, needed, settings))
    assert flops == made == (1 + any(needed[:2]) + sum(needed)) * GEMM * 9**2
