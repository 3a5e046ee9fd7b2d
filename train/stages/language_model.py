"""Stages 1 and 2: next-token prediction under the causal mask, on plain text and on the outputs of instructions."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from tqdm import tqdm
from transformers import LlamaForCausalLM

from train.data.rows import Instruction
from train.loop import Stage, autocast
from train.metrics import Values
from train.model import next_token_loss
from train.packing import pack, split_by_tokens
from train.recipe import PretrainRecipe, SftRecipe
from train.sampling import Grouped, SourceSampler
from train.tokenizer import END_ID

TokenList = list[int]

# Rows whose outputs are counted for SFT's unigram bias.
UNIGRAM_ROWS = 20_000


class _LanguageModelStage:
    """What both stages do with the sequences of a step."""

    device: torch.device
    precision: str
    logit_bias: Tensor | None = None

    def _backward(
        self,
        model: LlamaForCausalLM,
        sequences: Sequence[Sequence[int]],
        prompt_lengths: Sequence[int],
        micro_batch_tokens: int,
    ) -> tuple[Values, int]:
        num_targets = sum(len(s) - max(p, 1) for s, p in zip(sequences, prompt_lengths, strict=True))
        loss = torch.zeros((), device=self.device)
        parts = split_by_tokens([len(s) for s in sequences], micro_batch_tokens)
        for part in parts:
            batch = pack([sequences[i] for i in part], self.device, prompt_lengths=[prompt_lengths[i] for i in part])
            with autocast(self.device, self.precision):
                part_loss = next_token_loss(model, batch, num_targets, self.logit_bias)
            part_loss.backward()
            loss += part_loss.detach()
        return {"loss": loss, "alpha": 0.0}, sum(len(s) for s in sequences)


class Pretrain(_LanguageModelStage, Stage[PretrainRecipe]):
    """Stage 1. Each source's texts are laid end to end in random order and cut into windows of max_length tokens;
    no token sees another text, and a step is always batch_size windows."""

    name = "pretrain"

    def __init__(
        self,
        recipe: PretrainRecipe,
        texts_per_source: Sequence[Sequence[str]],
        tokenizer: Tokenizer,
        *,
        seed: int,
        device: torch.device,
        precision: str,
    ) -> None:
        self.recipe, self.device, self.precision = recipe, device, precision
        self._windows: list[list[TokenList]] = []  # each window: the pieces of texts in it
        groups: dict[str, Any] = {}
        for number, texts in enumerate(texts_per_source):
            first = len(self._windows)
            order = np.random.default_rng((seed, number)).permutation(len(texts))
            self._windows += _cut_windows([texts[i] for i in order], tokenizer, recipe.max_length)
            groups[str(number)] = np.arange(first, len(self._windows))
        weights = {str(n): source.weight for n, source in enumerate(recipe.sources)}
        self._sampler = Grouped(groups, weights, (seed, 1))
        if recipe.unigram_bias:
            pieces = (piece for window in self._windows for piece in window)
            self.logit_bias = unigram_bias(pieces, tokenizer.get_vocab_size()).to(device)

    def backward(self, model: LlamaForCausalLM, step: int) -> tuple[Values, int]:
        drawn = self._sampler.take(self.recipe.batch_size)
        # A piece of one token has nothing to predict.
        pieces = [piece for i in drawn for piece in self._windows[i] if len(piece) > 1]
        return self._backward(model, pieces, [0] * len(pieces), self.recipe.micro_batch_tokens)

    def state(self) -> dict[str, Any]:
        return self._sampler.state()

    def load_state(self, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self._sampler.load_state(state)


class Sft(_LanguageModelStage, Stage[SftRecipe]):
    """Stage 2. The prompt (instruction, input) is read, the output is learnt."""

    name = "sft"

    def __init__(
        self,
        recipe: SftRecipe,
        rows_per_source: Sequence[Sequence[Instruction]],
        tokenizer: Tokenizer,
        *,
        seed: int,
        device: torch.device,
        precision: str,
    ) -> None:
        self.recipe, self.device, self.precision, self._tokenizer = recipe, device, precision, tokenizer
        self._rows = rows_per_source
        languages = [[row.language for row in rows] for rows in rows_per_source]
        self._sampler = SourceSampler(recipe.sources, languages, (seed, 2))
        if recipe.unigram_bias:
            counted = SourceSampler(recipe.sources, languages, (seed, 6))
            drawn = [rows_per_source[turn][i].output for turn, rows in counted.several(UNIGRAM_ROWS) for i in rows]
            outputs = tokenizer.encode_batch(drawn, add_special_tokens=False)
            self.logit_bias = unigram_bias((o.ids for o in outputs), tokenizer.get_vocab_size()).to(device)

    def backward(self, model: LlamaForCausalLM, step: int) -> tuple[Values, int]:
        turn, drawn = self._sampler.take()
        rows = [self._rows[turn][i] for i in drawn]
        prompts = self._tokenizer.encode_batch([prompt(row) for row in rows], add_special_tokens=False)
        outputs = self._tokenizer.encode_batch([row.output for row in rows], add_special_tokens=False)
        limit = self.recipe.sources[turn].max_length
        # The prompt gives way first: without an output token there is nothing to learn.
        given = [p.ids[: limit // 2] for p in prompts]
        sequences = [(p + o.ids)[: limit - 1] + [END_ID] for p, o in zip(given, outputs, strict=True)]
        return self._backward(model, sequences, [len(p) for p in given], self.recipe.micro_batch_tokens)

    def state(self) -> dict[str, Any]:
        return self._sampler.state()

    def load_state(self, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self._sampler.load_state(state)


def unigram_bias(sequences: Iterable[Sequence[int]], vocab_size: int) -> Tensor:
    """Log of each token's relative frequency [vocab_size], every token counted once more than it occurs; each
    sequence has one END_ID beside its tokens."""
    counts = np.ones(vocab_size)
    for sequence in sequences:
        np.add.at(counts, sequence, 1)
        counts[END_ID] += 1
    return torch.from_numpy(np.log(counts / counts.sum())).float()


def prompt(row: Instruction) -> str:
    """What the model is given: instruction and input, each on lines of its own."""
    return row.as_pair().query + "\n"


def _cut_windows(texts: Sequence[str], tokenizer: Tokenizer, length: int) -> list[list[TokenList]]:
    windows: list[list[TokenList]] = []
    window: list[TokenList] = []
    room = length
    for start in tqdm(range(0, len(texts), 1000), desc="  tokenise", unit="k texts", dynamic_ncols=True, leave=False):
        for encoded in tokenizer.encode_batch(list(texts[start : start + 1000]), add_special_tokens=False):
            ids = [*encoded.ids, END_ID]
            while ids:
                window.append(ids[:room])
                ids = ids[room:]
                room -= len(window[-1])
                if room == 0:
                    windows.append(window)
                    window, room = [], length
    # The last, shorter window counts only where it is all there is.
    return windows or [window]
