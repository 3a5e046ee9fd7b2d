"""The run of the benchmarks: checked before timed, side by side, a valid file whatever happens."""

import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from benchmarks import machine, result, rounds, timing
from benchmarks import run as command
from benchmarks.__main__ import main
from benchmarks.record import INTERRUPTED, OURS_WRONG, Selection, measure_suite
from benchmarks.roofline import Ceilings, Work
from benchmarks.suite import SUITES, Checked, Implementation, NotRun, Suite, WrongResult, load_suite
from tests.support.paths import ROOT

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    size: int

    def work(self, part: str) -> Work:
        return Work(2.0 * self.size, 8.0 * self.size)


@dataclass(frozen=True)
class Sleeper(Implementation):
    """Does nothing; `fails`: what happens, and where."""

    fails: dict[str, BaseException] | None = None
    bytes: int = 0

    def bytes_needed(self, case: Case) -> int:
        return self.bytes

    def __hash__(self) -> int:
        return hash(self.name)

    def maybe(self, where: str) -> None:
        if self.fails and where in self.fails:
            raise self.fails[where]


class Workload:
    facts = {"dtype": "float32"}  # noqa: RUF012

    def __init__(self, case: Case, device: torch.device) -> None:
        self.case = case

    def check(self, implementation: Sleeper) -> Checked:
        implementation.maybe("check")
        calls = [0]

        def step_of(part: str) -> timing.Step:
            implementation.maybe(part)
            return step

        def step() -> None:
            calls[0] += 1
            if calls[0] > 20:
                implementation.maybe("later")

        return Checked(step_of, 1, {"out": 0.0}, lambda: {"calls": calls[0]})


OURS = Sleeper("ours", "ours", "")
PEER = Sleeper("peer", "rival", "")


def suite_of(*implementations: Sleeper) -> Suite:
    cases = [Case(1), Case(2)]
    return Suite("attention", ("forward", "backward"), lambda _: cases, Workload, implementations, lambda _: [Case(99)])


def all_rows(suite: Suite, **progress: object) -> list[dict]:
    rows: list[dict] = []
    rounds.run_case(suite, Case(1), timing.Clock(CPU), rounds.Progress(row=rows.append, **progress))
    return rows


def rows_of(*implementations: Sleeper, **progress: object) -> dict[str, dict]:
    return {row["implementation"]: row for row in all_rows(suite_of(*implementations), **progress)}


def test_all_of_a_case_run_in_the_same_rounds() -> None:
    rows = rows_of(OURS, PEER)
    assert list(rows) == ["ours", "peer"]
    for part in ("forward", "backward"):
        ours, peer = (rows[name]["parts"][part] for name in ("ours", "peer"))
        assert ours["timing"]["rounds"] == peer["timing"]["rounds"] >= rounds.ROUNDS
        assert ours["versus_ours"] is None and peer["versus_ours"]["ratio"] > 0
        assert ours["flop"] == 2 and ours["bytes"] == 8
    assert rows["ours"]["case"] == {"size": 1, "dtype": "float32"} and rows["peer"]["calls"] > 60


def failing(name: str, error: BaseException, where: str, role: str = "rival") -> Sleeper:
    return Sleeper(name, role, "", fails={where: error})


def test_wrong_and_missing_peers_are_named_and_have_no_time() -> None:
    rows = rows_of(
        OURS,
        failing("wrong", WrongResult("dq is off by 0.3 of its norm"), "check"),
        failing("absent", ImportError("No module named 'nobody'"), "check"),
        failing("unable", NotRun("does not support a mask"), "check"),
        failing("broken", RuntimeError("no kernel. Try another"), "backward"),
        failing("late", torch.OutOfMemoryError("x"), "later"),
        PEER,
    )
    assert rows["wrong"]["wrong"] and rows["wrong"]["reason"] == "dq is off by 0.3 of its norm"
    reasons = {name: row["reason"] for name, row in rows.items() if not row["wrong"]}
    assert reasons == {
        "ours": None,
        "absent": "is not installed: No module named 'nobody'",
        "unable": "does not support a mask",
        "broken": "RuntimeError: no kernel",
        "late": "out of memory",
        "peer": None,
    }
    assert all(("parts" in row) == (row["reason"] is None) for row in rows.values())


def test_a_failure_of_ours_is_a_defect_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    rows = rows_of(failing("ours", RuntimeError("launch failed"), "forward", "ours"), PEER)
    assert rows["ours"]["wrong"] and rows["ours"]["reason"] == "RuntimeError: launch failed"
    assert rows["peer"]["parts"]["forward"]["versus_ours"] is None
    assert "Traceback" in capsys.readouterr().err


def test_what_does_not_fit_together_is_measured_in_groups_with_ours() -> None:
    sizes = {"ours": 10, "a": 30, "b": 30, "c": 500, "d": 1}
    some = [Sleeper(name, "ours" if name == "ours" else "rival", "", bytes=size) for name, size in sizes.items()]
    made = [[i.name for i in group] for group in rounds.groups(some, Case(1), 100)]
    assert made == [["ours", "c", "a"], ["ours", "b", "d"]]  # c will not fit at all, and says so in the first group
    assert [[i.name for i in group] for group in rounds.groups(some, Case(1), None)] == [list(sizes)]


def test_ours_comes_again_only_where_there_is_something_to_compare_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "free_bytes", lambda _: 100)
    checked: list[str] = []

    class Counted(Workload):
        def check(self, implementation: Sleeper) -> Checked:
            checked.append(implementation.name)
            return super().check(implementation)

    absent = replace(failing("absent", ImportError("gone"), "check"), bytes=50)
    peers = [replace(PEER, name=name, bytes=50) for name in ("a", "b")]
    suite = replace(suite_of(OURS, peers[0], absent, peers[1]), workload=Counted)
    rows = all_rows(suite)
    assert checked == ["ours", "a", "absent", "b", "ours"]
    assert [(row["implementation"], row["group"]) for row in rows] == [("ours", 0), ("a", 0), ("absent", 1), ("b", 2)]
    # Without ours nothing is a repetition: everybody has a row.
    assert [row["implementation"] for row in all_rows(replace(suite, implementations=peers))] == ["a", "b"]


def test_inputs_that_do_not_fit_leave_rows() -> None:
    def too_large(*_: object) -> Workload:
        raise torch.OutOfMemoryError("x")

    rows = all_rows(replace(suite_of(OURS, PEER), workload=too_large))
    assert [row["reason"] for row in rows] == ["the inputs alone do not fit into memory"] * 2


def test_errors_that_take_the_gpu_along_end_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    class Sticky(RuntimeError):
        pass

    monkeypatch.setattr("benchmarks.suite.STICKY", (Sticky,))
    with pytest.raises(Sticky):
        rows_of(OURS, failing("culprit", Sticky("an illegal memory access"), "check"))


def test_no_group_is_begun_after_the_deadline() -> None:
    assert rows_of(OURS, deadline=0.0) == {}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.roofline.measure", lambda _: Ceilings("float32", 1e9, 1e9, 1e-6))
    monkeypatch.setattr("benchmarks.record.line", lambda row: row.name)
    monkeypatch.setattr("benchmarks.result.label", lambda suite, case: str(case))


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run's processes are calls."""

    class Here:
        def __init__(self, arguments: list[str], **_: object) -> None:
            try:
                self.status = main(arguments[3:])
            except SystemExit as error:
                self.status = error.code
            except RuntimeError:
                self.status = 1

        def wait(self) -> int:
            return self.status

    monkeypatch.setattr(subprocess, "Popen", Here)


def measured(suite: Suite, out: Path, progress: rounds.Progress | None = None, **selection: object) -> int:
    return measure_suite(suite, CPU, out, Selection(**selection), progress or rounds.Progress())


def test_a_result_names_no_folder_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "build_info", lambda: {"missing_backends": {"cuda": f"not built in {ROOT}"}})
    facts = machine.facts.__wrapped__(torch.device("cpu"))  # not the one that is kept
    assert facts["conan_fast"] == {"missing_backends": ["cuda"]} and str(ROOT) not in json.dumps(facts)


@pytest.mark.usefixtures("quick")
def test_result_file(tmp_path: Path) -> None:
    out = tmp_path / "new" / "result.json"
    assert measured(suite_of(OURS, PEER), out) == 0
    assert measured(replace(suite_of(OURS), name="contrastive"), out, where=["size=2"]) == 0
    assert measured(replace(suite_of(OURS), name="step"), out, where=["size=99"]) == 0
    assert sum(line.startswith('{"case"') for line in out.read_text().splitlines()) == 4 + 1 + 1  # a line for each row
    content = json.loads(out.read_text())
    assert content["format"] == result.FORMAT and len(content["machine"]["csrc_sha256"]) == 64
    assert content["machine"]["torch"] == torch.__version__ and "transformers" in content["machine"]["packages"]
    attention, contrastive = content["suites"]["attention"], content["suites"]["contrastive"]
    assert [row["implementation"] for row in attention["rows"]] == ["ours", "peer"] * 2
    assert [row["case"]["size"] for row in contrastive["rows"]] == [2]
    assert [row["case"]["size"] for row in content["suites"]["step"]["rows"]] == [99]  # on request only
    assert attention["ceilings"]["gemm_flop_per_s"] == 1e9 and attention["stopped"] is None


@pytest.mark.usefixtures("quick")
def test_only_and_without(tmp_path: Path) -> None:
    for options, names in (({"only": ["peer"]}, ["peer"] * 2), ({"without": ["peer"]}, ["ours"] * 2)):
        out = tmp_path / f"{names[0]}.json"
        measured(suite_of(OURS, PEER), out, **options)
        assert [row["implementation"] for row in json.loads(out.read_text())["suites"]["attention"]["rows"]] == names


@pytest.mark.usefixtures("quick")
def test_wrong_results_of_ours_and_interrupts_are_the_exit_status(tmp_path: Path) -> None:
    for number, (role, status) in enumerate((("rival", 0), ("ours", OURS_WRONG))):
        wrong = failing("wrong", WrongResult("off"), "check", role)
        assert measured(suite_of(OURS, wrong), tmp_path / f"{number}.json") == status
    stopped = failing("stopped", KeyboardInterrupt(), "check")
    assert measured(suite_of(OURS, stopped), tmp_path / "b.json") == INTERRUPTED == 130
    assert json.loads((tmp_path / "b.json").read_text())["suites"]["attention"]["stopped"] == "Ctrl-C"


@pytest.mark.usefixtures("quick")
def test_spent_budget_leaves_a_smaller_result(tmp_path: Path) -> None:
    out = tmp_path / "a.json"
    assert measured(suite_of(OURS, PEER), out, rounds.Progress(deadline=0.0)) == 0
    suite = json.loads(out.read_text())["suites"]["attention"]
    assert suite["rows"] == [] and "before 2 of 2 cases" in suite["stopped"]


@pytest.mark.usefixtures("quick", "in_this_process")
def test_a_suite_that_dies_is_noted_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Suites run in this process: attention does not survive its second case, contrastive ends with an exception."""

    class Deadly(Workload):
        def check(self, implementation: Sleeper) -> Checked:
            if implementation.name == "deadly" and self.case.size == 2:
                raise SystemExit(-9)
            return super().check(implementation)

    def broken(*_: object) -> Workload:
        raise RuntimeError("no such device")

    found = {
        "attention": replace(suite_of(OURS, Sleeper("deadly", "rival", ""), PEER), workload=Deadly),
        "contrastive": replace(suite_of(OURS), name="contrastive", workload=broken),
        "step": replace(suite_of(OURS), name="step"),
    }
    monkeypatch.setattr(command, "load_suite", found.__getitem__)

    out = tmp_path / "result.json"
    assert main(["run", f"--out={out}", "--device=cpu"]) == 1
    run = result.read(out)
    reasons = {
        "attention": "the process was killed by SIGKILL during: attention {'size': 2}: deadly is checked",
        "contrastive": "the process ended with exit status 1 during: contrastive {'size': 1}: inputs",
        "step": None,
    }
    assert {name: run.suites[name]["stopped"] for name in SUITES} == reasons
    rows = [(row["case"]["size"], row.name, row["reason"]) for row in run.rows("attention")]
    assert rows == [(1, "ours", None), (1, "deadly", None), (1, "peer", None)]
    assert not run.rows("contrastive") and len(run.rows("step")) == 2
    said = capfd.readouterr().err
    assert f"attention: {reasons['attention']}" in said and f"contrastive: {reasons['contrastive']}" in said


def test_a_process_that_dies_before_its_first_row(tmp_path: Path) -> None:
    said = command.note_death(tmp_path / "none.json", "attention", -11)
    assert said == "the process was killed by SIGSEGV before its first row"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--suite", "attention,nothing"], "expected names of attention, contrastive, step"),
        (["run", "--budget-minutes=0"], "--budget-minutes: must be positive, got 0"),
        (["run", "--where", "length"], "--where: expected FIELD=VALUE, got length"),
        (["run", f"--out={__file__}"], "exists, "),
    ],
)
def test_bad_arguments_are_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = main(arguments)
    except SystemExit as error:
        status = error.code
    assert status == 2 and message in capsys.readouterr().err


@pytest.mark.usefixtures("in_this_process")
def test_suites_are_added_to_a_result_of_the_same_machine_only(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "result.json"
    content = {"format": result.FORMAT, "machine": machine.facts(CPU) | {"date": "before"}, "suites": {"attention": {}}}
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
    for name in SUITES:
        suite = load_suite(name)
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
    assert [row.name for row in rows if row.timed] == ["ours", "eager"]
    report = [*command, "report", str(out), f"--out={tmp_path / 'REPORT.md'}"]
    assert subprocess.run(report, cwd=ROOT, capture_output=True, check=False).returncode == 0
    assert "**No GPU results.**" in (tmp_path / "REPORT.md").read_text()


def test_peak_memory_of_a_cpu() -> None:
    def step() -> None:
        torch.ones(2**24, dtype=torch.float32).sum()  # 64 MiB

    peak = timing.peak_above(timing.allocated_bytes(CPU), step, CPU)
    if peak is None:
        pytest.skip("this system does not count the peak of a process")
    assert 60 < peak / 2**20 < 80
