"""The report of the benchmarks, of made-up results: what it says, and what it refuses to say."""

import copy
import itertools
import json
import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from benchmarks import machine
from benchmarks.__main__ import main
from benchmarks.report import command, style
from benchmarks.report.command import BENCHMARKS
from benchmarks.result import FORMAT, BadResult, DifferentRuns, Run, read

MACHINE = {
    "date": "2026-01-02T03:04:05+00:00",
    "gpu": "Some GPU",
    "driver": "580.1",
    "cpu": "Some CPU, 2 threads",
    "python": "3.11.0",
    "torch": "2.13.0",
    "torch_cuda": "13.0",
    "cudnn": 91900,
    "packages": {"triton": "3.5", "xformers": None},
    "conan_fast": {"compiled_architectures": ["sm_90a"]},
    "git_commit": "0123456789abcdef",
    "uncommitted_changes": None,
    "csrc_sha256": "set below",
}
CEILINGS = {"dtype": "bfloat16", "gemm_flop_per_s": 8e14, "copy_bytes_per_s": 4e12, "launch_s": 2e-6}
PARTS = {"attention": ("forward", "backward"), "contrastive": ("both",), "step": ("step",)}


def row(suite: str, case: dict[str, Any], name: str, role: str, ms: float, **more: Any) -> dict[str, Any]:
    ratio = {"ratio": ms / 2, "low": ms / 2 - 0.01, "high": ms / 2 + 0.01, "differs": ms != 2}
    part = {
        "timing": {"median_ms": ms, "low_ms": ms - 0.1, "high_ms": ms + 0.1, "rounds": 30},
        "flop": 8e11,
        "bytes": 1e9,
        "versus_ours": None if name == "ours" else ratio,
    }
    filled = {"case": case, "implementation": name, "role": role, "group": 0, "wrong": False, "reason": None}
    filled |= {"peak_bytes": 2**30, "relative_errors": {}, "parts": dict.fromkeys(PARTS[suite], part)}
    return filled | more


def suites() -> dict[str, Any]:
    made: dict[str, list[dict[str, Any]]] = {"attention": [], "contrastive": [], "step": []}
    for length in (8192, 4096):
        case = {"batch": 2, "length": length, "head_dim": 112, "heads": 32, "kv_heads": 8}
        for name, role, ms in (("ours", "ours", 2.0), ("sdpa_flash_unmasked", "bound", 1.5), ("flex", "rival", 3.0)):
            made["attention"].append(row("attention", case, name, role, ms))
        made["attention"].append(row("attention", case, "eager", "rival", 20.0))
        wrong = {"wrong": True, "reason": "dq of sequence 0 is off by 0.3 of its norm"}
        gone = {"reason": "is not installed: No module named 'flash_attn'"}
        for name, why in (("fa4", wrong), ("fa2", gone)):
            absent = row("attention", case, name, "rival", 1.0, **why)
            del absent["parts"]
            made["attention"].append(absent)
    for pairs in (16384, 4096):
        case = {"pairs": pairs, "negatives": 7, "dim": 3584, "dims": [256, 3584]}
        for name, role, ms in (("ours", "ours", 2.0), ("three_gemms", "gemms", 1.0), ("eager", "rival", 9.0)):
            made["contrastive"].append(row("contrastive", case, name, role, ms))
    for stage in ("weak", "supervised"):
        case = {"stage": stage, "model": "tiny", "batch_size": 64, "tokens": 4096}
        shares = dict(zip(style.PARTS, (0.3, 0.4, 0.1, 0.1, 0.1), strict=True))
        more = {"breakdown": shares, "tokens": 4000, "padded_tokens": 4000}
        made["step"].append(row("step", case, "ours", "ours", 2.0, **more))
        made["step"].append(row("step", case, "transformers_sdpa", "rival", 5.0, **more | {"padded_tokens": 6000}))
    return {name: {"ceilings": CEILINGS, "stopped": None, "rows": rows} for name, rows in made.items()}


@pytest.fixture
def content() -> dict[str, Any]:
    facts = MACHINE | {"csrc_sha256": machine.csrc_sha256()}
    return {"format": FORMAT, "machine": facts, "suites": suites()}


def report(folder: Path, *contents: dict[str, Any], pictures: bool = False) -> str:
    """The text; pictures take a second."""
    files = [folder / f"{number}.json" for number in range(len(contents))]
    for file, content in zip(files, contents, strict=True):
        file.write_text(json.dumps(content))
    with nullcontext() if pictures else patch.object(command, "_pictures", lambda *_: {}):
        assert main(["report", *map(str, files), f"--out={folder / 'REPORT.md'}"]) == 0
    return (folder / "REPORT.md").read_text()


def test_what_a_reader_looks_for_stands_at_the_top(tmp_path: Path, content: dict[str, Any]) -> None:
    text = report(tmp_path, content)
    lines = {line.split("<br>")[0].strip("| "): line for line in text.splitlines() if "<br>" in line}
    forward = lines["Soft-masked attention, forward"]
    assert "L=8192 D=112 B=2 | 2 ms | 50% (1 ms)" in forward  # 8e11 FLOP at 8e14 FLOP/s
    assert "`flex`: **1.50** (1.49-1.51)" in forward and "`sdpa_flash_unmasked`: **0.75**" in forward
    assert forward.rstrip(" |").endswith("`eager`: **10.00** (9.99-10.01)")
    assert "**2.50** (2.49-2.51)" in lines["Training step"]
    assert sum("Training step<br>" in line for line in text.splitlines()) == 2
    assert text.index("Training step<br>") < text.index("## Soft-masked attention")
    assert not any(words in text for words in ("No GPU results", "earlier commit", "result of ours was wrong"))
    assert "Some GPU, driver 580.1" in text and "commit 0123456789ab," in text and "triton 3.5" in text
    assert "| 2,000,000 |" in text and "50%" in text  # tokens / s, padding


def test_wrong_and_absent_peers_are_named_with_why(tmp_path: Path, content: dict[str, Any]) -> None:
    text = report(tmp_path, content)
    assert "| `fa4` | **WRONG RESULT**: dq of sequence 0 is off by 0.3 of its norm | every case |" in text
    assert "| `fa2` | is not installed: No module named 'flash_attn' | every case |" in text


def test_pictures(tmp_path: Path, content: dict[str, Any]) -> None:
    text = report(tmp_path, content, pictures=True)
    assert re.findall(r"\]\(pictures/(.+?)\)", text) == ["top.svg"]  # the one that git tracks
    shown = re.findall(r"pictures/(.+?)[`)]", text)
    assert sorted(shown) == ["attention-112.svg", "contrastive.svg", "roofline.svg", "step.svg", "top.svg"]
    for name in shown:
        picture = (tmp_path / "pictures" / name).read_text()
        colours = {colour.lower() for colour in re.findall(r"#[0-9a-fA-F]{6}", picture)}
        known = {style.TEXT, style.OURS, style.GREY, *style.PEERS, *style.PARTS.values()}
        assert colours <= known, f"{name}: {colours - known}"
        assert "Some GPU, 2026-01-02, commit 0123456789ab" in picture and "has changed" not in picture
    first = {name: (tmp_path / "pictures" / name).read_bytes() for name in shown}
    report(tmp_path, content, pictures=True)
    assert first == {name: (tmp_path / "pictures" / name).read_bytes() for name in shown}


def test_a_run_with_one_case_and_one_suite_is_enough(tmp_path: Path, content: dict[str, Any]) -> None:
    attention = content["suites"]["attention"]
    attention["rows"] = attention["rows"][:2]
    attention["stopped"] = "attention: flex is checked"
    content["suites"] = {"attention": attention}
    text = report(tmp_path, content, pictures=True)
    assert "The run is incomplete; stopped: attention: flex is checked." in text
    assert "InfoNCE" not in text and "**Not measured at all: contrastive, step.**" in text


def test_a_gpu_run_without_the_kernels_says_so(tmp_path: Path, content: dict[str, Any]) -> None:
    assert "not the CUDA kernels" not in report(tmp_path, content)
    for row in content["suites"]["contrastive"]["rows"][:3]:
        row["case"] |= {"our_backend": "torch", "kernels_not_used": "dims: 7 is no multiple of 16"}
    text = report(tmp_path, content)
    cases = "N=16384 K=7 D=3584, 2 dims (dims: 7 is no multiple of 16)."
    assert f"**Ours is not the CUDA kernels** but the torch backend in: {cases}" in text


def test_where_ours_was_never_right_there_is_a_report_all_the_same(tmp_path: Path, content: dict[str, Any]) -> None:
    for suite in content["suites"].values():
        for row in suite["rows"]:
            if row["role"] == "ours":
                row |= {"wrong": True, "reason": "AcceleratorError: illegal memory access"}
                del row["parts"]
    text = report(tmp_path, content, pictures=True)
    assert "**A result of ours was wrong** in: L=8192 D=112 B=2, `ours` (AcceleratorError: illegal memory" in text
    assert "top.svg" not in text and "| `ours` | **WRONG RESULT**: AcceleratorError: illegal" in text


def test_times_that_the_host_took_are_marked(tmp_path: Path, content: dict[str, Any]) -> None:
    assert "°" not in report(tmp_path, content).replace("marked with °", "")
    for row in content["suites"]["contrastive"]["rows"]:
        row["parts"] = {"both": row["parts"]["both"] | {"host_ms": 1.9}}
    assert "2 ms°" in report(tmp_path, content)


def test_cpu_results_say_that_gpu_figures_are_missing(tmp_path: Path, content: dict[str, Any]) -> None:
    content["machine"]["gpu"] = None
    text = report(tmp_path, content)
    assert "**No GPU results.**" in text and "## Summary: CPU" in text and "Some CPU" in text


def test_newer_results_of_other_kernels_are_marked_and_come_second(tmp_path: Path, content: dict[str, Any]) -> None:
    old = copy.deepcopy(content)
    old["machine"] |= {"csrc_sha256": "0" * 64, "date": "2026-02-01T00:00:00+00:00", "driver": "999"}
    marked = report(tmp_path, old, pictures=True)
    assert "> **Measured at an earlier commit**, 0123456789ab: the kernel sources" in marked
    assert "(csrc/ has changed since)" in (tmp_path / "pictures" / "top.svg").read_text()
    text = report(tmp_path, old, content)
    assert "earlier commit" not in text and "driver 580.1" in text and "999" not in text


def test_suites_of_different_runs_stand_apart(tmp_path: Path, content: dict[str, Any]) -> None:
    other = copy.deepcopy(content)
    other["machine"] |= {"gpu": None, "cpu": "Other CPU"}
    del content["suites"]["step"]
    text = report(tmp_path, content, other, pictures=True)
    assert text.index("## Summary: Some GPU") < text.index("## Summary: CPU")
    assert "Training step<br>" not in text[: text.index("## Summary: CPU")]
    assert "## Soft-masked attention: CPU" not in text and "## Training step: CPU" in text
    assert "(pictures/1-top.svg)" in text and "**No GPU results.**" not in text
    assert "**No GPU results of: step.**" in text


def test_no_ratio_between_two_runs_or_cases(content: dict[str, Any]) -> None:
    one, other = (Run(Path(name), copy.deepcopy(content)) for name in ("one.json", "other.json"))
    ours, bound, *_ = one.rows("attention")
    assert bound.over(ours) == pytest.approx(0.75)
    with pytest.raises(DifferentRuns, match=r"one.json and other.json are two runs"):
        bound.over(other.rows("attention")[0])
    assert bound.over(ours, "forward") == pytest.approx(0.75)
    with pytest.raises(DifferentRuns, match="two runs"):
        ours.over(other.rows("attention")[0], "forward")
    other_case = next(row for row in one.rows("attention") if row["case"]["length"] == 4096)
    with pytest.raises(DifferentRuns, match="two cases"):
        other_case.over(ours)


def test_differences_that_are_none_are_said_to_be(tmp_path: Path, content: dict[str, Any]) -> None:
    rows = content["suites"]["contrastive"]["rows"]
    rows[2]["parts"]["both"]["versus_ours"] = {"ratio": 1.004, "low": 0.99, "high": 1.02, "differs": False}
    assert "`eager`: no difference (0.99-1.02)" in report(tmp_path, content)
    rows[2]["parts"]["both"]["versus_ours"] |= {"differs": None}
    assert "`eager`: 1.00 (too few rounds for an interval)" in report(tmp_path, content)


def test_files_that_are_no_results_are_named(tmp_path: Path, content: dict[str, Any], capsys) -> None:
    for text in ("{}", "[1]", "no JSON"):
        bad = tmp_path / "bad.json"
        bad.write_text(text)
        with pytest.raises(BadResult, match=r"bad\.json"):
            read(bad)
    assert main(["report", str(bad), f"--out={tmp_path / 'REPORT.md'}"]) == 2
    assert "bad.json" in capsys.readouterr().err


def test_the_committed_report_is_of_the_committed_results(tmp_path: Path) -> None:
    """After a change of kernels, results or report: python -m benchmarks report."""
    assert main(["report", f"--out={tmp_path / 'REPORT.md'}"]) == 0
    committed = BENCHMARKS / "REPORT.md"
    assert (tmp_path / "REPORT.md").read_text() == committed.read_text()
    assert (BENCHMARKS / "pictures" / "top.svg").exists() and (tmp_path / "pictures" / "top.svg").exists()


def linear(colour: str) -> np.ndarray:
    channels = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIELAB, white D65, of linear RGB."""
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = (np.cbrt(v) if v > 0.008856 else 7.787 * v + 16 / 116 for v in matrix @ rgb / matrix.sum(1))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_colours_are_readable_on_white_and_black() -> None:
    """WCAG 2.1: 4.5 for text, 3 for graphics."""
    for colour in {style.TEXT, style.OURS, style.GREY, *style.PEERS, *style.PARTS.values()}:
        needed, luminance = 4.5 if colour == style.TEXT else 3.0, float(linear(colour) @ [0.2126, 0.7152, 0.0722])
        assert 1.05 / (luminance + 0.05) >= needed, f"{colour} on white"
        assert (luminance + 0.05) / 0.05 >= needed, f"{colour} on black"


# Machado, Oliveira, Fernandes 2009: severity 1, linear RGB.
VISION = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}


@pytest.mark.parametrize("vision", VISION)
def test_colours_are_told_apart_by_colour_blind_readers(vision: str) -> None:
    seen = {
        colour: lab(np.clip(np.array(VISION[vision]) @ linear(colour), 0, 1)) for colour in (style.OURS, *style.PEERS)
    }
    for a, b in itertools.combinations(seen, 2):
        assert np.linalg.norm(seen[a] - seen[b]) > 28, (a, b)
