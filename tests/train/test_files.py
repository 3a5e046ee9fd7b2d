"""Files that training writes."""

import os
import stat

import pytest
import torch
from safetensors.torch import save_file

from train.files import atomic_folder, write_text


@pytest.fixture(params=[0o022, 0o027, 0o002])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_written_files_have_the_mode_of_the_umask(tmp_path, umask):
    with atomic_folder(tmp_path / "model") as partial:
        (partial / "module").mkdir()
        save_file({"weight": torch.ones(2)}, partial / "module" / "model.safetensors")
        (partial / "config.json").write_text("{}")
    write_text(tmp_path / "metrics" / "losses.jsonl", "")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert {modes[name] for name in ("model", "module", "metrics")} == {0o777 & ~umask}
    assert {modes[name] for name in ("model.safetensors", "config.json", "losses.jsonl")} == {0o666 & ~umask}
