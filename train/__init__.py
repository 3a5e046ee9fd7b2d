"""Conan-Embedding-v2's training, from the tokenizer to the evaluated embedder: `python -m train --help`."""
