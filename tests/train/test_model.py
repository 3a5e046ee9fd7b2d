"""The model: packing changes no result, masks reach every layer, and other libraries load what we save."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from transformers import AutoModel, LlamaForCausalLM

from conan_fast import _backends
from conan_fast.integrations.transformers import NAME
from train.embedding_loss import EmbedSettings, backward_through_embeddings
from train.evaluation.encoder import ModelEncoder
from train.model import build_model, embed, hidden_states, load_model, next_token_loss
from train.packing import Packed, pack, split_by_tokens
from train.recipe import ModelRecipe, load_recipe
from train.stages.next_token import unigram_bias
from train.tokenizer import load_tokenizer

RECIPE = ModelRecipe(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
    max_position_embeddings=64,
)  # fmt: skip
SEQUENCES = [[5, 6, 7, 8, 9], [3], [11, 12], [4, 4, 4, 4, 4, 4, 4, 4]]


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return build_model(RECIPE, vocab_size=50).double()


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_a_packed_sequence_gives_the_same_as_alone(model: LlamaForCausalLM, alpha: float) -> None:
    together = hidden_states(model, pack(SEQUENCES), alpha)
    alone = torch.cat([hidden_states(model, pack([s]), alpha) for s in SEQUENCES])
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-12)


def test_alpha_0_and_1_are_what_transformers_calls_causal_and_bidirectional(model: LlamaForCausalLM) -> None:
    ids = torch.tensor([SEQUENCES[0]])
    sdpa = build_model(RECIPE, vocab_size=50).double()
    sdpa.load_state_dict(model.state_dict())
    sdpa.set_attn_implementation("sdpa")
    causal = sdpa.model(ids).last_hidden_state[0]
    torch.testing.assert_close(hidden_states(model, pack(SEQUENCES[:1]), 0.0), causal)
    everything = torch.zeros(1, 1, 5, 5, dtype=torch.float64)
    bidirectional = sdpa.model(ids, attention_mask=everything).last_hidden_state[0]
    torch.testing.assert_close(hidden_states(model, pack(SEQUENCES[:1]), 1.0), bidirectional)


def test_padded_batches_of_other_programs_work(model: LlamaForCausalLM) -> None:
    width = max(map(len, SEQUENCES))
    ids = torch.zeros(len(SEQUENCES), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(SEQUENCES):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        mask[row, : len(sequence)] = 1
    padded = model.model(ids, attention_mask=mask, alpha=0.3).last_hidden_state[mask.bool()]
    torch.testing.assert_close(padded, hidden_states(model, pack(SEQUENCES), 0.3))


def test_attention_refuses_what_it_would_get_wrong(model: LlamaForCausalLM) -> None:
    with pytest.raises(ValueError, match="packed batch has one row, got 2"):
        model.model(torch.ones(2, 3, dtype=torch.long), cu_seq_lens_q=torch.tensor([0, 3]), max_length_q=3)
    with pytest.raises(ValueError, match="max_length_q: goes with cu_seq_lens_q"):
        model.model(torch.ones(1, 3, dtype=torch.long), cu_seq_lens_q=torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="does not generate from a cache"):
        model.generate(torch.ones(1, 3, dtype=torch.long), max_new_tokens=2, use_cache=True)


def test_the_demos_model_runs_on_the_kernels_as_it_is(emulated: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU does with the recipe "tiny" under bf16 autocast, on the emulated kernels."""
    torch.manual_seed(0)
    demo = build_model(load_recipe("tiny", {}).model, vocab_size=50)
    calls = []

    def embeddings_and_gradients(backend: str) -> list[torch.Tensor]:
        def choose(asked: str, device: torch.device, refusal: Callable[[str], Exception | None]) -> str:
            calls.append(backend)
            error = None if backend == "torch" else refusal(backend)
            assert error is None, error
            return backend

        monkeypatch.setattr(_backends, "choose", choose)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = embed(demo, pack(SEQUENCES), 0.4)
        grads = torch.autograd.grad(out.square().sum(), list(demo.model.parameters()))
        return [out.detach(), *grads]

    on_torch, on_kernels = embeddings_and_gradients("torch"), embeddings_and_gradients("emulated")
    assert calls.count("emulated") == demo.config.num_hidden_layers
    for mine, other in zip(on_kernels, on_torch, strict=True):
        assert (mine - other).norm() <= 0.02 * other.norm()


def test_autocast_reaches_the_attention(model: LlamaForCausalLM) -> None:
    single = build_model(RECIPE, vocab_size=50)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = embed(single, pack(SEQUENCES), 0.5)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, embed(single, pack(SEQUENCES), 0.5), rtol=0.1, atol=0.1)


def test_mean_pooling(model: LlamaForCausalLM) -> None:
    hidden = hidden_states(model, pack(SEQUENCES), 1.0).float()
    expected = torch.stack([part.mean(0) for part in hidden.split([len(s) for s in SEQUENCES])])
    torch.testing.assert_close(embed(model, pack(SEQUENCES), 1.0), expected)


def test_next_token_loss_is_that_of_transformers(model: LlamaForCausalLM) -> None:
    ids = torch.tensor([SEQUENCES[3]])
    expected = model(ids, labels=ids).loss
    assert next_token_loss(model, pack(SEQUENCES[3:], with_labels=True), 7).item() == pytest.approx(expected.item())


def test_next_token_loss_in_chunks(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = pack(SEQUENCES, with_labels=True)

    def loss_and_gradient() -> tuple[float, torch.Tensor]:
        model.zero_grad()
        loss = next_token_loss(model, batch, 12)
        loss.backward()
        return loss.item(), model.lm_head.weight.grad.clone()

    whole = loss_and_gradient()
    monkeypatch.setattr("train.model.MAX_LOGITS", 3 * 50)
    chunked = loss_and_gradient()
    assert chunked[0] == pytest.approx(whole[0])
    torch.testing.assert_close(chunked[1], whole[1])


def test_unigram_bias_is_added_to_the_logits(model: LlamaForCausalLM) -> None:
    bias = unigram_bias([[1, 1, 2], [3]], 50)
    assert torch.allclose(bias.exp()[[1, 2, 3, 4]] * 56, torch.tensor([3.0, 2.0, 2.0, 1.0]))
    batch = pack(SEQUENCES[3:], with_labels=True)
    logits = model(torch.tensor(SEQUENCES[3:])).logits[0, :-1].float() + bias
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(SEQUENCES[3][1:]))
    assert next_token_loss(model, batch, 7, bias).item() == pytest.approx(expected.item())


def test_initial_scales_follow_the_recipe() -> None:
    torch.manual_seed(1)
    scaled = RECIPE.model_copy(update={"embedding_std": 0.5, "depth_scaled_init": True, "tie_word_embeddings": False})
    layers = build_model(scaled, vocab_size=2000).model
    assert layers.embed_tokens.weight.std().item() == pytest.approx(0.5, rel=0.05)
    projection = layers.layers[0].mlp.down_proj.weight
    assert projection.std().item() == pytest.approx(0.02 / 2, rel=0.1)  # two layers: sqrt(2 * 2)


def test_labels_stay_inside_a_sequence_and_after_the_prompt() -> None:
    batch = pack([[1, 2, 3], [4, 5, 6, 7]], prompt_lengths=[0, 2])
    skip = Packed.IGNORE
    assert batch.labels is not None
    assert batch.labels.tolist() == [2, 3, skip, skip, 6, 7, skip]
    with pytest.raises(ValueError, match="at least one token"):
        pack([[1], []])


def test_split_by_tokens() -> None:
    assert split_by_tokens([3, 3, 3, 9, 1], 6) == [[0, 1], [2], [3], [4]]
    assert split_by_tokens([], 6) == []


@pytest.mark.parametrize("micro_batch_tokens", [1, 6, 100])
def test_gradient_caching_gives_the_gradient_of_the_whole_batch(
    model: LlamaForCausalLM, micro_batch_tokens: int
) -> None:
    def gradients(tokens: int) -> tuple[float, list[torch.Tensor]]:
        model.zero_grad()
        settings = EmbedSettings(torch.device("cpu"), "fp32", tokens, alpha=0.7)
        loss = backward_through_embeddings(
            model, SEQUENCES, settings, lambda e: torch.logsumexp((e @ e.T).flatten() / 5, 0)
        )
        return loss.item(), [p.grad.clone() for p in model.parameters()]

    whole, parts = gradients(10**6), gradients(micro_batch_tokens)
    assert parts[0] == pytest.approx(whole[0])
    for a, b in zip(parts[1], whole[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


TEXTS = ["red house", "There is a blue river that green garden looks at", "pink", "über 東京"]


def test_finished_model_loads_elsewhere_and_gives_the_same_embeddings(small_run: Path) -> None:
    from sentence_transformers import SentenceTransformer

    folder = small_run / "run" / "weak" / "model"
    encoder = ModelEncoder(load_model(folder), load_tokenizer(folder), alpha=1.0, max_length=64, batch_tokens=64)
    ours = encoder.encode(TEXTS)
    ours /= np.linalg.norm(ours, axis=1, keepdims=True)
    theirs = SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(theirs, ours, atol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", NAME])
@pytest.mark.parametrize(("stage", "alpha"), [("sft", 0.0), ("weak", 1.0)])
def test_config_says_which_mask_the_model_ends_with(small_run: Path, attention: str, stage: str, alpha: float) -> None:
    folder = small_run / "run" / stage / "model"
    loaded = AutoModel.from_pretrained(folder, attn_implementation=attention, dtype=torch.float32)
    ids = torch.tensor([[7, 8, 9, 10]])
    expected = hidden_states(load_model(folder), pack(ids.tolist()), alpha)
    torch.testing.assert_close(loaded(ids).last_hidden_state[0], expected, rtol=1e-4, atol=1e-5)
