"""alpha of a model: one tensor, read and set by one function."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from conan_fast.integrations.transformers import NAME, mark_bidirectional, register, soft_mask_alpha
from tests.support import families

register()
IDS = torch.randint(3, families.VOCABULARY, (2, 6), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def llama() -> nn.Module:
    return families.model("llama", NAME)


def out(model: nn.Module, **more: float) -> Tensor:
    return families.hidden(model, input_ids=IDS, **more)


def test_it_is_read_and_set(llama: nn.Module) -> None:
    causal = out(llama)
    assert float(soft_mask_alpha(llama)) == 0.0  # reading changes nothing
    assert torch.equal(out(llama, is_causal=False), out(llama, alpha=1.0))
    alpha = soft_mask_alpha(llama, 0.0)
    assert alpha.shape == () and float(alpha) == 0.0
    for value in (0.3, torch.tensor(0.7), 1):
        assert soft_mask_alpha(llama, value) is alpha
        assert float(alpha) == pytest.approx(float(value))
        assert torch.equal(out(llama), out(llama, alpha=float(alpha)))
    assert torch.equal(out(llama, alpha=0.0), causal)  # a keyword of the call comes first


def test_it_is_the_models_default_at_first() -> None:
    for family, expected in (("llama", 0.0), ("bert", 1.0), ("gemma3_bidirectional", 1.0)):
        assert float(soft_mask_alpha(families.model(family, NAME))) == expected
    assert float(soft_mask_alpha(families.model("llama", NAME, is_causal=False))) == 1.0


def test_it_is_not_saved_and_survives_copies_and_casts(llama: nn.Module) -> None:
    names = set(llama.state_dict())
    alpha = soft_mask_alpha(llama, 0.3)
    assert set(llama.state_dict()) == names
    copied = copy.deepcopy(llama)
    soft_mask_alpha(copied, 0.9)
    assert float(alpha) == pytest.approx(0.3)
    assert torch.equal(out(copied), out(llama, alpha=float(soft_mask_alpha(copied))))
    cast = llama.to(torch.bfloat16)
    assert soft_mask_alpha(cast).dtype == torch.float32
    soft_mask_alpha(cast, 0.123)
    assert torch.equal(out(cast), out(cast, alpha=float(torch.tensor(0.123))))


def test_all_layers_read_the_same_tensor_after_a_move(llama: nn.Module) -> None:
    soft_mask_alpha(llama, 0.3)
    moved = llama.to("meta")
    assert len({id(layer.self_attn.soft_mask.alpha) for layer in moved.layers}) == 1


def test_a_new_value_needs_no_new_graph(llama: nn.Module) -> None:
    graphs = []

    def counting(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    soft_mask_alpha(llama, 0.0)
    compiled = torch.compile(llama, backend=counting, fullgraph=True)
    for value in torch.linspace(0, 1, 20):
        soft_mask_alpha(compiled, float(value))
        torch.testing.assert_close(out(compiled), out(llama, alpha=float(soft_mask_alpha(llama))))
    assert len(graphs) == 1


def test_two_forward_passes_of_ddp_before_a_backward_pass(llama: nn.Module, tmp_path: Path) -> None:
    """As losses on pairs make them. DDP writes to buffers in each."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        soft_mask_alpha(llama, 0.3)
        parallel = nn.parallel.DistributedDataParallel(llama)
        (out(parallel) + out(parallel)).sum().backward()
        gradient = llama.layers[0].self_attn.q_proj.weight.grad.clone()
        llama.zero_grad()
        (out(llama, alpha=float(soft_mask_alpha(parallel))) * 2).sum().backward()
        torch.testing.assert_close(gradient, llama.layers[0].self_attn.q_proj.weight.grad)
    finally:
        dist.destroy_process_group()


def test_every_layer_reads_it(llama: nn.Module) -> None:
    soft_mask_alpha(llama.layers[0], 0.3)
    soft_mask_alpha(llama, 0.9)
    assert torch.equal(out(llama), out(llama, alpha=float(torch.tensor(0.9))))
    llama.layers[1] = families.model("llama", NAME).layers[1]
    soft_mask_alpha(llama, 0.5)
    assert torch.equal(out(llama), out(llama, alpha=0.5))
    other = families.model("llama", NAME)
    soft_mask_alpha(other, 0.5)
    other.set_attn_implementation("sdpa")
    with pytest.raises(ValueError, match="no layer for tokens uses conan_soft_mask"):
        soft_mask_alpha(other, 0.5)


def test_what_cannot_work_is_refused(llama: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"alpha must be in \[0, 1\], got 2"):
        soft_mask_alpha(llama, 2)
    with pytest.raises(ValueError, match=r"alpha must be in \[0, 1\], got nan"):
        soft_mask_alpha(llama, torch.tensor(float("nan")))
    for function in (soft_mask_alpha, mark_bidirectional):
        with pytest.raises(ValueError, match="no layer for tokens uses conan_soft_mask"):
            function(families.model("llama", "sdpa"))
    with pytest.raises(ValueError, match="meta device"):
        soft_mask_alpha(llama.to("meta"))
    two = nn.ModuleList([families.model("llama", NAME), families.model("llama", NAME)])
    for model in two:
        soft_mask_alpha(model, 0.5)
    with pytest.raises(ValueError, match="one alpha, got 2"):
        soft_mask_alpha(two)
