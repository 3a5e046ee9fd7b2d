"""sentence-transformers' flattened inputs with our attention: the same embeddings as padded ones."""

import pytest
import torch
from sentence_transformers import SentenceTransformer

from conan_fast.integrations.sentence_transformers import CachedInfoNCELoss, InfoNCELoss, unpad_inputs
from conan_fast.integrations.transformers import NAME, register
from tests.integrations.sentence_transformer_models import (
    assert_equal,
    features,
    small_model,
    small_tokenizer,
    texts,
    value_and_gradients,
)

pytest.importorskip("sentence_transformers.base", reason="sentence-transformers flattens inputs from 5.4 on")
register()


def model_with(attention, folder, architecture="llama"):
    model = small_model(folder, architecture, dropout=0.0, model_kwargs={"attn_implementation": attention})
    return model.double()


@pytest.mark.parametrize("architecture", ["llama", "bert", "xlm-roberta", "modernbert", "eurobert"])
def test_flattened_texts_have_the_embeddings_of_padded_ones(tmp_path, architecture):
    """Those of eager attention: causal in Llama, bidirectional in encoders. XLM-RoBERTa counts positions from 1."""
    expected = model_with("eager", tmp_path, architecture).encode(texts(9, 0), batch_size=4)
    model = model_with(NAME, tmp_path, architecture)
    unpad_inputs(model)
    column = features(model, [texts(9, 0)])[0]
    assert column["input_ids"].shape[0] == 1 and len(column["cu_seq_lens_q"]) == 10
    torch.testing.assert_close(model.encode(texts(9, 0), batch_size=4), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", [InfoNCELoss, CachedInfoNCELoss])
def test_the_losses_take_flattened_texts(tmp_path, kind):
    options = {"mini_batch_size": 3} if kind is CachedInfoNCELoss else {}
    columns = [texts(8, seed) for seed in range(3)]
    columns[1][2] = columns[1][5]
    padded = kind(model_with(NAME, tmp_path), mask_duplicates=True, **options)
    flattened = kind(model_with(NAME, tmp_path), mask_duplicates=True, **options)
    unpad_inputs(flattened.model)
    assert_equal(value_and_gradients(flattened, columns), value_and_gradients(padded, columns))


def test_a_saved_model_does_not_ask_for_it(tmp_path):
    """It depends on the attention, which is not saved either."""
    model = model_with(NAME, tmp_path / "made")
    unpad_inputs(model)
    model.save_pretrained(str(tmp_path / "saved"))
    assert "unpad_inputs" not in (tmp_path / "saved" / "sentence_bert_config.json").read_text()


def test_another_attention_is_refused(tmp_path):
    with pytest.raises(ValueError, match="needs a model with attn_implementation='conan_soft_mask', got 'eager'"):
        unpad_inputs(model_with("eager", tmp_path))


def test_other_modules_are_refused():
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding  # from 5.4 on

    words = StaticEmbedding(small_tokenizer(), embedding_dim=8)
    with pytest.raises(ValueError, match=r"needs the Transformer module .*, got .*StaticEmbedding"):
        unpad_inputs(SentenceTransformer(modules=[words], device="cpu"))
