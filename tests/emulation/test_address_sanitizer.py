"""AddressSanitizer follows the fibers of the emulation: it reports accesses out of bounds, and nothing else."""

import re
import subprocess
import sys

import pytest

from tests.emulation import small_kernels
from tests.emulation.build_small_kernels import build
from tests.support.compiler import address_sanitizer_environment, library_missing

pytestmark = pytest.mark.proof


@pytest.fixture(scope="session")
def run_under_asan():
    """Launches in a new Python; returns its exit status and what it printed."""
    if reason := library_missing("libasan.so"):
        pytest.skip(reason)
    library = build("asan", "-g1", "-fsanitize=address")
    environment = address_sanitizer_environment() | {"PYTHONMALLOC": "malloc"}  # so that each buffer is an allocation

    def run(*launches, seeds=1):
        command = [sys.executable, small_kernels.__file__, str(library), str(seeds), repr(launches)]
        result = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        return result.returncode, result.stdout

    return run


TILES_SHAPE = {"block": 64, "shared": 2 * 64 * 16}
ONE_THREAD = {"block": 1, "shared": 512}


def test_right_kernels_are_clean_under_address_sanitizer(run_under_asan):
    status, printed = run_under_asan(
        ("rotate", ("f128", "f128", 5), {"block": 128, "shared": 512}),
        ("row sums", ("f384", "f6", 6), {"block": 64, "grid": 3}),
        ("copy tiles", ("f1536", "f1536", 6), TILES_SHAPE),
        ("copy valid 16", ("f20", "f256", 5), {"block": 64, "shared": 1024}),
        ("tile gemm", ("H2048", "H1024", "f2048"), {"block": 128, "shared": 96 * 80}),
        ("exchange in pairs", ("f128", "f128", 3, 64), {"block": 128, "shared": 512}),
        ("store shared", (127,), ONE_THREAD),
        ("load shared", ("f1", 127), ONE_THREAD),
        ("store global", ("f8", 7), ONE_THREAD),
        ("load global", ("f8", "f1", 7), ONE_THREAD),
        ("load local", ("f4", 3), ONE_THREAD),
        ("cp.async from", ("f8", 4), ONE_THREAD),
        seeds=5,
    )
    assert (status, printed) == (0, "finished\n")


def test_kernel_errors_are_clean_under_address_sanitizer(run_under_asan):
    right = ("rotate", ("f128", "f128", 5), {"block": 128, "shared": 512})
    status, printed = run_under_asan(
        ("mma or exit", (16,), {"block": 64}), right,
        ("two barriers, crossed", (), {"block": 64}), right,
        ("copy tiles, never waited", ("f1536", "f1536", 6), TILES_SHAPE), right,
        ("cp.async 16 at", ("f4", 512), ONE_THREAD), right,
        ("ldmatrix at", ("I128", 16), {"shared": 512}), right,
        seeds=5,
    )  # fmt: skip
    assert status == 0 and "AddressSanitizer" not in printed
    assert printed.count("KernelError") == 5 * 5 and printed.endswith("finished\n")


@pytest.mark.parametrize(
    ("launch", "report"),
    [
        (("store shared", (128,)), "heap-buffer-overflow, WRITE of size 4"),
        (("store shared", (-1,)), "heap-buffer-overflow, WRITE of size 4"),
        (("load shared", ("f1", 128)), "heap-buffer-overflow, READ of size 4"),
        (("store global", ("f8", 8)), "heap-buffer-overflow, WRITE of size 4"),
        (("load global", ("f8", "f1", 8)), "heap-buffer-overflow, READ of size 4"),
        (("load global", ("f8", "f1", -1)), "heap-buffer-overflow, READ of size 4"),
        (("cp.async from", ("f8", 8)), "heap-buffer-overflow, READ of size 16"),
        (("load local", ("f4", 4)), "stack-buffer-overflow, READ of size 4"),
    ],
    ids=lambda value: f"{value[0]} {value[1][-1]}" if isinstance(value, tuple) else "",
)
def test_address_sanitizer_reports_an_access_out_of_bounds_and_its_kernel(run_under_asan, launch, report):
    status, printed = run_under_asan((*launch, ONE_THREAD))
    assert status != 0 and "finished" not in printed
    kind, access = report.split(", ")
    kernel = re.sub("[ .]", "_", launch[0])
    found = re.search(rf"AddressSanitizer: {kind} .*\n{access} .* in {kernel} ", printed, re.DOTALL)
    assert found, printed
