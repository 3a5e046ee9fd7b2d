"""The kernels under AddressSanitizer and UndefinedBehaviorSanitizer, in a process of its own: nothing is reported."""

import os
import subprocess
import sys

import pytest

from tests.support import emulated_module

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
]


def runtime(name: str) -> str:
    """Path of the compiler's library `name`."""
    command = [os.environ.get("CXX", "c++"), f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.slow
@pytest.mark.parametrize("size", [64, 112])
@pytest.mark.skipif(emulated_module.compiler_missing() is not None, reason=str(emulated_module.compiler_missing()))
def test_sanitizers_have_nothing_to_report(size):
    module = emulated_module.build(f"sanitized-{size}", flags=FLAGS, head_dims=str(size))
    environment = os.environ | {
        "CONAN_FAST_EMULATED": str(module),
        # The sanitizer's library must be loaded first, and the C++ library with it: else it does not find __cxa_throw.
        "LD_PRELOAD": f"{runtime('libasan.so')} {runtime('libstdc++.so.6')}",
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own, at its end
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    # By their ids: the kernels of one head_dim, and with 64 the tests that take no other.
    chosen = f"emulated-{size}" + (" or many_sequences or nan_and_inf or bindings or info_nce" if size == 64 else "")
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider", "-k", chosen]
    result = subprocess.run([*command, *TESTS], env=environment, capture_output=True, text=True, check=False)
    report = result.stdout + result.stderr
    assert result.returncode == 0 and " passed" in result.stdout, report
    assert "runtime error" not in report and "AddressSanitizer" not in report, report
