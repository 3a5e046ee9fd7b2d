"""The benchmark of a training step, on a CPU: its truth, its peers, its breakdown, and the work that it counts."""

import gc
import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from benchmarks import rounds, timing
from benchmarks.step import models
from benchmarks.step.breakdown import BACKWARD, events_of_parts, marked, profiler
from benchmarks.step.cases import Workload, cases
from benchmarks.step.implementation import Running, padded_tokens
from benchmarks.step.models import Parameters, recipe_of
from benchmarks.step.peers import padded
from benchmarks.step.peers.sentence_transformers import SentenceTransformers
from benchmarks.step.stepwise import Stepwise
from benchmarks.step.task import LEAST_TOKENS, Case, Task, lengths
from benchmarks.suite import Checked, NotRun, WrongResult, guarded, load_suite
from conan_fast import soft_mask
from train.model import build_model
from train.recipe import ModelRecipe, TokenizerRecipe

CPU = torch.device("cpu")
SUITE = load_suite("step")
# A model for speed: "tiny" has 3 layers of 256.
sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
tiny = recipe_of("tiny")
models._RECIPES["nano"] = tiny.model_copy(
    update={
        "tokenizer": TokenizerRecipe(vocab_size=512),
        "model": ModelRecipe(hidden_size=64, intermediate_size=96, **sizes),
        "supervised": tiny.supervised.model_copy(update={"dims": [16, 32, 64]}),
    }
)
WEAK, SUPERVISED = Case("weak", "nano", 5, 60), Case("supervised", "nano", 2, 144)
WEAK_IN_PARTS = replace(WEAK, micro_batch_tokens=36)
CASES = (WEAK, SUPERVISED, WEAK_IN_PARTS)
IMPLEMENTATIONS = {i.name: i for i in SUITE.implementations}
OURS, SDPA = IMPLEMENTATIONS["ours"], IMPLEMENTATIONS["transformers_sdpa"]
RUNS = [(case, i) for case in CASES for i in SUITE.implementations if i.reason(case) is None]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Other tests may run beside these, and threads that wait for each other slow small work down."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@cache
def workload(case: Case) -> Workload:
    return Workload(case, CPU)


@cache
def checked(case: Case, name: str) -> Checked:
    return workload(case).check(IMPLEMENTATIONS[name])


def running_of(ready: Checked) -> Running:
    return ready.step("step").__self__


@pytest.mark.parametrize(("case", "implementation"), RUNS, ids=lambda x: getattr(x, "name", None))
def test_each_implementation_is_right_and_steps(case, implementation) -> None:
    ready = checked(case, implementation.name)
    llama = running_of(ready).llama
    assert 0 <= max(ready.errors.values()) < 1e-5 and len(ready.errors) == 6
    before = llama.layers[0].mlp.up_proj.weight.detach().clone()
    for _ in range(2):
        ready.step("step")()
    assert not llama.layers[0].mlp.up_proj.weight.equal(before)
    assert all(parameter.grad is None for parameter in llama.parameters())
    row = ready.facts()
    assert row["tokens"] == lengths(case).sum() <= row["padded_tokens"] <= padded_tokens(case)
    assert row["parameters"] == Parameters(recipe_of("nano")).total
    parts = {"attention", "projections", "optimiser", "rest"}
    assert row["breakdown"].keys() - {"loss"} == parts and min(row["breakdown"].values()) > 0
    assert sum(row["breakdown"].values()) == pytest.approx(1)


@pytest.mark.parametrize("case", CASES)
def test_losses_and_first_updates_agree(case: Case) -> None:
    """On the whole batch. The first update of AdamW is about the sign of the gradient."""
    task, found = workload(case).task, []
    for implementation in (i for i in SUITE.implementations if i.reason(case) is None and i.alpha is None):
        running = implementation.build(task)
        loss = float(running.backward(task))
        running.optimizer.zero_grad()
        start = [parameter.detach().clone() for parameter in running.llama.layers.parameters()]
        running.step()
        now = running.llama.layers.parameters()
        found.append((loss, torch.cat([(b - a).flatten().detach() for a, b in zip(start, now, strict=True)])))
    (loss, update), *others = found
    assert len(others) >= 1 and update.norm() > 0
    for other_loss, other_update in others:
        assert other_loss == pytest.approx(loss, rel=1e-5)
        assert (other_update - update).norm() < 0.02 * update.norm()


@pytest.mark.parametrize("case", [WEAK_IN_PARTS, SUPERVISED])
def test_in_bfloat16_as_on_a_gpu(case: Case) -> None:
    in_bfloat16 = Workload(case, CPU, precision="bf16")
    assert in_bfloat16.facts["dtype"] == "bfloat16"
    for implementation in (i for i in SUITE.implementations if i.reason(case) is None):
        ready = in_bfloat16.check(implementation)
        assert 1e-4 < max(ready.errors.values()) < 0.05
        assert ready.facts()["breakdown"]["attention"] > 0


def half_a_gradient(task: Task) -> padded.Transformers:
    running = padded.Transformers(task)
    running.llama.norm.weight.register_hook(lambda grad: grad / 2)
    return running


class AnotherMask(padded.Transformers):
    def stage_of(self, task: Task) -> padded.Padded:
        stage = super().stage_of(task)
        stage.alpha += 0.1
        return stage


@pytest.mark.parametrize(
    ("build", "part"), [(half_a_gradient, "gain of the last norm is off by 0.5"), (AnotherMask, "is off by")]
)
def test_a_wrong_one_is_named_and_has_no_time(build, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = replace(SDPA, name="wrong", build=build)
    with pytest.raises(WrongResult, match=part):
        workload(WEAK).check(wrong)
    rows: list[dict] = []
    monkeypatch.setattr(rounds, "ROUNDS", 2)
    monkeypatch.setattr(rounds, "SECONDS", {"cpu": 0.0})
    planted = replace(SUITE, workload=lambda case, _: workload(case), implementations=(OURS, wrong))
    rounds.run_case(planted, WEAK, timing.Clock(CPU), rounds.Progress(row=rows.append))
    ours_row, wrong_row = rows
    assert wrong_row["wrong"] and part in wrong_row["reason"] and "parts" not in wrong_row
    assert ours_row["reason"] is None and ours_row["parts"]["step"]["timing"]["rounds"] == 2
    assert ours_row["parts"]["step"]["flop"] == WEAK.work("step").flop and ours_row["breakdown"]["loss"] > 0


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["ours", "transformers_sdpa"])
def test_the_profiler_leaves_gradients_as_they_are(case: Case, name: str) -> None:
    running, task = running_of(checked(case, name)), workload(case).task

    def gradients() -> list[torch.Tensor]:
        running.optimizer.zero_grad()
        running.backward(task)
        return [p.grad for p in running.model.parameters() if p.grad is not None]

    attention = ALL_ATTENTION_FUNCTIONS[running.llama.config._attn_implementation]
    plain = gradients()
    with marked(running), profiler(CPU) as profiled:
        timed = gradients()
    running.optimizer.zero_grad()
    assert len(plain) == len(timed) > 10 and any(a.any() for a in plain)
    assert all(a.equal(b) for a, b in zip(plain, timed, strict=True))
    found = Counter((part, event.name.startswith(BACKWARD)) for part, event in events_of_parts(profiled.events()))
    # With gradient caching forward, and forward again with a graph, for each of several parts.
    layers, calls = len(running.llama.layers), found["attention", False]
    assert calls == layers if case is not WEAK_IN_PARTS else calls % (2 * layers) == 0 < calls // 4
    assert found["projections", False] == 7 * calls and found["loss", False] == 1
    assert all(found[part, True] > 0 for part in ("attention", "loss"))
    assert found["projections", True] >= 7 * layers  # at least one graph node for each
    assert ALL_ATTENTION_FUNCTIONS[running.llama.config._attn_implementation] is attention  # nothing stays behind


def test_a_failing_breakdown_costs_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    ready = checked(WEAK, "ours")
    monkeypatch.setattr(running_of(ready), "step", lambda: 1 / 0, raising=False)
    row = ready.facts()
    assert row["breakdown"] is None and "ZeroDivisionError" in row["breakdown_reason"]


def test_flop_by_hand() -> None:
    """tiny: 3 layers, hidden 256, 4 query and 2 key/value heads of 64, MLP 512."""
    case = replace(SUPERVISED, model="tiny")
    layer = 2 * 256 * 256 + 2 * 256 * 128 + 3 * 256 * 512
    tokens = lengths(case)
    attention = sum((4 + 10) * 4 * int(length) ** 2 * 64 for length in tokens.ravel()) * 3
    loss = 3 * 2 * (2 * (2 + 2 * 7)) * 256
    work = case.work("step")
    assert work.flop == 6 * 3 * layer * tokens.sum() + attention + loss
    assert work.bytes == 4 * (10 * (3 * layer + 7 * 256) + 6 * 8192 * 256)


@pytest.mark.parametrize("name", ["tiny", "small", "medium", "conan-1.4b"])
def test_parameters_are_the_models(name: str) -> None:
    recipe = recipe_of(name)
    with torch.device("meta"):
        model = build_model(recipe.model, recipe.tokenizer.vocab_size)
    assert Parameters(recipe).total == model.model.num_parameters()


TINY = [replace(case, model="tiny") for case in CASES]


@pytest.mark.parametrize("case", [*TINY, *cases("cpu"), *cases("cuda")], ids=str)
def test_lengths_are_random_and_fit(case: Case) -> None:
    drawn = lengths(case)
    assert drawn.shape == (case.batch_size, 2 + case.num_negatives) and drawn is lengths(replace(case))
    assert drawn.min() >= LEAST_TOKENS and 0.95 * case.tokens <= drawn.sum() <= case.tokens
    assert drawn.max() <= recipe_of(case.model).model.max_position_embeddings
    assert case.texts < 100 or drawn.max() > 1.5 * drawn.mean()


def test_texts_have_the_lengths_and_none_comes_twice() -> None:
    texts = workload(SUPERVISED).task.texts
    sequences, drawn = texts.sequences(), lengths(SUPERVISED)
    assert [len(s) for s in sequences] == [*drawn[:, 0], *drawn[:, 1], *drawn[:, 2:].ravel()]
    everything = [text for row in texts.rows for text in (row.query, row.positive, *row.negatives)]
    assert len(set(everything)) == len(everything) == 2 * (2 + 14)
    with pytest.raises(ValueError, match="tokens: at least 4 for each of 12 texts, got 40"):
        Case("weak", "tiny", 6, 40)


def test_order_of_gpu_cases() -> None:
    found = cases("cuda")
    assert found[0] == Case("weak", "conan-1.4b", 64, 16_384) and found[1] == replace(found[0], stage="supervised")
    assert (found[2].model, found[2].batch_size, found[2].tokens) == ("small", 4096, 65_536)
    assert len(set(found)) == len(found) == 13
    assert {case.model for case in cases("cpu")} == {"tiny"}


def test_memory_of_the_papers_model() -> None:
    case = cases("cuda")[0]
    needed = {i.name: i.bytes_needed(case) / 2**30 for i in SUITE.implementations}
    states = 16 * 1.5e9 / 2**30
    assert states < needed["transformers_sdpa"] == pytest.approx(needed["ours"], rel=0.1)
    assert needed["ours"] < 78 and needed["transformers_sdpa_one_pass"] > 1.5 * needed["ours"]
    assert needed["sentence_transformers"] == 0 < needed["sentence_transformers_unmasked"]  # the other stage's
    with pytest.raises(NotRun, match="is for the supervised stage"):
        workload(WEAK).check(IMPLEMENTATIONS["sentence_transformers"])


def test_padded_micro_batches_and_their_mask() -> None:
    assert padded.micro_batches([3, 5, 2, 2, 9, 1], 10) == [slice(0, 2), slice(2, 4), slice(4, 5), slice(5, 6)]
    assert padded.micro_batches([3, 5, 30], None) == [slice(0, 3)]
    bias = padded.soft_mask_bias(torch.tensor([3, 5]), 5, 0.5, torch.float32)
    assert bias.shape == (2, 1, 5, 5) and bias.stride(2) % 16 == 0
    for row, length in zip(bias[:, 0], (3, 5), strict=True):
        torch.testing.assert_close(row[:length, :length].exp(), soft_mask(length, 0.5))
        assert (row[:, length:] == -torch.inf).all() and not row.isnan().any()


def test_stepwise_takes_turns_stops_and_hands_errors_on() -> None:
    done: list[int] = []

    def work(pause) -> None:
        for number in range(3):
            done.append(number)
            if number == 2:
                raise KeyError("of the work")
            pause()

    turns = Stepwise(work)
    for expected in ([0], [0, 1]):
        turns.advance()
        assert done == expected
    with pytest.raises(KeyError, match="of the work"):
        turns.advance()
    with pytest.raises(RuntimeError, match="is over"):
        turns.advance()
    with pytest.raises(RuntimeError, match="came to its end"):
        Stepwise(lambda pause: None).advance()
    closed, dropped = Stepwise(lambda pause: [pause() for _ in range(9)]), Stepwise(lambda pause: pause())
    closed.advance()
    closed.close()
    assert not closed.thread.is_alive()
    thread = dropped.thread
    del dropped
    gc.collect()
    assert not thread.is_alive()


def test_the_trainer_of_sentence_transformers_ends_with_its_model(monkeypatch: pytest.MonkeyPatch) -> None:
    failing, dropped = (SentenceTransformers(workload(WEAK).task) for _ in range(2))
    for running in (failing, dropped):
        running.step()
    monkeypatch.setattr(failing.optimizer, "step", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        failing.step()
    with pytest.raises(RuntimeError, match="is over"):
        failing.step()
    thread, folder = dropped._stepwise.thread, dropped.folder.name
    assert thread.is_alive() and os.path.exists(folder)
    del running, dropped
    gc.collect()
    assert not thread.is_alive() and not os.path.exists(folder)


@pytest.mark.parametrize("package", ["accelerate", "datasets", "sentence_transformers"])
def test_a_missing_package_is_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(NotRun, match=f"is not installed: .*{package}"), guarded(CPU, SDPA):
        workload(WEAK).check(IMPLEMENTATIONS["sentence_transformers_unmasked"])
