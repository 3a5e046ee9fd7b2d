"""The run of the benchmarks: checked before timed, side by side, a valid file whatever happens."""

import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from benchmarks import machine, result, suites, timing
from benchmarks import suite as core
from benchmarks.__main__ import main
from benchmarks.floors import Ceilings, Work
from benchmarks.measure import measure
from benchmarks.peer import Implementation, NotRun, WrongResult
from benchmarks.run import _death
from tests.support.paths import ROOT

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Shape:
    size: int

    def work(self, part: str) -> Work:
        return Work(2.0 * self.size, 8.0 * self.size)


@dataclass(frozen=True, kw_only=True)
class Sleeper(Implementation):
    """Does nothing; `fails`: what happens, and where."""

    fails: dict[str, BaseException] | None = None
    bytes: int = 0

    def bytes_needed(self, shape: Shape) -> int:
        return self.bytes

    def __hash__(self) -> int:
        return hash(self.name)

    def maybe(self, where: str) -> None:
        if self.fails and where in self.fails:
            raise self.fails[where]


class Ready:
    peak_bytes, errors = 1, {"out": 0.0}

    def __init__(self, implementation: Sleeper) -> None:
        self.implementation, self.calls = implementation, 0

    def step(self, part: str):
        self.implementation.maybe(part)

        def step() -> None:
            self.calls += 1
            if self.calls > 20:
                self.implementation.maybe("later")

        return step

    def after(self):
        return {"calls": self.calls}


class Case:
    facts = {"dtype": "float32"}  # noqa: RUF012

    def __init__(self, shape: Shape, device: torch.device) -> None:
        pass

    def prepare(self, implementation: Sleeper) -> Ready:
        implementation.maybe("prepare")
        return Ready(implementation)


OURS = Sleeper(name="ours", role="ours", about="")
PEER = Sleeper(name="peer", role="rival", about="")


def suite_of(*implementations: Sleeper) -> core.Suite:
    shapes = [Shape(1), Shape(2)]
    return core.Suite("attention", ("forward", "backward"), lambda _: shapes, Case, implementations)


def rows_of(*implementations: Sleeper, progress: core.Progress | None = None) -> dict[str, dict]:
    rows: list[dict] = []
    progress = replace(progress or core.Progress(), row=rows.append)
    core.run_shape(suite_of(*implementations), Shape(1), CPU, timing.Clock(CPU), progress)
    return {row["implementation"]: row for row in rows}


def test_all_of_a_case_run_in_the_same_rounds() -> None:
    rows = rows_of(OURS, PEER)
    assert list(rows) == ["ours", "peer"]
    for part in ("forward", "backward"):
        ours, peer = (rows[name]["parts"][part] for name in ("ours", "peer"))
        assert ours["timing"]["rounds"] == peer["timing"]["rounds"] >= core.ROUNDS
        assert ours["versus_ours"] is None and peer["versus_ours"]["ratio"] > 0
        assert ours["flop"] == 2 and ours["bytes"] == 8
    assert rows["ours"]["case"] == {"size": 1, "dtype": "float32"} and rows["peer"]["calls"] > 60


def failing(name: str, error: BaseException, where: str, role: str = "rival") -> Sleeper:
    return Sleeper(name=name, role=role, about="", fails={where: error})


def test_wrong_and_missing_peers_are_named_and_have_no_time() -> None:
    rows = rows_of(
        OURS,
        failing("wrong", WrongResult("dq is off by 0.3 of its norm"), "prepare"),
        failing("absent", ImportError("No module named 'nobody'"), "prepare"),
        failing("unable", NotRun("takes no mask"), "prepare"),
        failing("broken", RuntimeError("no kernel. Try another"), "backward"),
        failing("late", torch.OutOfMemoryError("x"), "later"),
        PEER,
    )
    assert rows["wrong"]["wrong"] and rows["wrong"]["reason"] == "dq is off by 0.3 of its norm"
    reasons = {name: row["reason"] for name, row in rows.items() if not row["wrong"]}
    assert reasons == {
        "ours": None,
        "absent": "is not installed: No module named 'nobody'",
        "unable": "takes no mask",
        "broken": "RuntimeError: no kernel",
        "late": "out of memory",
        "peer": None,
    }
    assert all(("parts" in row) == (row["reason"] is None) for row in rows.values())


def test_a_failure_of_ours_is_a_defect_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    rows = rows_of(failing("ours", RuntimeError("launch failed"), "forward", role="ours"), PEER)
    assert rows["ours"]["wrong"] and rows["ours"]["reason"] == "RuntimeError: launch failed"
    assert rows["peer"]["parts"]["forward"]["versus_ours"] is None
    assert "Traceback" in capsys.readouterr().err


def test_what_does_not_fit_together_is_measured_in_groups_with_ours() -> None:
    sizes = {"ours": 10, "a": 30, "b": 30, "c": 500, "d": 1}
    some = [
        Sleeper(name=name, role="ours" if name == "ours" else "rival", about="", bytes=size)
        for name, size in sizes.items()
    ]
    made = [[i.name for i in group] for group in core.groups(some, Shape(1), 100)]
    assert made == [["ours", "c", "a"], ["ours", "b", "d"]]  # c will not fit at all, and says so in the first group
    assert [[i.name for i in group] for group in core.groups(some, Shape(1), None)] == [list(sizes)]


def test_ours_comes_again_only_where_there_is_something_to_compare_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "free_bytes", lambda _: 100)
    prepared: list[str] = []

    class Counted(Case):
        def prepare(self, implementation: Sleeper) -> Ready:
            prepared.append(implementation.name)
            return super().prepare(implementation)

    absent = replace(failing("absent", ImportError("gone"), "prepare"), bytes=50)
    peers = [replace(PEER, name=name, bytes=50) for name in ("a", "b")]
    suite = replace(suite_of(OURS, peers[0], absent, peers[1]), case=Counted)
    rows: list[dict] = []
    core.run_shape(suite, Shape(1), CPU, timing.Clock(CPU), core.Progress(rows.append))
    assert prepared == ["ours", "a", "absent", "b", "ours"]
    assert [(row["implementation"], row["group"]) for row in rows] == [("ours", 0), ("a", 0), ("absent", 1), ("b", 2)]
    # Without ours nothing is a repetition: everybody has a row.
    rows.clear()
    core.run_shape(replace(suite, implementations=peers), Shape(1), CPU, timing.Clock(CPU), core.Progress(rows.append))
    assert [row["implementation"] for row in rows] == ["a", "b"]


def test_inputs_that_do_not_fit_leave_rows() -> None:
    def too_large(*_: object) -> Case:
        raise torch.OutOfMemoryError("x")

    rows: list[dict] = []
    suite = replace(suite_of(OURS, PEER), case=too_large)
    core.run_shape(suite, Shape(1), CPU, timing.Clock(CPU), core.Progress(rows.append))
    assert [row["reason"] for row in rows] == ["the inputs alone do not fit into memory"] * 2


def test_errors_that_take_the_gpu_along_end_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    class Sticky(RuntimeError):
        pass

    monkeypatch.setattr("benchmarks.peer.STICKY", (Sticky,))
    with pytest.raises(Sticky):
        rows_of(OURS, failing("culprit", Sticky("an illegal memory access"), "prepare"))


def test_no_group_is_begun_after_the_deadline() -> None:
    assert rows_of(OURS, progress=core.Progress(deadline=0.0)) == {}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.ceilings.measure", lambda _: Ceilings("float32", 1e9, 1e9, 1e-6))
    monkeypatch.setattr("benchmarks.measure.line", lambda row: row.name)


@pytest.mark.usefixtures("quick")
def test_result_file(tmp_path: Path) -> None:
    out = tmp_path / "new" / "result.json"
    assert measure(suite_of(OURS, PEER), CPU, out, budget_minutes=1) == 0
    assert measure(replace(suite_of(OURS), name="contrastive"), CPU, out, budget_minutes=1, where=["size=2"]) == 0
    content = json.loads(out.read_text())
    assert content["format"] == 1 and len(content["machine"]["csrc_sha256"]) == 64
    assert content["machine"]["torch"] == torch.__version__ and "transformers" in content["machine"]["packages"]
    attention, contrastive = content["suites"]["attention"], content["suites"]["contrastive"]
    assert [row["implementation"] for row in attention["rows"]] == ["ours", "peer"] * 2
    assert [row["case"]["size"] for row in contrastive["rows"]] == [2]
    assert attention["ceilings"]["product_flop_per_s"] == 1e9 and attention["stopped"] is attention["now"] is None


@pytest.mark.usefixtures("quick")
def test_only_and_without(tmp_path: Path) -> None:
    for options, names in (({"only": ["peer"]}, ["peer"] * 2), ({"without": ["peer"]}, ["ours"] * 2)):
        out = tmp_path / f"{names[0]}.json"
        measure(suite_of(OURS, PEER), CPU, out, budget_minutes=1, **options)
        assert [row["implementation"] for row in json.loads(out.read_text())["suites"]["attention"]["rows"]] == names


@pytest.mark.usefixtures("quick")
def test_wrong_results_of_ours_and_interrupts_are_the_exit_status(tmp_path: Path) -> None:
    for number, (role, status) in enumerate((("rival", 0), ("ours", 1))):
        wrong = failing("wrong", WrongResult("off"), "prepare", role)
        assert measure(suite_of(OURS, wrong), CPU, tmp_path / f"{number}.json", budget_minutes=1) == status
    stopped = failing("stopped", KeyboardInterrupt(), "prepare")
    assert measure(suite_of(OURS, stopped), CPU, tmp_path / "b.json", budget_minutes=1) == 130
    assert json.loads((tmp_path / "b.json").read_text())["suites"]["attention"]["stopped"] == "Ctrl-C"


@pytest.mark.usefixtures("quick")
def test_spent_budget_leaves_a_smaller_result(tmp_path: Path) -> None:
    out = tmp_path / "a.json"
    assert measure(suite_of(OURS, PEER), CPU, out, budget_minutes=0) == 0
    suite = json.loads(out.read_text())["suites"]["attention"]
    assert suite["rows"] == [] and "2 cases are left" in suite["stopped"]


@pytest.mark.usefixtures("quick")
def test_a_suite_that_dies_goes_on_without_what_it_died_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Suites run in this process: with "deadly" attention does not survive its second case."""

    class Deadly(Case):
        def __init__(self, shape: Shape, device: torch.device) -> None:
            self.size = shape.size

        def prepare(self, implementation: Sleeper) -> Ready:
            if implementation.name == "deadly" and self.size == 2:
                raise SystemExit(-9)
            return Ready(implementation)

    deadly = Sleeper(name="deadly", role="rival", about="")
    found = {
        "attention": replace(suite_of(OURS, deadly, PEER), case=Deadly),
        "step": replace(suite_of(OURS), name="step"),
    }
    monkeypatch.setattr(suites, "load", found.__getitem__)

    class Here:
        def __init__(self, command: list[str], **_: object) -> None:
            try:
                self.status = main(command[3:])
            except SystemExit as error:
                self.status = error.code

        def wait(self) -> int:
            return self.status

    monkeypatch.setattr(subprocess, "Popen", Here)
    out = tmp_path / "result.json"
    assert main(["run", "--suite", "attention,step", f"--out={out}", "--device=cpu"]) == 1
    run = result.read(out)
    assert run.stopped("attention") is None and run.stopped("step") is None
    rows = [(row["case"]["size"], row.name, row["reason"]) for row in run.rows("attention")]
    died = "the process was killed by SIGKILL with it"
    assert rows[:3] == [(1, "ours", None), (1, "deadly", None), (1, "peer", None)]
    assert rows[3:] == [(2, "deadly", died), (2, "ours", None), (2, "peer", None)]
    assert len(run.rows("step")) == 2 and not any(row["wrong"] for row in run.rows("attention"))
    assert "goes on without deadly" in capfd.readouterr().err


@pytest.mark.usefixtures("quick")
def test_a_suite_that_dies_for_itself_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Case:
        raise RuntimeError("no such device")

    monkeypatch.setattr(suites, "load", lambda _: replace(suite_of(OURS), case=broken))
    popen = subprocess.Popen
    script = "import sys; sys.exit(1)"
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **options: popen([sys.executable, "-c", script], **options))
    out = tmp_path / "result.json"
    with pytest.raises(RuntimeError):
        measure(suites.load("attention"), CPU, out, budget_minutes=1)
    assert "inputs" in json.loads(out.read_text())["suites"]["attention"]["now"]
    assert _death(out, "attention", 1) == ("died with exit status 1 in attention {'size': 1}: inputs", None)
    assert "inputs" in result.read(out).stopped("attention")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--suite", "attention,nothing"], "takes names of attention, contrastive, step"),
        (["run", "--budget-minutes=0"], "--budget-minutes: must be positive, got 0"),
        (["run", "--where", "length"], "--where: takes FIELD=VALUE, got length"),
        (["run", f"--out={__file__}"], "exists, "),
    ],
)
def test_bad_arguments_are_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = main(arguments)
    except SystemExit as error:
        status = error.code
    assert status == 2 and message in capsys.readouterr().err


def test_suites_are_added_to_a_result_of_the_same_machine_only(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "result.json"
    content = {"format": 1, "machine": machine.facts(CPU) | {"date": "before"}, "suites": {"attention": {}}}
    result.write(out, content)
    arguments = ["run", "--device=cpu", f"--out={out}", "--suite"]
    assert main([*arguments, "attention,step"]) == 2
    assert "exists, and has attention; results are not overwritten" in capsys.readouterr().err
    result.write(out, content | {"machine": content["machine"] | {"torch": "1.0"}})
    assert main([*arguments, "contrastive"]) == 2
    assert "exists, measured with another torch" in capsys.readouterr().err
    result.write(out, content)
    assert main([*arguments, "contrastive", "--where", "pairs=nothing"]) == 0
    assert list(result.read(out).suites) == ["attention"]


def test_every_suite_loads_and_names_each_implementation_once() -> None:
    for name in suites.NAMES:
        suite = suites.load(name)
        names = [implementation.name for implementation in suite.implementations]
        assert suite.name == name and len(names) == len(set(names)) and names[0] == "ours"
        assert {"ours", "rival"} <= {implementation.role for implementation in suite.implementations}


@pytest.mark.proof
def test_the_command_on_a_cpu(tmp_path: Path) -> None:
    """The smallest case of attention for real, in its own process, and the report of it."""
    out = tmp_path / "result.json"
    command = [sys.executable, "-m", "benchmarks"]
    run = [*command, "run", "--suite", "attention", "--device=cpu", "--budget-minutes=0.5", f"--out={out}"]
    run += ["--where", "length=128", "head_dim=112", "--only", "ours", "eager", "sdpa_cudnn_unmasked"]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "GPU FIGURES ARE MISSING" in done.stdout
    rows = result.read(out).rows("attention")
    assert [row.name for row in rows if row.measured] == ["ours", "eager"]
    report = [*command, "report", str(out), f"--out={tmp_path / 'REPORT.md'}"]
    assert subprocess.run(report, cwd=ROOT, capture_output=True, check=False).returncode == 0
    assert "**GPU figures are missing**" in (tmp_path / "REPORT.md").read_text()


def test_peak_memory_of_a_cpu() -> None:
    def step() -> None:
        torch.ones(2**24, dtype=torch.float32).sum()  # 64 MiB

    peak = timing.peak_above(timing.allocated_bytes(CPU), step, CPU)
    if peak is None:
        pytest.skip("this system does not count the peak of a process")
    assert 60 < peak / 2**20 < 80
