"""Stage 1: next-token prediction on plain text, under the causal mask."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tqdm import tqdm
from transformers import LlamaForCausalLM

from train.loop import StageContext
from train.metrics import Values
from train.recipe import PretrainRecipe
from train.sampling import MixtureSampler
from train.stages.next_token import NextTokenStage, unigram_bias
from train.tokenizer import END_ID

# Up to max_length tokens, as pieces of different texts.
Window = list[list[int]]


class Pretrain(NextTokenStage[PretrainRecipe]):
    """Each source's texts are concatenated in random order and cut into windows of max_length tokens.

    A step has batch_size windows. Tokens do not attend to other texts.
    """

    name = "pretrain"
    sampler: MixtureSampler

    def __init__(self, recipe: PretrainRecipe, source_texts: Sequence[Sequence[str]], context: StageContext) -> None:
        """`source_texts`: per source of the recipe its texts."""
        self.recipe, self.context = recipe, context
        self._windows: list[Window] = []
        windows_of_source: dict[str, NDArray[np.int64]] = {}
        for number, texts in enumerate(source_texts):
            first = len(self._windows)
            order = np.random.default_rng((context.seed, number)).permutation(len(texts))
            self._windows += _cut_windows([texts[i] for i in order], context.tokenizer, recipe.max_length)
            windows_of_source[str(number)] = np.arange(first, len(self._windows))
        shares = {str(number): source.weight for number, source in enumerate(recipe.sources)}
        self.sampler = MixtureSampler(windows_of_source, shares, (context.seed, 1))
        if recipe.unigram_bias:
            pieces = (piece for window in self._windows for piece in window)
            self.logit_bias = unigram_bias(pieces, context.tokenizer.get_vocab_size()).to(context.device)

    def backward(self, model: LlamaForCausalLM, step: int) -> tuple[Values, int]:
        windows = self.sampler.take(self.recipe.batch_size)
        # A piece of one token has no next token.
        pieces = [piece for i in windows for piece in self._windows[i] if len(piece) > 1]
        return self.backward_next_token(model, pieces, [0] * len(pieces))


def _cut_windows(texts: Sequence[str], tokenizer: Tokenizer, length: int) -> list[Window]:
    windows: list[Window] = []
    window: Window = []
    room = length
    for start in tqdm(range(0, len(texts), 1000), desc="  tokenize", unit="k texts", dynamic_ncols=True, leave=False):
        for encoded in tokenizer.encode_batch(list(texts[start : start + 1000]), add_special_tokens=False):
            ids = [*encoded.ids, END_ID]
            while ids:
                window.append(ids[:room])
                ids = ids[room:]
                room -= len(window[-1])
                if room == 0:
                    windows.append(window)
                    window, room = [], length
    # The last, shorter window is dropped unless it is the only one.
    return windows or [window]
