"""Stage 2: supervised fine-tuning, next-token prediction on the outputs of instructions, under the causal mask."""

from collections.abc import Sequence

from transformers import LlamaForCausalLM

from train.data.rows import Instruction
from train.loop import StageContext
from train.metrics import Values
from train.recipe import SftRecipe
from train.sampling import SourceSampler
from train.stages.next_token import NextTokenStage, unigram_bias
from train.tokenizer import END_ID

# Rows whose outputs are counted for the unigram bias.
UNIGRAM_ROWS = 20_000


class Sft(NextTokenStage[SftRecipe]):
    """The prompt (instruction and input) is context only; the loss is on the output."""

    name = "sft"
    sampler: SourceSampler

    def __init__(self, recipe: SftRecipe, source_rows: Sequence[Sequence[Instruction]], context: StageContext) -> None:
        """`source_rows`: per source of the recipe its rows."""
        self.recipe, self.context, self._source_rows = recipe, context, source_rows
        languages = [[row.language for row in rows] for rows in source_rows]
        self.sampler = SourceSampler(recipe.sources, languages, (context.seed, 2))
        if recipe.unigram_bias:
            steps = SourceSampler(recipe.sources, languages, (context.seed, 6)).take_rows(UNIGRAM_ROWS)
            texts = [source_rows[source][i].output for source, rows in steps for i in rows]
            outputs = context.tokenizer.encode_batch(texts, add_special_tokens=False)
            bias = unigram_bias((output.ids for output in outputs), context.tokenizer.get_vocab_size())
            self.logit_bias = bias.to(context.device)

    def backward(self, model: LlamaForCausalLM, step: int) -> tuple[Values, int]:
        source, indices = self.sampler.take()
        rows = [self._source_rows[source][i] for i in indices]
        encode = self.context.tokenizer.encode_batch
        prompts = encode([row.as_pair().query + "\n" for row in rows], add_special_tokens=False)
        outputs = encode([row.output for row in rows], add_special_tokens=False)
        limit = self.recipe.sources[source].max_length
        # Truncate the prompt to half of max_length, so that there is output to learn.
        prompt_ids = [prompt.ids[: limit // 2] for prompt in prompts]
        sequences = [(p + o.ids)[: limit - 1] + [END_ID] for p, o in zip(prompt_ids, outputs, strict=True)]
        return self.backward_next_token(model, sequences, [len(p) for p in prompt_ids])
