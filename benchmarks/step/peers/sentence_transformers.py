"""sentence-transformers' own trainer on the same weights, one optimiser step at a time.

It has no soft mask: in the weak stage its attention is bidirectional, and it is a bound. Its trainer collates,
tokenises, embeds, clips and steps as usual; only logging, saving and reporting are off. A step lasts from one
`on_step_end` to the next. Batches of more than a micro-batch, padded, use its gradient caching
(CachedMultipleNegativesRankingLoss), smaller ones do not.
"""

from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, RandomSampler
from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast, PrinterCallback, TrainerCallback
from transformers.utils import logging

from benchmarks.step.implementation import Running, StepImplementation
from benchmarks.step.stepwise import Pause, Stepwise
from benchmarks.step.task import Task
from benchmarks.suite import NotRun
from train.loop import autocast, make_optimizer
from train.tokenizer import END_ID, END_OF_TEXT

MAX_STEPS = 10_000


class SentenceTransformers(Running):
    def __init__(self, task: Task) -> None:
        import accelerate  # noqa: F401  without it the trainer raises another error
        import datasets  # noqa: F401
        from sentence_transformers import SentenceTransformer, SentenceTransformerModelCardData
        from sentence_transformers.sentence_transformer.modules import Pooling

        self.task = task
        self.llama = task.model().model
        self.llama.config._attn_implementation = "sdpa"
        self.llama.config.is_causal = False
        self.llama.config.pad_token_id = END_ID  # as its tokenizer has it
        self.folder = TemporaryDirectory(prefix="conan_fast_step_", ignore_cleanup_errors=True)
        transformer = _transformer(self.llama, task, self.folder.name)
        pooling = Pooling(self.llama.config.hidden_size, "mean")
        card = SentenceTransformerModelCardData()
        card.widget = [{"text": "none"}]  # else it takes examples of the data for a model card, with a progress bar
        self.model = SentenceTransformer(modules=[transformer, pooling], device=str(task.device), model_card_data=card)
        module: Any = self.model
        self.optimizer = make_optimizer(module, task.stage_recipe())
        self._stepwise: Stepwise | None = None

    def backward(self, task: Task) -> Tensor:
        columns = [self.model.preprocess(column) for column in task.texts.columns().values()]
        move = lambda x: x.to(task.device) if isinstance(x, Tensor) else x  # noqa: E731
        features = [{name: move(x) for name, x in column.items()} for column in columns]
        with autocast(task.device, task.precision):  # the trainer's also covers the second pass of a cached loss
            loss = _loss(self.model, task)(features, None)
            loss.backward()
        return loss.detach()

    def step(self) -> None:
        if self._stepwise is None:
            trainer = _trainer(self.model, self.optimizer, self.task, self.folder.name)
            self._stepwise = Stepwise(lambda pause: _train(trainer, pause))
        self._stepwise.advance()


def _transformer(llama: LlamaModel, task: Task, folder: str) -> Any:
    """Its Transformer module around the given model, in place of the very small one that it loads from a folder."""
    from sentence_transformers.sentence_transformer.modules import Transformer

    tokenizer = PreTrainedTokenizerFast(
        **dict.fromkeys(("pad_token", "eos_token"), END_OF_TEXT),
        tokenizer_object=task.texts.tokenizer,
        padding_side="right",
        model_max_length=task.texts.max_length,
        model_input_names=["input_ids", "attention_mask"],
    )
    logging.disable_progress_bar()
    tiny: dict[str, Any] = dict.fromkeys(("hidden_size", "intermediate_size", "vocab_size"), 8)
    tiny |= {"num_hidden_layers": 1, "num_attention_heads": 1, "is_causal": False}
    LlamaModel(LlamaConfig(**tiny, max_position_embeddings=task.texts.max_length)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    transformer = Transformer(folder)
    transformer.model = llama
    return transformer


def _loss(model: Any, task: Task) -> torch.nn.Module:
    from sentence_transformers.sentence_transformer import losses

    recipe = task.stage_recipe()
    longest = max(len(sequence) for sequence in task.texts.sequences())
    options: dict[str, Any] = {"scale": 1 / recipe.temperature}
    cached = longest * len(task.texts.sequences()) > task.micro_batch_tokens
    if cached:
        options["mini_batch_size"] = max(1, task.micro_batch_tokens // longest)
    name = "CachedMultipleNegativesRankingLoss" if cached else "MultipleNegativesRankingLoss"
    loss = getattr(losses, name)(model, **options)
    return losses.MatryoshkaLoss(model, loss, recipe.dims) if recipe.dims else loss


def _trainer(model: Any, optimizer: torch.optim.Optimizer, task: Task, folder: str) -> Any:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments

    rows = len(task.texts.rows)
    in_new_order = RandomSampler(range(rows), num_samples=rows * MAX_STEPS, generator=torch.Generator().manual_seed(0))
    sampler: Any = lambda *_, **__: BatchSampler(in_new_order, rows, drop_last=True)  # noqa: E731  all rows each time
    quiet: dict[str, Any] = {"logging_strategy": "no", "save_strategy": "no", "report_to": "none", "disable_tqdm": True}
    arguments = SentenceTransformerTrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=rows,
        max_steps=MAX_STEPS,
        batch_sampler=sampler,
        bf16=task.dtype == torch.bfloat16,
        use_cpu=task.device.type == "cpu",
        dataloader_pin_memory=task.device.type == "cuda",
        max_grad_norm=task.stage_recipe().max_grad_norm,
        logging_nan_inf_filter=False,  # would wait for the GPU to look at the loss
        **quiet,
    )
    if arguments.n_gpu > 1:
        raise NotRun("would use all GPUs; set CUDA_VISIBLE_DEVICES to one of them")
    trainer = SentenceTransformerTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict(task.texts.columns()),
        loss=_loss(model, task),
        optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _train(trainer: Any, pause: Pause) -> None:
    class HandOver(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            pause()

    trainer.add_callback(HandOver())  # after the trainer's own
    trainer.train()


ABOUT = "its trainer, (Cached)MultipleNegativesRankingLoss"
MASKED, UNMASKED = f"{ABOUT} in MatryoshkaLoss, SDPA", f"{ABOUT}, SDPA without the soft mask"
NAME = "sentence_transformers"
IMPLEMENTATIONS = (
    StepImplementation(NAME, "rival", MASKED, SentenceTransformers, stages=("supervised",)),
    StepImplementation(f"{NAME}_unmasked", "bound", UNMASKED, SentenceTransformers, alpha=1.0, stages=("weak",)),
)
