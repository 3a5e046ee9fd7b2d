"""Names of cases, for lines and tables."""

from __future__ import annotations

from typing import Any

MICRO_BATCH_TOKENS = 16_384  # of one forward pass of a training step, where nothing else is said


def label(suite: str, case: dict[str, Any]) -> str:
    """One case of a suite, as its row in a result says it."""
    if suite == "attention":
        return "L={length} D={head_dim} B={batch}".format_map(case)
    if suite == "contrastive":
        dims = len(case["dims"])
        return "N={pairs} K={negatives} D={dim}".format_map(case) + f", {dims} dim{'s' * (dims != 1)}"
    text = "{model}, {stage}, {batch_size} pairs, {tokens} tokens".format_map(case)
    size = case.get("micro_batch_tokens", MICRO_BATCH_TOKENS)
    return text if size == MICRO_BATCH_TOKENS else f"{text} in parts of {size}"
