"""The libraries that the integrations need: extras of conan-fast, named by the error where one is missing."""

from __future__ import annotations

import importlib.metadata
import re


def require(package: str, *, extra: str, minimum: str) -> None:
    """Raises ImportError, with the command that installs it, where `package` is missing or older than `minimum`.

    Call it before the first import of the package. minimum: dotted integers such as "5.2".
    """
    command = f'pip install "conan-fast[{extra}]"'
    try:
        found = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise ImportError(
            f"{package} is not installed, expected {package}>={minimum}: {command}", name=package
        ) from None
    if _release(found) < _release(minimum):
        raise ImportError(
            f"{package} is too old: found {found}, expected {package}>={minimum}: {command}", name=package
        )


def _release(version: str) -> list[int]:
    """The leading integers: [5, 2, 0] of "5.2.0.dev1"."""
    return [int(number) for number in re.split(r"[^0-9.]", version)[0].strip(".").split(".")]
