"""`python -m benchmarks explain`: what it reads from machine code, its arithmetic, and what it says of results."""

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.attention.cases import Case as AttentionCase
from benchmarks.contrastive.cases import Case as ContrastiveCase
from benchmarks.explain import command, disassembler, kernels, loops, report, resources, results, sass, shapes
from benchmarks.explain.command import PAPER_DIMS
from benchmarks.explain.occupancy import occupancy
from benchmarks.result import FORMAT, BadResult, Run
from benchmarks.roofline import Ceilings
from conan_fast import build_info

BACKWARD = "void conan_fast::sm80_backward<conan_fast::Bf16, 112, 128, 2>(conan_fast::AttentionParams)"
RESOURCES = {
    "registers": 255, "stack_bytes": 0, "spill_store_bytes": 4, "spill_load_bytes": 8, "static_shared_bytes": 0,
    "dynamic_shared_bytes": 132112, "threads_per_block": 256, "symbol": "_Z1x", "architecture": "sm_90a",
}  # fmt: skip
ENTRIES = [
    {**RESOURCES, "name": BACKWARD},
    {**RESOURCES, "name": BACKWARD, "architecture": "sm_80"},
    {**RESOURCES, "name": BACKWARD.replace("Bf16", "Fp16")},
    {**RESOURCES, "name": BACKWARD.replace("112, 128, 2", "64, 64, 1")},
    {**RESOURCES, "name": "void conan_fast::sm80_backward_dq<conan_fast::Bf16, 112>(conan_fast::AttentionParams)"},
    {**RESOURCES, "name": "void conan_fast::sm80_scores<conan_fast::Bf16, true>(conan_fast::ScoreParams)"},
    {**RESOURCES, "name": "void conan_fast::prefix_norms<conan_fast::Fp32>(conan_fast::Vectors, float*)"},
    {**RESOURCES, "name": "conan_fast::combine_partials(conan_fast::CombineParams)"},
]
KERNELS = resources.kernels_of(ENTRIES)


def options(*arguments):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(list(arguments))


def kernel(name):
    """One that does not have to be compiled."""
    return resources.kernels_of([{**RESOURCES, "name": f"void conan_fast::{name}(conan_fast::Params)"}])[0]


@pytest.fixture(autouse=True)
def constants(monkeypatch):
    """Those of the compiled module, which need not be built here."""
    made = SimpleNamespace(contrastive_tile=128, contrastive_segment=64, contrastive_group_rows=32, max_prefixes=32)
    for module in (shapes, kernels):
        monkeypatch.setattr(module, "constants", lambda: made)


# Which kernels are selected.


def test_names_are_taken_apart():
    first = KERNELS[0]
    assert (first.name, first.family, first.dtype, first.head_dim) == (
        "sm80_backward<Bf16, 112, 128, 2>", "sm80_backward", "bf16", 112,
    )  # fmt: skip
    assert (first.spills, first.threads, first.dynamic_shared) == (12, 256, 132112)
    assert (KERNELS[-1].name, KERNELS[-1].dtype, KERNELS[-1].head_dim) == ("combine_partials", None, None)
    assert kernel("sm80_scores<conan_fast::Bf16, true>").arguments == ("Bf16", "true")


def test_choice():
    name = "sm80_backward<Bf16, 112, 128, 2>"
    assert list(resources.choose(KERNELS, "sm80_backward")) == ["sm80_backward<Bf16, 64, 64, 1>", name]
    assert [k.architecture for k in resources.choose(KERNELS, "sm80_backward<112")[name]] == ["sm_80", "sm_90a"]
    assert list(resources.choose(KERNELS, name, architecture="sm_80")) == [name]
    assert list(resources.choose(KERNELS, "backward", head_dim=112)) == [name, "sm80_backward_dq<Bf16, 112>"]
    assert list(resources.choose(KERNELS, "sm80_backward", dtype="fp16")) == ["sm80_backward<Fp16, 112, 128, 2>"]
    assert list(resources.choose(KERNELS, "sm80_backward<Fp16, 112, 128, 2>"))  # by its whole name, bf16 or not
    assert list(resources.choose(KERNELS, "prefix_norms")) == ["prefix_norms<Fp32>"]  # which has no bf16 instance here


@pytest.mark.parametrize(
    ("query", "filters", "says"),
    [
        ("sm80_forwards", {}, "combine_partials, prefix_norms, sm80_backward, sm80_backward_dq, sm80_scores"),
        ("sm80_backward", {"architecture": "sm_70"}, "sm_80, sm_90a"),
        ("sm80_backward", {"head_dim": 80}, "112, 64"),
        ("sm80_scores", {"dtype": "fp32"}, "bf16"),
    ],
)
def test_what_does_not_exist_lists_what_does(query, filters, says):
    with pytest.raises(resources.UnknownKernel, match=says):
        resources.choose(KERNELS, query, **filters)


# Occupancy, by hand, and as cuda_occupancy.h has it.


@pytest.mark.parametrize(
    ("architecture", "threads", "registers", "shared", "blocks", "limited_by"),
    [
        ("sm_80", 128, 255, 58148, 2, ["registers", "shared memory"]),  # 8 warps of 8 K registers; 164 / 57.9 KB
        ("sm_90a", 128, 255, 58148, 2, ["registers"]),
        ("sm_80", 128, 216, 65536, 2, ["registers", "shared memory"]),  # 2 x 65 KB of 164
        ("sm_86", 128, 216, 65536, 1, ["shared memory"]),  # 65 KB of 100
        ("sm_80", 256, 245, 148496, 1, ["registers", "shared memory"]),
        ("sm_80", 128, 32, 0, 16, ["registers", "warps"]),
        ("sm_80", 32, 32, 0, 32, ["block slots"]),
        ("sm_89", 1024, 32, 0, 1, ["warps"]),  # 32 of 48 warps
        ("sm_80", 128, 24, 82944, 2, ["shared memory"]),  # 82 KB twice
        ("sm_80", 128, 24, 82945, 1, ["shared memory"]),  # in steps of 128 bytes twice is too much
        ("sm_80", 160, 129, 0, 2, ["registers"]),  # 136 a thread: 3 warps on each of 4 sub-partitions, not 15 in all
        ("sm_80", 1024, 65, 0, 0, ["registers"]),  # does not start
    ],
)
def test_occupancy(architecture, threads, registers, shared, blocks, limited_by):
    held = occupancy(architecture, threads=threads, registers=registers, shared=shared)
    assert held is not None
    assert (held.blocks, held.limited_by) == (blocks, limited_by)
    assert held.warps == blocks * -(-threads // 32)


def test_occupancy_of_an_unknown_chip():
    assert occupancy("sm_75", threads=128, registers=32, shared=0) is None


# Machine code.

PROLOGUE = ["LDG.E.128 R4, [R2.64]", "MUFU.RCP R5, R5"]
# A loop of two products, with a part that few rounds take (0x60 to 0x80) and a way out.
LOOP = [
    "LDGSTS.E.BYPASS.128 [R10], [R2.64]",  # 0x20
    "LDSM.16.M88.4 R12, [R11]",
    "HMMA.16816.F32.BF16 R4, R12, R16, R4",
    "@!P0 BRA 0x90",
    "MUFU.EX2 R8, R8",  # 0x60
    "FMUL R8, R8, R9",
    "STL [R1], R8",
    "HMMA.16816.F32.BF16 R4, R13, R17, R4",  # 0x90
    "@P1 EXIT",
    "@P2 BRA 0x20",
]
EPILOGUE = ["STG.E.64 [R2.64], R4", "EXIT", "BRA 0xe0", "NOP"]


def text_of(lines, function="kernel"):
    shown = ["Fatbin elf code:", "arch = sm_80", f"\t\tFunction : {function}", '\t.headerflags\t@"EF_CUDA_SM80"']
    for i, line in enumerate(lines):
        shown.append(f"        /*{16 * i:04x}*/         {line} ;      /* 0x000000ff00057624 */")
        shown.append("                                                      /* 0x000fc400078e00ff */")
    return "\n".join(shown)


def test_instructions_are_counted_by_kind():
    text = text_of(PROLOGUE + LOOP + EPILOGUE) + "\n" + text_of(["FADD R0, R0, R0"], "another")
    mix = sass.Mix(sass.parse(text, "kernel"))
    kinds = {"HMMA": 2, "MUFU.EX2": 1, "MUFU, others": 1, "LDGSTS": 1, "LDSM": 1, "LDG": 1, "STG": 1, "FMUL": 1}
    assert mix.kinds == {**kinds, sass.SPILLS: 1}
    assert mix.others == {"BRA": 2, "EXIT": 2}  # without the branch to itself behind the code
    assert mix.total == 14 and mix.tensor == 2
    assert [i.opcode for i in sass.parse(text, "another")] == ["FADD"]


def test_the_hottest_loop_and_one_round_of_it():
    loop = loops.hottest(sass.parse(text_of(PROLOGUE + LOOP + EPILOGUE)))
    assert loop is not None and loop.first == 0x20 and not loop.inner
    assert [i.address for i in loop.body] == list(range(0x20, 0xC0, 0x10))
    assert [i.address for i in loop.step] == [0x20, 0x30, 0x40, 0x50, 0x90, 0xA0, 0xB0]


def test_a_loop_inside_counts_once_and_is_noted():
    product = "HMMA.16816.F32 R4, R4, R4, R4"
    code = ["MOV R1, R2", product, "@P0 BRA 0x10", product, "@P1 BRA 0x0", "EXIT"]
    loop = loops.hottest(sass.parse(text_of(code)))
    assert loop is not None and loop.first == 0 and sass.Mix(loop.step).tensor == 2
    assert [one.first for one in loop.inner] == [0x10]


def test_a_branch_back_from_code_that_was_moved_away_is_no_loop():
    code = ["@P0 BRA 0x50", "LDG.E R1, [R2.64]", "STG.E [R2.64], R1", "EXIT", "NOP", "MUFU.EX2 R1, R1", "BRA 0x10"]
    assert loops.hottest(sass.parse(text_of(code))) is None


def test_without_products_the_loop_with_most_memory_accesses():
    code = ["FADD R1, R1, R1", "FADD R1, R1, R1", "@P0 BRA 0x0", "LDG.E R1, [R2.64]", "@P0 BRA 0x30", "EXIT"]
    loop = loops.hottest(sass.parse(text_of(code)))
    assert loop is not None and loop.first == 0x30
    assert loops.hottest(sass.parse(text_of(code[:3]))) is None


# Roofline times.

ATTENTION = AttentionCase(batch=2, length=8192, head_dim=112)
CONTRASTIVE = ContrastiveCase(pairs=16384, negatives=0, dim=3584, dims=PAPER_DIMS)
ROWS, HEAD = 2 * 32 * 8192, 2 * 8192 * 112  # query rows; elements of a head in all sequences
SCORES = 16384**2


def work(name, case):
    it = kernel(name)
    return kernels.FAMILIES[it.family].work(it, case)


def test_work_of_attention():
    product = 2 * ROWS * 8192 * 112
    forward = work("sm80_forward<conan_fast::Bf16, 112>", ATTENTION)[""]
    assert forward.flop == 2 * product and forward.bytes == 2 * HEAD * (64 + 16) + 4 * ROWS
    backward = work("sm80_backward<conan_fast::Bf16, 112, 128, 2>", ATTENTION)
    both, without = backward["with dQ"], backward["deterministic, without dQ"]
    assert both.flop == 5 * product and without.flop == 4 * product
    assert without.bytes == 2 * HEAD * (64 + 32) + 8 * ROWS and both.bytes == without.bytes + 8 * HEAD * 32
    dq = work("sm80_backward_dq<conan_fast::Bf16, 112>", ATTENTION)[""]
    assert dq.flop == 3 * product and dq.bytes == 2 * HEAD * (96 + 16) + 8 * ROWS
    assert without.flop + dq.flop == 7 * product  # docs/attention_kernels.md: 7 products in place of 5
    assert work("row_delta<conan_fast::Bf16>", ATTENTION)[""].bytes == 2 * HEAD * 64 + 4 * ROWS


def test_work_of_info_nce():
    inputs = 2 * 2 * 16384 * 3584
    kept, not_kept = (work(f"sm80_scores<conan_fast::Bf16, {kept}>", CONTRASTIVE)[""] for kept in ("true", "false"))
    assert kept.flop == not_kept.flop == 2 * SCORES * 3584
    assert kept.bytes - not_kept.bytes == 14 * SCORES  # docs/contrastive_kernels.md: 14 bytes a score
    assert inputs + 7 * 12 / 64 * SCORES < not_kept.bytes < 1.01 * (inputs + 7 * 12 / 64 * SCORES)
    weights = work("gradient_weights<conan_fast::Bf16>", CONTRASTIVE)[""].bytes
    assert weights == pytest.approx((14 + 14 + 7 * 4 / 64 + 7 * 4 / 32) * SCORES, rel=1e-3)
    assert work("product_scores", CONTRASTIVE)[""].bytes == pytest.approx((56 + 7 * 12 / 64) * SCORES, rel=1e-3)
    finish = work("finish_gradient<conan_fast::Bf16, conan_fast::Fp32>", CONTRASTIVE)[""].bytes
    assert finish == pytest.approx((4 + 2 + 4) * 2 * 16384 * 3584, rel=1e-3)
    private = replace(CONTRASTIVE, negatives=7)
    read = work("private_scores<conan_fast::Bf16>", private)[""].bytes
    assert read == pytest.approx(2 * 8 * 16384 * 3584, rel=1e-2)


def test_roofline_time_names_the_limit_and_the_ceilings():
    it = kernel("sm80_forward<conan_fast::Bf16, 112>")
    [_, at, says] = report.roofline(it, kernels.FAMILIES[it.family], ATTENTION, command.DOCS, command.DOCS_SOURCE)
    assert "770 TFLOP/s and 4.3 TB/s" in at and "docs/contrastive_kernels.md" in at
    assert "1.92 TFLOP" in says and "2.5 ms of GEMM" in says and "limited by the GEMM" in says
    it = kernel("gradient_weights<conan_fast::Bf16>")
    assert "limited by memory" in report.roofline(it, kernels.FAMILIES[it.family], CONTRASTIVE, command.DOCS, "")[2]


def test_dynamic_shared_memory_follows_the_prefixes():
    it = replace(kernel("gradient_weights<conan_fast::Bf16>"), dynamic_shared=65536)
    assert kernels.FAMILIES["gradient_weights"].dynamic_shared(it, CONTRASTIVE) == 7 * 2048


def test_the_way_through_info_nce_is_noted():
    it, note = kernel("sm80_scores<conan_fast::Bf16, false>"), kernels.FAMILIES["sm80_scores"].note
    assert "in blocks" in note(it, CONTRASTIVE)
    assert "does not run" in note(it, replace(CONTRASTIVE, pairs=8192))


# Results.

CEILINGS = {"dtype": "bfloat16", "gemm_flop_per_s": 8e14, "copy_bytes_per_s": 4e12, "launch_s": 2e-6}


def result(gpu="NVIDIA H200", sha256="now", date="2026-01-02T03:04:05+00:00", median_ms=4.0, length=8192):
    def part(case, name, ms):
        return {name: {"timing": {"median_ms": ms}, **asdict(case.work(name))}}

    case = replace(ATTENTION, length=length)
    ours = {"implementation": "ours", "role": "ours", "reason": None}
    row = {"case": asdict(case), **ours}
    parts = part(case, "forward", median_ms) | part(case, "backward", 3 * median_ms)
    both = {"case": json.loads(json.dumps(asdict(CONTRASTIVE))), **ours}
    return {
        "format": FORMAT,
        "machine": {
            "gpu": gpu,
            "date": date,
            "git_commit": "0123456789abcdef",
            "csrc_sha256": sha256,
            "uncommitted_changes": None,
        },
        "suites": {
            "attention": {
                "ceilings": CEILINGS,
                "rows": [
                    {**row, "parts": parts},
                    {**row, "implementation": "ours_deterministic", "reason": "too slow", "parts": {}},
                ],
            },
            "contrastive": {
                "ceilings": {**CEILINGS, "gemm_flop_per_s": 7e14},
                "rows": [{**both, "parts": part(CONTRASTIVE, "both", 10.0)}],
            },
        },
    }


def runs_of(*contents):
    return [Run(Path("x.json"), content) for content in contents]


def said(name, contents, case=ATTENTION):
    it = kernel(name)
    return "\n".join(report.measurement(it, kernels.FAMILIES[it.family], case, runs_of(*contents), "now"))


FORWARD_NAME = "sm80_forward<conan_fast::Bf16, 112>"


def test_measured_share_of_the_roofline_time():
    text = said(FORWARD_NAME, [result()])
    assert "4 ms for attention forward" in text and "NVIDIA H200, 2026-01-02, commit 0123456789ab" in text
    assert "STALE" not in text and "60.1 %" in text  # 1.924 TFLOP at 800 TFLOP/s are 2.405 ms
    text = said("sm80_backward<conan_fast::Bf16, 112, 128, 2>", [result()])
    assert "12 ms for attention backward (row_delta, sm80_backward)" in text and "50.1 %" in text
    assert "deterministic" not in text  # that row has a reason in place of a time
    text = said("combine_partials", [result()], CONTRASTIVE)
    assert "10 ms for InfoNCE" in text and "82.5 %" in text  # 5.773 TFLOP at 700 TFLOP/s


def test_a_result_of_other_sources_is_stale():
    assert "STALE" in said(FORWARD_NAME, [result(sha256="then")])


def test_the_newest_result_of_each_gpu(tmp_path: Path):
    old, new = result(median_ms=9.0), result(date="2026-02-01T00:00:00+00:00", median_ms=5.0)
    files = [tmp_path / f"{number}.json" for number in range(4)]
    for file, content in zip(files, (old, new, result(gpu="NVIDIA A100"), result(gpu=None)), strict=True):
        file.write_text(json.dumps(content))
    found = results.find(results.load(files), kernels.FORWARD, ATTENTION)
    assert [(one.ms, one.row.run.gpu) for one in found] == [(5, "NVIDIA H200"), (4, "NVIDIA A100")]
    assert results.load(files[3:]) == []  # of a CPU


def test_nothing_measured():
    assert said(FORWARD_NAME, []) == "  measured: not yet measured on a GPU"
    elsewhere = said(FORWARD_NAME, [result(length=512)])
    assert "not yet measured on a GPU at this shape" in elsewhere and "length=512" in elsewhere
    assert "bfloat16" in said(FORWARD_NAME.replace("Bf16", "Fp16"), [result()])
    assert "no operation" in said("schedule_tiles", [result()])


def test_ceilings_and_where_they_are_from():
    assert command.ceilings_of("attention", [], options()) == (command.DOCS, command.DOCS_SOURCE)
    ceilings, source = command.ceilings_of("contrastive", runs_of(result()), options())
    assert ceilings == Ceilings(**{**CEILINGS, "gemm_flop_per_s": 7e14}) and "H200" in source
    ceilings, source = command.ceilings_of("attention", runs_of(result()), options("--tflops=500", "--tb-per-s=2"))
    assert (ceilings.gemm_flop_per_s, ceilings.copy_bytes_per_s) == (5e14, 2e12) and "H200" not in source


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"format": 1, "machine": {}, "suites": {}}', json.dumps({"format": FORMAT})]
)
def test_a_file_that_is_no_result(tmp_path: Path, content):
    (file := tmp_path / "x.json").write_text(content)
    with pytest.raises(BadResult, match=r"x\.json"):
        results.load([file])


# The command.


@pytest.fixture
def no_disassembler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(disassembler.importlib.util, "find_spec", lambda name: None)
    disassembler.path_of_programs.cache_clear()
    yield
    disassembler.path_of_programs.cache_clear()


def explained(monkeypatch, capsys, *arguments, entries=ENTRIES, missing=None):
    facts = {"kernels": entries, "missing_backends": missing or {}}
    monkeypatch.setattr(command, "build_info", lambda kernels: facts)
    status = command.main(options(*arguments))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_without_a_disassembler_everything_else_is_there(monkeypatch, capsys, tmp_path, no_disassembler):
    monkeypatch.setattr(report, "module_file", lambda: tmp_path / "_C.so")
    (file := tmp_path / "result.json").write_text(json.dumps(result()))
    arguments = ["sm80_backward<112", "--architecture=sm_90a", f"--results={file}"]
    status, out, _ = explained(monkeypatch, capsys, *arguments)
    assert status == 0 and "pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm" in out
    assert "limited by" in out and "registers and shared memory" in out
    assert "4.81 TFLOP" in out and "red.add" in out and "12 ms" in out and "STALE" in out


def test_disassembler_is_looked_for_in_cuda_home(monkeypatch, tmp_path, no_disassembler):
    for name in disassembler.PROGRAMS:
        program = tmp_path / "cuda" / "bin" / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text("#!/bin/sh\necho broken >&2; exit 1\n")
        program.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    with pytest.raises(disassembler.NoDisassembly, match="broken"):
        disassembler.sass(tmp_path / "_C.so", "x", "sm_80")


def test_unknown_kernels_filters_and_shapes(monkeypatch, capsys):
    for arguments, complaint in (
        (["warp_drive"], "no kernel is called 'warp_drive'; expected (part of) one of combine_partials"),
        (["sm80_backward", "--head-dim=80"], "not compiled for head_dim 80"),
        (["sm80_backward", "--heads=6", "--kv-heads=4"], "multiple"),
        (["sm80_scores", "--dim=256", "--dims=256,512"], "--dims go up to 512"),
    ):
        status, out, error = explained(monkeypatch, capsys, *arguments)
        assert status == 2 and not out and complaint in error


def test_the_list(monkeypatch, capsys):
    for arguments in ([], ["--list"], ["sm80_scores", "--list"]):
        status, out, _ = explained(monkeypatch, capsys, *arguments)
        assert status == 0 and len(out.splitlines()) == 1 + len({k.family for k in KERNELS})
    assert "head_dim 64, 112; bf16 fp16" in out


def test_an_installation_without_kernels_says_why(monkeypatch, capsys):
    reason = "it was built without CUDA kernels: no nvcc"
    status, _, error = explained(monkeypatch, capsys, "sm80_scores", entries=[], missing={"cuda": reason})
    assert status == 2 and reason in error


def test_every_compiled_kernel_is_known_and_notes_its_threads():
    compiled = resources.kernels_of(build_info(kernels=True)["kernels"])
    if not compiled:
        pytest.skip(str(build_info()["missing_backends"].get("cuda")))
    assert {kernel.family for kernel in compiled} == set(kernels.FAMILIES)
    assert all(kernel.threads and kernel.symbol for kernel in compiled)


def test_the_forward_kernel_as_compiled(capsys, monkeypatch, tmp_path):
    if not build_info(kernels=True)["kernels"]:
        pytest.skip(str(build_info()["missing_backends"].get("cuda")))
    try:
        disassembler.path_of_programs()
    except disassembler.NoDisassembly as error:
        pytest.skip(str(error))
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    compiled = resources.kernels_of(build_info(kernels=True)["kernels"])
    [instances] = resources.choose(compiled, "sm80_forward", head_dim=112).values()
    code = report.Code(instances[0])
    # docs/attention_kernels.md: head_dim 112 is not padded, 2 products of 7 x 8 HMMA for each of 2 row groups.
    assert code.loop is not None and sass.Mix(code.loop.step).tensor == 224
    assert command.main(options("sm80_forward", "--head-dim=112", f"--architecture={instances[0].architecture}")) == 0
    out = capsys.readouterr().out
    for part in ("sm80_forward<Bf16, 112>", "limited by", "HMMA", "1.92 TFLOP", "not yet measured on a GPU"):
        assert part in out
