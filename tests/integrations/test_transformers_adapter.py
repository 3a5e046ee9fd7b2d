"""The adapter: nothing that a model or a caller passes is ignored."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import masking_utils

from conan_fast.integrations.transformers import NAME, layout, mark_bidirectional, register, soft_mask_alpha
from conan_fast.integrations.transformers.attention import attention_forward
from tests.support import explicit_attention, families
from tests.support.families import GQA, LAYERS, SIZES

register()


def ids(batch: int, length: int) -> Tensor:
    return torch.randint(3, families.VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(0))


def built(config: transformers.PreTrainedConfig, implementation: str) -> nn.Module:
    torch.manual_seed(0)
    return transformers.AutoModel.from_config(copy.deepcopy(config), attn_implementation=implementation).double()


@pytest.fixture
def llama() -> nn.Module:
    return families.model("llama", NAME)


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"alhpa": 0.3}, TypeError, "unknown keyword, alhpa=float"),
        ({"window": torch.tensor(3)}, TypeError, "unknown keyword, window=Tensor"),
        ({"output_attentions": True}, ValueError, "output_attentions: conan_soft_mask does not support"),
        ({"softcap": 30.0}, ValueError, "softcap: conan_soft_mask does not support"),
        ({"s_aux": torch.zeros(4)}, ValueError, "s_aux: conan_soft_mask does not support attention sinks"),
        ({"position_bias": torch.zeros(1)}, ValueError, "position_bias: conan_soft_mask does not support"),
        ({"alpha": 1.5}, ValueError, r"alpha must be in \[0, 1\], got 1.5"),
        ({"saturation": "rows"}, ValueError, "saturation must be one of"),
        ({"attention_mask": torch.ones(1, 1, 6, 6)}, ValueError, r"attention_mask must have shape \[batch, length\]"),
        ({"cu_seq_lens_q": torch.tensor([0, 6])}, ValueError, "max_length_q: goes with cu_seq_lens_q"),
    ],
)
def test_refused_keywords_are_named(llama: nn.Module, keywords: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        llama(input_ids=ids(1, 6), **keywords)


def test_keywords_of_trainers_are_taken(llama: nn.Module) -> None:
    expected = families.hidden(llama, input_ids=ids(1, 6))
    more = {"num_items_in_batch": torch.tensor(3), "output_attentions": False, "output_hidden_states": True}
    assert torch.equal(families.hidden(llama, input_ids=ids(1, 6), **more), expected)


def test_the_message_about_dropout_names_the_models_own_field() -> None:
    for family, field in (("bert", "attention_probs_dropout_prob"), ("llama", "attention_dropout")):
        model = families.model(family, NAME, **{field: 0.1})
        with pytest.raises(ValueError, match=f"got 0.1; load the model with {field}=0"):
            model(input_ids=ids(1, 6))
        model.eval()(input_ids=ids(1, 6))


def test_models_that_need_more_than_the_soft_mask_are_refused() -> None:
    moe = {"num_local_experts": 2, "num_experts_per_tok": 1, "head_dim": 8}
    cohere = transformers.Cohere2Config(**GQA, sliding_window=4)
    cases = [
        (transformers.GptOssConfig(**{**GQA, **LAYERS}, **moe), "s_aux"),
        (transformers.T5Config(vocab_size=60, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4), "position_bias"),
        (cohere, "sliding_window: conan_soft_mask has no sliding window, got one of 4 and a sequence of 6 tokens"),
    ]
    for config, message in cases:
        model = built(config, NAME)
        inputs = {"decoder_input_ids": ids(1, 6)} if config.is_encoder_decoder else {}
        with pytest.raises(ValueError, match=message):
            model.eval()(input_ids=ids(1, 6), **inputs)


def test_a_window_that_layers_are_not_told_of_is_seen_in_the_mask() -> None:
    config = transformers.Qwen2MoeConfig(
        **{**GQA, **LAYERS}, use_sliding_window=True, num_experts=2, num_experts_per_tok=1, moe_intermediate_size=8,
        shared_expert_intermediate_size=8, max_window_layers=1,
    )  # fmt: skip
    config.sliding_window = 4
    with pytest.raises(ValueError, match="got one of 4 and a sequence of 6 tokens"):
        built(config, NAME)(input_ids=ids(1, 6))


def test_a_window_is_not_lost_with_a_copied_mask() -> None:
    """As accelerate copies masks for models on several devices."""
    config = transformers.Qwen2MoeConfig(
        **{**GQA, **LAYERS}, use_sliding_window=True, num_experts=2, num_experts_per_tok=1, moe_intermediate_size=8,
        shared_expert_intermediate_size=8, max_window_layers=1,
    )  # fmt: skip
    config.sliding_window = 4
    model = built(config, NAME).float()  # experts have no float64

    def copied(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, "attention_mask": kwargs["attention_mask"].clone()}

    for layer in model.layers:
        layer.register_forward_pre_hook(copied, with_kwargs=True)
    model(input_ids=ids(1, 4))
    with pytest.raises(ValueError, match="got one of 4 and a sequence of 6 tokens"):
        model(input_ids=ids(1, 6))


def test_chunked_attention_is_refused_where_it_matters() -> None:
    layer = {"intermediate_size_mlp": 48, "num_local_experts": 1, "num_experts_per_tok": 1, "moe_layers": []}
    config = transformers.Llama4TextConfig(**GQA, **layer, attention_chunk_size=4, head_dim=8, no_rope_layers=[1, 0])
    model, own = built(config, NAME), built(config, "sdpa")
    with pytest.raises(ValueError, match="neither"):
        model(input_ids=ids(1, 6))
    short = {"input_ids": ids(1, 4)}
    torch.testing.assert_close(families.hidden(model, **short), families.hidden(own, **short))


def test_models_with_an_attention_of_their_own_are_refused_when_they_are_built() -> None:
    for config in (transformers.BloomConfig(), transformers.MPNetConfig(), transformers.DebertaV2Config()):
        with pytest.raises(ValueError, match="has an attention of its own"), torch.device("meta"):
            transformers.AutoModel.from_config(config, attn_implementation=NAME)


def test_keywords_that_a_model_does_not_pass_to_its_layers_are_refused() -> None:
    model = built(transformers.StableLmConfig(**GQA), NAME)
    for keyword in ({"alpha": 0.3}, {"is_causal": False}):
        with pytest.raises(ValueError, match=f"{next(iter(keyword))}: the model does not pass it to StableLmAttention"):
            model(input_ids=ids(1, 6), **keyword)
    with pytest.raises(ValueError, match="cu_seq_lens_q: the model does not pass it"):
        model(input_ids=ids(1, 6), cu_seq_lens_q=torch.tensor([0, 3, 6], dtype=torch.int32), max_length_q=3)
    causal = families.hidden(model, input_ids=ids(1, 6))
    soft_mask_alpha(model, 1.0)
    assert not torch.allclose(families.hidden(model, input_ids=ids(1, 6)), causal)
    with pytest.raises(ValueError, match="does not pass is_causal on to its attention"):
        mark_bidirectional(model)


def test_towers_for_images_stay_bidirectional() -> None:
    text = transformers.Qwen2Config(**GQA)
    vision = transformers.SiglipVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=4
    )
    config = transformers.LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=59,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    ours, own = built(config, NAME), built(config, "sdpa")
    tokens = torch.cat([torch.full((1, 16), 59), torch.arange(3, 9)[None]], 1)
    batch = {"input_ids": tokens, "pixel_values": torch.randn(1, 3, 16, 16).double()}
    expected = families.hidden(own.eval(), **batch)
    for alpha in ({}, {"alpha": 0.0}):
        torch.testing.assert_close(families.hidden(ours.eval(), **batch, **alpha), expected)
    soft_mask_alpha(ours, 0.0)
    torch.testing.assert_close(families.hidden(ours, **batch), expected)
    soft_mask_alpha(ours, 0.5)
    assert not torch.allclose(families.hidden(ours, **batch), expected)


def test_a_mask_that_contradicts_the_layers_is_refused() -> None:
    """Here all tokens belong to one image, so that the model's own mask is bidirectional."""
    model = families.model("gemma3", NAME)
    block = {"block_sequence_ids": torch.zeros(1, 6, dtype=torch.int64)}
    arguments = {"inputs_embeds": torch.zeros(1, 6, 32), "attention_mask": None, "past_key_values": None}
    mask = masking_utils.create_causal_mask(model.config, **arguments, **block)
    attention = model.layers[1].self_attn
    with pytest.raises(ValueError, match="is causal, and the mask of this batch bidirectional; pass alpha"):
        attention(torch.zeros(1, 6, 32).double(), attention_mask=mask, position_embeddings=_rope(6))


def test_holes_in_the_mask_count_for_a_window() -> None:
    model = families.model("mistral", NAME, sliding_window=8)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0, 0, 1, 1, 1]])
    with pytest.raises(ValueError, match="got one of 8 and a sequence of 10 tokens"):
        model(input_ids=ids(1, 10), attention_mask=mask)


def test_layers_that_do_not_separate_packed_texts_are_refused() -> None:
    config = transformers.Lfm2Config(**GQA, full_attn_idxs=[1])
    model = built(config, NAME)
    families.hidden(model, input_ids=ids(2, 6))
    with pytest.raises(ValueError, match="packed texts: conan_soft_mask does not support models whose other layers"):
        model(input_ids=ids(1, 6), position_ids=torch.tensor([[0, 1, 2, 0, 1, 2]]))


def test_lengths_of_packed_texts_that_contradict_each_other_are_refused(llama: nn.Module) -> None:
    lengths = torch.tensor([0, 3, 6], dtype=torch.int32)
    cases: list[tuple[dict[str, Any], type, str]] = [
        (
            {"cu_seq_lens_q": lengths, "cu_seq_lens_k": torch.tensor([0, 2, 6]), "max_length_q": 3},
            RuntimeError,
            "must equal",
        ),
        (
            {"cu_seq_lens_q": lengths, "cu_seq_lens_k": torch.tensor([0, 6]), "max_length_q": 3},
            ValueError,
            "must equal",
        ),
        ({"cu_seq_lens_q": lengths.float(), "max_length_q": 3}, TypeError, "must be int32 or int64, got torch.float32"),
        ({"cu_seq_lens_k": lengths}, ValueError, "cu_seq_lens_q: goes with"),
        ({"max_length_q": 3}, ValueError, "cu_seq_lens_q: goes with"),
        ({"seq_idx": torch.tensor([[0, 0, 0, 1, 1, 1]])}, ValueError, "seq_idx: got several sequences"),
    ]
    for keywords, error, message in cases:
        with pytest.raises(error, match=message):
            llama(input_ids=ids(1, 6), **keywords)
    llama(input_ids=ids(1, 6), seq_idx=torch.zeros(1, 6, dtype=torch.int32))


def test_values_wider_than_queries_are_refused(llama: nn.Module) -> None:
    q, v = torch.zeros(1, 2, 6, 8), torch.zeros(1, 2, 6, 16)
    with pytest.raises(ValueError, match=r"values wider \(16\) than queries \(8\)"):
        attention_forward(llama.layers[0].self_attn, q, q, v, None)


def test_cross_attention_is_refused() -> None:
    q_former = transformers.Blip2QFormerConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48,
        encoder_hidden_size=32, cross_attention_frequency=1, attention_probs_dropout_prob=0, hidden_dropout_prob=0,
    )  # fmt: skip
    former = transformers.Blip2QFormerModel._from_config(q_former, attn_implementation=NAME)
    with pytest.raises(ValueError, match="decoders with cross-attention"):
        former(query_embeds=torch.zeros(1, 6, 32), encoder_hidden_states=torch.zeros(1, 6, 32))
    model = families.model("bert", NAME, is_decoder=True, add_cross_attention=True)
    with pytest.raises(ValueError, match="decoders with cross-attention"):
        model(input_ids=ids(1, 6), encoder_hidden_states=torch.zeros(1, 6, 32).double())


def test_generation_from_a_cache_is_refused() -> None:
    config = families.config("llama")
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=NAME)
    with pytest.raises(ValueError, match="does not generate from a cache, got 7 keys for 1 queries"):
        model.generate(ids(1, 6), max_new_tokens=3, do_sample=False)


def test_vision_towers_are_bidirectional() -> None:
    config = transformers.SiglipVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=4
    )
    ours, own = (transformers.SiglipVisionModel._from_config(config, attn_implementation=x) for x in (NAME, "sdpa"))
    own.load_state_dict(ours.state_dict())
    image = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(families.hidden(ours, pixel_values=image), families.hidden(own, pixel_values=image))


def test_multi_head_latent_attention_with_narrower_values() -> None:
    config = transformers.DeepseekV3Config(
        **SIZES, num_key_value_heads=4, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8,
        v_head_dim=8, first_k_dense_replace=2, n_routed_experts=2, n_group=1, topk_group=1, num_experts_per_tok=1,
    )  # fmt: skip
    batch = {"input_ids": ids(2, 6), "attention_mask": torch.tensor([[1] * 6, [1] * 4 + [0] * 2])}
    ours, own = (families.hidden(built(config, x), **batch) for x in (NAME, "sdpa"))
    torch.testing.assert_close(ours[0], own[0])
    torch.testing.assert_close(ours[1, :4], own[1, :4])


def test_is_causal_of_the_call_comes_before_that_of_the_layer(llama: nn.Module) -> None:
    found = families.hidden(llama, input_ids=ids(1, 6), is_causal=False)
    assert torch.equal(found, families.hidden(llama, input_ids=ids(1, 6), alpha=1.0))


def test_a_mask_with_holes_and_a_row_of_padding(llama: nn.Module) -> None:
    mask = torch.tensor([[0, 1, 1, 0, 1, 1], [0] * 6, [1] * 6])
    sequences = [(0, [1, 2, 4, 5]), (2, list(range(6)))]
    explicit = explicit_attention.register(explicit_attention.mask_of_sequences(3, 6, sequences, 0.4))
    batch = {"input_ids": ids(3, 6), "attention_mask": mask}
    ours, expected = (
        families.hidden(llama, **batch, alpha=0.4),
        families.hidden(families.model("llama", explicit), **batch),
    )
    for row, places in sequences:
        torch.testing.assert_close(ours[row, places], expected[row, places], rtol=1e-10, atol=1e-10)


def test_a_mask_beside_positions_that_begin_anew_is_refused(llama: nn.Module) -> None:
    positions = torch.tensor([[0, 1, 2, 0, 1, 2]])
    for mask in ([1] * 6, [1] * 5 + [0]):
        with pytest.raises(ValueError, match="attention_mask: got a mask and position_ids that begin anew"):
            llama(input_ids=ids(1, 6), attention_mask=torch.tensor([mask]), position_ids=positions)
    padded_left = {
        "attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1]]),
        "position_ids": torch.tensor([[1, 1, 0, 1, 2, 3]]),
    }
    llama(input_ids=ids(1, 6), **padded_left)


@pytest.mark.parametrize(
    "inputs",
    [
        {"attention_mask": torch.tensor([[1] * 6, [0] * 2 + [1] * 4])},
        {"attention_mask": torch.tensor([[1] * 6, [0] * 2 + [1] * 4]), "position_ids": torch.arange(6)[None]},
        {"position_ids": torch.tensor([[0, 1, 2, 0, 1, 2], [0, 1, 2, 3, 4, 5]])},
    ],
)
@pytest.mark.parametrize("is_causal", [True, False])
def test_the_layout_is_found_once_per_forward_pass(
    inputs: dict[str, Tensor], is_causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = families.model("llama", NAME, num_hidden_layers=5, is_causal=is_causal)
    found = []
    original = layout._find
    monkeypatch.setattr(layout, "_find", lambda segments: found.append(segments) or original(segments))
    for count in (1, 2):
        model(input_ids=ids(2, 6), **{name: value.clone() for name, value in inputs.items()})
        assert len(found) == count


def test_positions_that_were_overwritten_are_read_again(llama: nn.Module) -> None:
    """As a static buffer is for every batch."""
    positions = torch.arange(6)[None].clone()
    together = families.hidden(llama, input_ids=ids(1, 6), position_ids=positions)
    positions.copy_(torch.tensor([[0, 1, 2, 0, 1, 2]]))
    separate = families.hidden(llama, input_ids=ids(1, 6), position_ids=positions)
    torch.testing.assert_close(separate[:, 3:], families.hidden(llama, input_ids=ids(1, 6)[:, 3:]))
    assert not torch.allclose(separate, together)


def test_positions_that_are_none_of_texts_are_refused() -> None:
    model = families.model("llama", NAME, is_causal=False)
    for positions in ([0, 0, 0, 0, 0, 0], [0, 2, 4, 1, 3, 5], [5, 4, 3, 2, 1, 0]):
        with pytest.raises(ValueError, match="position_ids: expected those of texts"):
            model(input_ids=ids(1, 6), position_ids=torch.tensor([positions]))
    with pytest.raises(ValueError, match="by axis of an image"):
        families.model("llama", NAME).layers[0](
            torch.zeros(1, 6, 32).double(), position_ids=torch.zeros(3, 1, 6), position_embeddings=_rope(6)
        )


def _rope(length: int) -> tuple[Tensor, Tensor]:
    return torch.ones(1, length, 8).double(), torch.zeros(1, length, 8).double()


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing(use_reentrant: bool) -> None:
    batch = {"input_ids": ids(2, 6), "attention_mask": torch.tensor([[1] * 6, [1] * 4 + [0] * 2])}
    gradients = []
    for checkpointing in (False, True):
        model = families.model("llama", NAME)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
            model.enable_input_require_grads()
        families.hidden(model, **batch, alpha=0.3).sum().backward()
        gradients.append(model.layers[0].self_attn.q_proj.weight.grad)
    torch.testing.assert_close(*gradients)


def test_compiled_models_are_right_for_every_kind_of_batch(llama: nn.Module) -> None:
    compiled = torch.compile(llama, backend="aot_eager", fullgraph=True)
    mask = torch.tensor([[0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    positions = torch.tensor([[0, 1, 2, 0, 1, 2], [0, 1, 0, 1, 2, 3]])
    for more in ({}, {"attention_mask": mask}, {"position_ids": positions}):
        batch = {"input_ids": ids(2, 6), "alpha": torch.tensor(0.3), **more}
        ours, expected = families.hidden(compiled, **batch), families.hidden(llama, **batch)
        tokens = more.get("attention_mask", torch.ones(2, 6)) != 0
        torch.testing.assert_close(ours[tokens], expected[tokens])
    for family in ("modernbert", "distilbert"):  # whose layers do not get position_ids
        if family == "distilbert":
            encoder = built(
                transformers.DistilBertConfig(vocab_size=60, dim=32, n_heads=4, hidden_dim=48, n_layers=1), NAME
            )
        else:
            encoder = families.model(family, NAME)
        compiled_encoder = torch.compile(encoder.eval(), backend="aot_eager")
        for more in ({}, {"position_ids": positions[:1]}):
            with pytest.raises(ValueError, match=r"under torch\.compile pass one, 1 for every token"):
                families.hidden(compiled_encoder, input_ids=ids(1, 6), **more)
        torch._dynamo.reset()  # it does not trace again what could not be traced
        ones = {"input_ids": ids(1, 6), "attention_mask": torch.ones(1, 6)}
        torch.testing.assert_close(families.hidden(compiled_encoder, **ones), families.hidden(encoder, **ones))
    with pytest.raises(RuntimeError, match="begin anew within its sequences"):
        families.hidden(compiled, input_ids=ids(1, 6), attention_mask=torch.ones(1, 6), position_ids=positions[:1])
