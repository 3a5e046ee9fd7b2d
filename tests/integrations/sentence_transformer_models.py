"""A small SentenceTransformer with random weights, its texts, and what a loss does to it."""

import torch
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CONFIG_MAPPING, AutoModel, PreTrainedTokenizerFast

DIM = 16
WORDS = [f"w{i}" for i in range(40)]


def small_tokenizer():
    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=64
    )


def _config(architecture, dropout):
    sizes = {
        "vocab_size": len(WORDS) + 2,
        "hidden_size": DIM,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
    }
    if architecture in ("bert", "xlm-roberta"):
        sizes |= {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    else:
        sizes |= {"attention_dropout": dropout, "bos_token_id": 1, "eos_token_id": 1}
    return CONFIG_MAPPING[architecture](**sizes)


def small_model(folder, architecture="bert", dropout=0.1, **options):
    """Mean pooling over a model of two layers with seed 0, on the CPU; written to `folder` and loaded from there."""
    torch.manual_seed(0)
    AutoModel.from_config(_config(architecture, dropout)).save_pretrained(folder)
    small_tokenizer().save_pretrained(folder)
    return SentenceTransformer(str(folder), device="cpu", **options)


def texts(count, seed):
    """`count` texts of 1 to 12 random words; the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 13, (count,), generator=generator).tolist()
    return [" ".join(WORDS[i] for i in torch.randint(len(WORDS), (n,), generator=generator)) for n in lengths]


def features(model, columns):
    """Lists of texts as a loss takes them."""
    preprocess = getattr(model, "preprocess", None) or model.tokenize  # sentence-transformers before 5.4
    return [preprocess(column) for column in columns]


def value_and_gradients(loss, columns, labels=None, model=None):
    """(loss, gradients of all parameters by name) in training mode; dropout and all else random start from a seed."""
    model = model or loss.model
    model.train()
    model.zero_grad()
    torch.manual_seed(1)
    value = loss(features(getattr(model, "module", model), columns), labels)
    (0.7 * value).backward()
    return value.detach(), {name: x.grad.clone() for name, x in model.named_parameters() if x.grad is not None}


def assert_equal(mine, other, tolerance=1e-6):
    """Of two results of value_and_gradients: relative errors, of a gradient by its norm beside that of all."""
    torch.testing.assert_close(mine[0], other[0], rtol=tolerance, atol=0, check_dtype=False)
    assert mine[1].keys() == other[1].keys() and mine[1]
    scale = torch.stack([x.norm() for x in other[1].values()]).norm()
    assert scale > 1e-3
    for name, grad in other[1].items():
        assert (mine[1][name] - grad).norm() <= tolerance * scale, name
