"""`python -m conan_fast`."""

import subprocess
import sys

import pytest
import torch

import conan_fast
from conan_fast import __main__ as command
from conan_fast import _first_use, _self_test
from conan_fast._self_test import Case
from tests.support.paths import ROOT

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv(_first_use.VARIABLE, "1")  # which the command changes


def test_every_operator_is_tested_and_right(capsys, monkeypatch):
    monkeypatch.setattr(command._backends, "missing_reason", lambda backend: "not tested here")
    assert command.main([]) == 0
    printed = capsys.readouterr().out
    assert f"conan_fast {conan_fast.__version__} in {ROOT / 'conan_fast'}" in printed
    assert "backend cuda is not available: " in printed
    for operator in ("soft_mask_attention", "info_nce", "cosent"):
        [line] = [line for line in printed.splitlines() if line.startswith(operator) and " cpu " in line]
        assert " torch " in line and line.endswith("  ok")


def test_kernels_are_tested_with_every_dtype_and_head_dim(emulated):
    kernels = [case for case in command.cases() if case.backend == "emulated"]
    attention = {(case.dtype, case.head_dim) for case in kernels if case.operator == "soft_mask_attention"}
    assert attention == {(dtype, dim) for dtype in (torch.bfloat16, torch.float16) for dim in emulated.head_dims}
    assert len(kernels) == len(attention) + 3  # info_nce in three dtypes
    for case in (Case("soft_mask_attention", "emulated", CPU, torch.float16, 112), kernels[-1]):
        line, right = command.tested(case)
        assert right and " emulated " in line and line.endswith("  ok")


def test_what_is_wrong_is_named_and_the_status_is_1(capsys, monkeypatch):
    right = conan_fast.cosent

    def wrong(a, b, **options):
        return right(a, b.detach() * 1.0 + 0 * b, **options)  # no gradient reaches b

    monkeypatch.setattr(conan_fast, "cosent", wrong)
    monkeypatch.setattr(conan_fast, "info_nce", lambda **_: 1 / 0)
    monkeypatch.setattr(
        command, "cases", lambda: [Case(name, "torch", CPU, torch.float32) for name in _self_test.PROBLEMS]
    )
    assert command.main([]) == 1
    attention, info_nce, cosent = capsys.readouterr().out.splitlines()[-3:]
    assert attention.endswith("  ok")
    assert info_nce.endswith("WRONG: ZeroDivisionError: division by zero")
    assert cosent.endswith("WRONG: graded pairs: gradient of b")


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1.0])
def test_one_wrong_element_is_an_error(value):
    exact = torch.randn(50, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = exact.float()
    [same] = _self_test.compare({"x": found}, {"x": exact}, torch.float32)
    found[49, 63] += value
    [other] = _self_test.compare({"x": found}, {"x": exact}, torch.float32)
    assert same.right and not other.right


def test_the_command_explains_itself():
    command = [sys.executable, "-m", "conan_fast", "--help"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0 and "exit status" in result.stdout, result.stderr
