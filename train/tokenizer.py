"""Byte-level BPE tokenizer, trained with `tokenizers` on a sample of the pretraining text."""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
END_ID = 0  # special tokens come first in the vocabulary


def train_tokenizer(texts: Sequence[str], *, vocab_size: int, max_texts: int, seed: int) -> Tokenizer:
    """Train on a random sample of at most `max_texts` texts; every encoding ends with END_OF_TEXT."""
    if len(texts) > max_texts:
        texts = random.Random(seed).sample(texts, max_texts)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # so that no byte is unknown
        show_progress=False,
    )

    def batches() -> Iterator[Sequence[str]]:
        for start in tqdm(range(0, len(texts), 1000), desc=" tokenizer", unit="k texts", dynamic_ncols=True):
            yield texts[start : start + 1000]

    tokenizer.train_from_iterator(batches(), trainer, length=len(texts))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END_OF_TEXT}", special_tokens=[(END_OF_TEXT, END_ID)]
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, *, max_length: int) -> None:
    """Write the files for `AutoTokenizer` and `SentenceTransformer`."""
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(folder)


def load_tokenizer(folder: Path) -> Tokenizer:
    """Raises FileNotFoundError if no tokenizer was trained yet."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file}: not found; first run: python -m train tokenizer")
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def token_ids(tokenizer: Tokenizer, texts: Sequence[str], max_length: int) -> list[list[int]]:
    """Token ids of each text, truncated to `max_length` including the END_OF_TEXT at the end (so none is empty)."""
    encoded = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    return [e.ids[: max_length - 1] + [END_ID] for e in encoded]
