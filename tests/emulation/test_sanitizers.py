"""The kernels run under AddressSanitizer and UndefinedBehaviorSanitizer without a report."""

import subprocess
import sys

import pytest

from tests.support import emulated_module
from tests.support.compiler import address_sanitizer_environment, library_missing

FLAGS = "-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer"
TESTS = [
    "tests/contrastive/test_kernels.py",
    "tests/contrastive/test_kernels_in_torch.py",
    "tests/attention/test_kernels.py::test_the_result_does_not_depend_on_the_order_in_which_warps_run",
    "tests/attention/test_kernels.py::test_packed_against_float64",
    "tests/attention/test_kernels.py::test_padded_against_float64",
    "tests/attention/test_kernels.py::test_many_sequences",
    "tests/attention/test_kernels.py::test_nan_and_inf_stay_in_their_sequence_and_head",
    "tests/attention/test_kernels_in_torch.py::test_bindings_check_every_argument",
    "tests/attention/test_kernels_in_torch.py::test_rows_of_no_sequence_are_zero",
]


@pytest.mark.proof
@pytest.mark.parametrize("size", [64, 112])
def test_sanitizers_have_nothing_to_report(size):
    if reason := library_missing("libasan.so"):
        pytest.skip(reason)
    module = emulated_module.build(f"sanitized-{size}", flags=FLAGS, head_dims=str(size))
    environment = address_sanitizer_environment() | {
        "CONAN_FAST_EMULATED": str(module),
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    # Chosen by their ids: the tests of one head_dim, and with 64 those that need no other.
    others = "many_sequences or nan_and_inf or no_sequence or bindings or contrastive"
    chosen = f"emulated-{size} or {others}" if size == 64 else f"emulated-{size}"
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n0", "-m", "", "--no-header", "-p", "no:cacheprovider"]
    command += ["-k", f"({chosen}) and not few-examples", *TESTS]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    report = result.stdout + result.stderr
    assert result.returncode == 0 and " passed" in result.stdout, report
    assert "runtime error" not in report and "AddressSanitizer" not in report, report
