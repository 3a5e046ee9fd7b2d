"""One finished run of a very small model on made-up data, which all tests of the training program share."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from tests.train.small_data import write_small_data
from train.__main__ import main


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """The models are too small to use several threads, and results may depend on their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="package")
def small_run(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished demo on made-up data, only to be read: data/, run/, printed.txt.

    Under xdist the workers share it: the first to ask makes it.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "small_run"
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / "printed.txt").exists():
            shutil.rmtree(folder, ignore_errors=True)
            (folder / "data").mkdir(parents=True)
            write_small_data(folder / "data")
            command = ["demo", "--recipe", str(folder / "data" / "recipe.toml"), "--output", str(folder / "run")]
            with (folder / "printing.txt").open("w") as printed, contextlib.redirect_stdout(printed):
                assert main(command) == 0
            (folder / "printing.txt").rename(folder / "printed.txt")
    return folder


@pytest.fixture
def copied_run(small_run: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Copies parts of the run to tmp_path; returns the options of a command that continues there."""

    def copy(*parts: str) -> list[str]:
        for part in parts:
            source = small_run / "run" / part
            (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / part)
        return ["--recipe", str(small_run / "data" / "recipe.toml"), "--output", str(tmp_path)]

    return copy
