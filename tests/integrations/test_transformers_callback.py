"""The soft mask in both trainers: alpha by step, resumed, saved; and what loads a saved model."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.losses import MultipleNegativesRankingLoss
from sentence_transformers.models import Pooling, Transformer
from torch import Tensor, nn

from conan_fast.integrations.transformers import NAME, SoftMaskCallback, mark_bidirectional, register, soft_mask_alpha
from tests.support import families
from tests.support.small_tokenizer import WORDS, small_tokenizer

register()
STEPS = 6
RAISED = [step / (STEPS - 1) for step in range(STEPS)]
random_texts = random.Random(0)
TEXTS = [" ".join(random_texts.choices(WORDS, k=random_texts.randint(3, 9))) for _ in range(24)]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small causal Llama and its tokenizer."""
    folder = tmp_path_factory.mktemp("start")
    torch.manual_seed(0)
    transformers.AutoModel.from_config(families.config("llama")).save_pretrained(folder)
    small_tokenizer().save_pretrained(folder)
    return folder


class PairTrainer(transformers.Trainer):
    """A loss on mean-pooled embeddings, as somebody would write it on top of `Trainer`."""

    def compute_loss(self, model: nn.Module, inputs: Any, *_: Any, **__: Any) -> Tensor:
        hidden = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
        mask = inputs["attention_mask"][..., None]
        pooled = nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
        return nn.functional.cross_entropy(pooled[::2] @ pooled[1::2].T / 0.1, torch.arange(len(pooled) // 2))


def pair_trainer(start: Path, output: Path, callback: SoftMaskCallback) -> PairTrainer:
    model = transformers.AutoModel.from_pretrained(start, attn_implementation=NAME)
    tokenizer = transformers.AutoTokenizer.from_pretrained(start)
    data = [dict(tokenizer(text)) for text in TEXTS]
    arguments = transformers.TrainingArguments(
        output, max_steps=STEPS, per_device_train_batch_size=4, logging_steps=1, save_steps=3, report_to=[],
        use_cpu=True, remove_unused_columns=False, learning_rate=1e-2, disable_tqdm=True,
    )  # fmt: skip
    return PairTrainer(
        model,
        arguments,
        transformers.DataCollatorWithPadding(tokenizer),
        data,
        callbacks=[callback],  # type: ignore
    )


def sentence_trainer(start: Path, output: Path, callback: SoftMaskCallback) -> SentenceTransformerTrainer:
    transformer = Transformer(str(start), model_args={"attn_implementation": NAME})
    model = SentenceTransformer(modules=[transformer, Pooling(32, "mean")], device="cpu")
    data = Dataset.from_dict({"anchor": TEXTS[::2], "positive": TEXTS[1::2]})
    arguments = SentenceTransformerTrainingArguments(
        str(output), max_steps=STEPS, per_device_train_batch_size=4, logging_steps=1, save_steps=3, report_to=[],
        use_cpu=True, learning_rate=1e-2, disable_tqdm=True,
    )  # fmt: skip
    return SentenceTransformerTrainer(
        model, arguments, train_dataset=data, loss=MultipleNegativesRankingLoss(model), callbacks=[callback]
    )


def logged(trainer: transformers.Trainer) -> list[float]:
    return [entry["soft_mask_alpha"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("make", [pair_trainer, sentence_trainer])
def test_alpha_follows_the_steps_and_a_resumed_run_goes_on_with_it(make: Any, start: Path, tmp_path: Path) -> None:
    trainer = make(start, tmp_path, SoftMaskCallback())
    trainer.train()
    assert logged(trainer) == pytest.approx(RAISED)
    assert float(soft_mask_alpha(trainer.model)) == 1.0
    resumed = make(start, tmp_path, SoftMaskCallback())
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert logged(resumed)[3:] == pytest.approx(RAISED[3:])
    for mine, other in zip(resumed.model.parameters(), trainer.model.parameters(), strict=True):
        assert torch.equal(mine, other)


LOAD = """
import json, sys, warnings
warnings.simplefilter("ignore")
import torch, transformers
from sentence_transformers import SentenceTransformer
folder, texts = sys.argv[1], json.loads(sys.argv[2])
assert "conan_fast" not in sys.modules
sentence = SentenceTransformer(folder, device="cpu").encode(texts, batch_size=5)
model, tokenizer = transformers.AutoModel.from_pretrained(folder), transformers.AutoTokenizer.from_pretrained(folder)
with torch.no_grad():
    single = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0).tolist() for text in texts]
print(json.dumps([sentence.tolist(), single]))
"""


def loaded_elsewhere(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of TEXTS by SentenceTransformer and by AutoModel in a process without conan_fast."""
    command = [sys.executable, "-c", LOAD, str(folder), json.dumps(TEXTS)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    by_sentence_transformers, by_transformers = json.loads(done.stdout.splitlines()[-1])
    return np.array(by_sentence_transformers), np.array(by_transformers)


def test_a_saved_model_is_bidirectional_in_a_fresh_process(start: Path, tmp_path: Path) -> None:
    trainer = sentence_trainer(start, tmp_path / "run", SoftMaskCallback("accelerating", share=0.5))
    trainer.train()
    assert logged(trainer) == pytest.approx([0.0, 0.25, 1.0, 1.0, 1.0, 1.0])
    folder = tmp_path / "model"
    trainer.save_model(str(folder))
    expected = trainer.model.encode(TEXTS, batch_size=7)
    for found in loaded_elsewhere(folder):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    soft_mask_alpha(trainer.model, 0.0)
    assert np.abs(trainer.model.encode(TEXTS) - expected).max() > 0.01
    for saved in (folder, tmp_path / "run" / "checkpoint-3"):
        assert json.loads((saved / "config.json").read_text())["is_causal"] is False
    again = transformers.AutoModel.from_pretrained(folder, attn_implementation=NAME)
    assert float(soft_mask_alpha(again)) == 1.0
    again.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["is_causal"] is False


def test_a_sentence_transformer_does_not_drop_alpha_without_a_word(start: Path, tmp_path: Path) -> None:
    model = sentence_trainer(start, tmp_path, SoftMaskCallback()).model
    features = model.preprocess(TEXTS[:2])
    with pytest.raises(ValueError, match="alpha: the model does not pass it to LlamaAttention"):
        model(dict(features), alpha=0.3)
    with pytest.raises(ValueError, match=r"does not use: .'alpha'"):
        model.encode(TEXTS, alpha=0.3)
    soft_mask_alpha(model, 0.3)
    model(dict(features))


def test_a_config_marked_as_bidirectional_does_not_load_in_transformers_4(tmp_path: Path) -> None:
    """4.x ignores is_causal. It reads `pruned_heads` as below (configuration_utils.py, from_dict); 5.x does not."""
    model = families.model("llama", NAME)
    mark_bidirectional(model)
    model.save_pretrained(tmp_path)
    pruned_heads = json.loads((tmp_path / "config.json").read_text())["pruned_heads"]
    with pytest.raises(ValueError, match="needs transformers 5"):
        {int(key): value for key, value in pruned_heads.items()}


def test_encoders_are_not_marked(tmp_path: Path) -> None:
    model = families.model("bert", NAME)
    mark_bidirectional(model)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert "is_causal" not in config and "pruned_heads" not in config


def test_a_run_that_ends_before_the_schedule_does_says_so(start: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"soft mask ended at alpha=0.5,.*runs at alpha=1"):
        pair_trainer(start, tmp_path, SoftMaskCallback(total_steps=10)).train()


def test_an_adapter_without_its_base_model_is_warned_of(start: Path, tmp_path: Path) -> None:
    trainer = pair_trainer(start, tmp_path, SoftMaskCallback())
    trainer.model.merge_and_unload = lambda: None  # as PEFT's models have it
    with pytest.warns(UserWarning, match="save model.merge_and_unload"):
        trainer.train()


def test_wrong_arguments_and_models(start: Path, tmp_path: Path) -> None:
    for arguments, message in (
        ({"curve": "square"}, "curve must be one of"),
        ({"share": 0.0}, r"share must be in \(0, 1\], got 0.0"),
        ({"share": 0.5, "total_steps": 3}, "pass one"),
        ({"total_steps": -1}, "total_steps must be at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            SoftMaskCallback(**arguments)
    trainer = pair_trainer(start, tmp_path, SoftMaskCallback())
    trainer.model.set_attn_implementation("sdpa")
    with pytest.raises(ValueError, match="no layer for tokens uses conan_soft_mask"):
        trainer.train()
