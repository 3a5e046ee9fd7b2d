"""The benchmark of a training step, on a CPU: its truth, its peers, its stopwatch, and the work that it counts."""

import gc
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import pytest
import torch

from benchmarks import suite, timing
from benchmarks.peer import NotRun, WrongResult, leaves_out
from benchmarks.step.breakdown import Stopwatch
from benchmarks.step.cases import Case, Prepared
from benchmarks.step.models import Parameters, recipe_of
from benchmarks.step.peers import padded
from benchmarks.step.peers.sentence_transformers import SentenceTransformers
from benchmarks.step.shape import LEAST_TOKENS, Shape, lengths, shapes
from benchmarks.step.stepwise import Stepwise
from benchmarks.step.suite import SUITE
from benchmarks.step.task import Task
from conan_fast import soft_mask
from train.model import build_model

CPU = torch.device("cpu")
WEAK, SUPERVISED = Shape("weak", "tiny", 6, 96), Shape("supervised", "tiny", 2, 144)
WEAK_IN_PARTS = replace(WEAK, micro_batch_tokens=40)
SHAPES = (WEAK, SUPERVISED, WEAK_IN_PARTS)
IMPLEMENTATIONS = {i.name: i for i in SUITE.implementations}
OURS, SDPA = IMPLEMENTATIONS["ours"], IMPLEMENTATIONS["transformers_sdpa"]
RUNS = [(shape, i) for shape in SHAPES for i in SUITE.implementations if i.reason(shape) is None]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Other tests may run beside these, and threads that wait for each other slow small work down."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@cache
def case(shape: Shape) -> Case:
    return Case(shape, CPU)


@cache
def prepared(shape: Shape, name: str) -> Prepared:
    return case(shape).prepare(IMPLEMENTATIONS[name])


@pytest.mark.parametrize(("shape", "implementation"), RUNS, ids=lambda x: getattr(x, "name", None))
def test_each_implementation_is_right_and_steps(shape, implementation) -> None:
    ready = prepared(shape, implementation.name)
    assert 0 <= max(ready.errors.values()) < 1e-5 and len(ready.errors) == 6
    before = ready.running.llama.layers[0].mlp.up_proj.weight.detach().clone()
    for _ in range(2):
        ready.step("step")()
    assert not ready.running.llama.layers[0].mlp.up_proj.weight.equal(before)
    assert all(parameter.grad is None for parameter in ready.running.llama.parameters())
    row = ready.after()
    assert row["tokens"] == lengths(shape).sum() <= row["padded_tokens"] <= padded.padded_tokens(shape)
    assert row["parameters"] == Parameters.of(recipe_of("tiny")).total
    parts = {"attention", "projections", "optimiser", "rest"}
    assert row["breakdown"].keys() - {"loss"} == parts and min(row["breakdown"].values()) > 0
    assert sum(row["breakdown"].values()) == pytest.approx(1)


@pytest.mark.parametrize("shape", SHAPES)
def test_losses_and_first_updates_agree(shape: Shape) -> None:
    """On the whole batch. The first update of AdamW is about the sign of the gradient."""
    task, found = case(shape).task, []
    for implementation in (i for i in SUITE.implementations if i.reason(shape) is None and i.alpha is None):
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


@pytest.mark.parametrize("shape", [WEAK_IN_PARTS, SUPERVISED])
def test_in_bfloat16_as_on_a_gpu(shape: Shape) -> None:
    in_bfloat16 = Case(shape, CPU, precision="bf16")
    assert in_bfloat16.facts["dtype"] == "bfloat16"
    for implementation in (i for i in SUITE.implementations if i.reason(shape) is None):
        ready = in_bfloat16.prepare(implementation)
        assert 1e-4 < max(ready.errors.values()) < 0.05
        assert ready.after()["breakdown"]["attention"] > 0


def half_a_gradient(task: Task) -> padded.Transformers:
    running = padded.Transformers(task)
    running.llama.norm.weight.register_hook(lambda grad: grad / 2)
    return running


class AnotherMask(padded.Transformers):
    def _stage(self, task: Task) -> padded.Padded:
        stage = super()._stage(task)
        stage.alpha += 0.1
        return stage


@pytest.mark.parametrize(
    ("build", "part"), [(half_a_gradient, "gain of the last norm is off by 0.5"), (AnotherMask, "is off by")]
)
def test_a_wrong_one_is_named_and_has_no_time(build, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = replace(SDPA, name="wrong", build=build)
    with pytest.raises(WrongResult, match=part):
        case(WEAK).prepare(wrong)
    rows: list[suite.Row] = []
    monkeypatch.setattr(suite, "ROUNDS", 2)
    monkeypatch.setattr(suite, "SECONDS", {"cpu": 0.0})
    planted = replace(SUITE, case=lambda shape, _: case(shape), implementations=(OURS, wrong))
    suite.run_shape(planted, WEAK, CPU, timing.Clock(CPU), suite.Progress(row=rows.append))
    ours_row, wrong_row = rows
    assert wrong_row["wrong"] and part in wrong_row["reason"] and "parts" not in wrong_row
    assert ours_row["reason"] is None and ours_row["parts"]["step"]["timing"]["rounds"] == 2
    assert ours_row["parts"]["step"]["flop"] == WEAK.work("step").flop and ours_row["breakdown"]["loss"] > 0


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["ours", "transformers_sdpa"])
def test_the_stopwatch_leaves_gradients_as_they_are(shape: Shape, name: str) -> None:
    running, task = prepared(shape, name).running, case(shape).task

    def gradients() -> list[torch.Tensor]:
        running.optimizer.zero_grad()
        running.backward(task)
        return [p.grad for p in running.model.parameters() if p.grad is not None]

    plain, watch = gradients(), Stopwatch(CPU)
    with watch.on(running):
        timed = gradients()
    running.optimizer.zero_grad()
    assert len(plain) == len(timed) > 10 and any(a.any() for a in plain)
    assert all(a.equal(b) for a, b in zip(plain, timed, strict=True))
    # Forward and backward; with gradient caching forward, and forward and backward again, for each of several parts.
    layers, attention = len(running.llama.layers), len(watch.spans["attention"])
    assert attention == 2 * layers if shape is not WEAK_IN_PARTS else attention % (3 * layers) == 0 < attention // 6
    assert len(watch.spans["projections"]) == 7 * attention and len(watch.spans["loss"]) == 1
    assert all(span.seconds() >= 0 for spans in watch.spans.values() for span in spans)
    assert not running.llama.layers[0].mlp.up_proj._forward_hooks  # nothing stays behind


def test_a_failing_breakdown_costs_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    ready = prepared(WEAK, "ours")
    monkeypatch.setattr(ready.running, "step", lambda: 1 / 0, raising=False)
    row = ready.after()
    assert row["breakdown"] is None and "ZeroDivisionError" in row["breakdown_reason"]


def test_flop_by_hand() -> None:
    """tiny: 3 layers, hidden 256, 4 query and 2 key/value heads of 64, MLP 512."""
    shape = SUPERVISED
    layer = 2 * 256 * 256 + 2 * 256 * 128 + 3 * 256 * 512
    tokens = lengths(shape)
    attention = sum((4 + 10) * 4 * int(length) ** 2 * 64 for length in tokens.ravel()) * 3
    loss = 3 * 2 * (2 * (2 + 2 * 7)) * 256
    work = shape.work("step")
    assert work.flop == 6 * 3 * layer * tokens.sum() + attention + loss
    assert work.bytes == 4 * (10 * (3 * layer + 7 * 256) + 6 * 8192 * 256)


@pytest.mark.parametrize("name", ["tiny", "small", "medium", "conan-1.4b"])
def test_parameters_are_the_models(name: str) -> None:
    recipe = recipe_of(name)
    with torch.device("meta"):
        model = build_model(recipe.model, recipe.tokenizer.vocab_size)
    assert Parameters.of(recipe).total == model.model.num_parameters()


@pytest.mark.parametrize("shape", [*SHAPES, *shapes("cpu"), *shapes("cuda")], ids=str)
def test_lengths_are_random_and_fit(shape: Shape) -> None:
    drawn = lengths(shape)
    assert drawn.shape == (shape.batch_size, 2 + shape.num_negatives) and drawn is lengths(replace(shape))
    assert drawn.min() >= LEAST_TOKENS and 0.95 * shape.tokens <= drawn.sum() <= shape.tokens
    assert drawn.max() <= recipe_of(shape.model).model.max_position_embeddings
    assert shape.texts < 100 or drawn.max() > 1.5 * drawn.mean()


def test_texts_have_the_lengths_and_none_comes_twice() -> None:
    texts = case(SUPERVISED).task.texts
    sequences, drawn = texts.sequences(), lengths(SUPERVISED)
    assert [len(s) for s in sequences] == [*drawn[:, 0], *drawn[:, 1], *drawn[:, 2:].ravel()]
    everything = [text for row in texts.rows for text in (row.query, row.positive, *row.negatives)]
    assert len(set(everything)) == len(everything) == 2 * (2 + 14)
    with pytest.raises(ValueError, match="tokens: at least 4 for each of 12 texts, got 40"):
        Shape("weak", "tiny", 6, 40)


def test_order_of_gpu_shapes() -> None:
    found = shapes("cuda")
    assert found[0] == Shape("weak", "conan-1.4b", 64, 16_384) and found[1] == replace(found[0], stage="supervised")
    assert (found[2].model, found[2].batch_size, found[2].tokens) == ("small", 4096, 65_536)
    assert len(set(found)) == len(found) == 13
    assert {shape.model for shape in shapes("cpu")} == {"tiny"}


def test_memory_of_the_papers_model() -> None:
    shape = shapes("cuda")[0]
    needed = {i.name: i.bytes_needed(shape) / 2**30 for i in SUITE.implementations}
    states = 16 * 1.5e9 / 2**30
    assert states < needed["transformers_sdpa"] == pytest.approx(needed["ours"], rel=0.1)
    assert needed["ours"] < 78 and needed["transformers_sdpa_one_pass"] > 1.5 * needed["ours"]
    assert needed["sentence_transformers"] == 0 < needed["sentence_transformers_unmasked"]  # the other stage's
    with pytest.raises(NotRun, match="is for the supervised stage"):
        case(WEAK).prepare(IMPLEMENTATIONS["sentence_transformers"])


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
    failing, dropped = (SentenceTransformers(case(WEAK).task) for _ in range(2))
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
    with pytest.raises(NotRun, match=f"is not installed: .*{package}"), leaves_out(CPU, 0, ours=False):
        case(WEAK).prepare(IMPLEMENTATIONS["sentence_transformers_unmasked"])
