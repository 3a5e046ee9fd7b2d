"""A copy of the repository, in which a test can build."""

import shutil
import subprocess
from pathlib import Path

from tests.support.paths import ROOT


def copy_repository(target: Path) -> list[str]:
    """Copies the files that git tracks or would add. Returns their names."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode()
    names = [name for name in listing.split("\0") if name and (ROOT / name).is_file()]
    for name in names:
        copy = target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, copy)
    return names
