"""Files that make a saved transformers model load as `SentenceTransformer(folder)`: mean pooling, then unit length."""

import json
from pathlib import Path


def write_module_files(folder: Path, hidden_size: int, max_length: int) -> None:
    """Add the module list of sentence-transformers to a folder with config.json, weights and a tokenizer.

    Args:
        hidden_size: dimension of the embeddings.
        max_length: tokens kept of each text.
    """
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
    ]
    pooling = {"word_embedding_dimension": hidden_size, "pooling_mode_mean_tokens": True}
    _write(folder / "modules.json", modules)
    _write(folder / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    _write(folder / "1_Pooling" / "config.json", pooling)
    (folder / "2_Normalize").mkdir(exist_ok=True)


def _write(file: Path, value: object) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(value, indent=2) + "\n")
