from __future__ import annotations

import errno
import multiprocessing
import os
import sys
import time
from pathlib import Path

import pytest
import torch

from tunescope import peak_memory, storage
from tunescope.errors import TunescopeError
from tunescope.locks import locked
from tunescope.tensor_files import read_tensors, write_tensors

CPU = torch.device("cpu")


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_the_cache_folder_can_be_moved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TUNESCOPE_CACHE", str(tmp_path))
    assert storage.cache_folder() == tmp_path
    monkeypatch.delenv("TUNESCOPE_CACHE")
    assert storage.cache_folder().name == "tunescope"


def test_a_write_replaces_the_whole_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "new" / "file.txt"
    storage.atomic_write(file, "long first content\n")
    storage.atomic_write(file, "ß\r\n")
    assert file.read_bytes() == "ß\r\n".encode()
    assert names(file.parent) == ["file.txt"]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file.txt"
    storage.atomic_write(file, "old")
    monkeypatch.setattr(os, "fsync", _full_disk)
    with pytest.raises(TunescopeError, match=rf"disk is full: cannot write to {tmp_path}.*Free some space"):
        storage.atomic_write(file, "new")
    assert file.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


def test_a_full_cache_says_how_to_move_it(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", _full_disk)
    with pytest.raises(TunescopeError, match="set TUNESCOPE_CACHE to a folder on another disk"):
        storage.atomic_write(empty_cache / "file", b"")


def test_a_library_that_wraps_a_full_disk_is_understood(tmp_path: Path) -> None:
    message = "Error while serializing: I/O error: No space left on device (os error 28)"
    with pytest.raises(TunescopeError, match="disk is full"), storage.disk_errors(tmp_path):
        raise RuntimeError(message)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux forgets an earlier peak")
def test_tensors_are_written_without_a_copy(tmp_path: Path) -> None:
    tensors = {f"part {i}": torch.ones(10_000_000) for i in range(4)}
    peak_memory.reset_peak(CPU)
    before = peak_memory.peak_mb(CPU)
    write_tensors(tmp_path / "all.safetensors", tensors, {"state": "{}"})
    assert peak_memory.peak_mb(CPU) - before < 40  # they are 160
    found, texts = read_tensors(tmp_path / "all.safetensors")
    assert texts == {"state": "{}"} and all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_an_unwritable_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(TunescopeError, match="/there cannot be written"), storage.disk_errors(tmp_path):
        raise PermissionError(errno.EACCES, "Permission denied", "/there")


THING = storage.Kind("thing", unsealed=("notes",))


def test_a_folder_appears_whole_and_replaces_the_old_one(tmp_path: Path) -> None:
    final = tmp_path / "deep" / "final"
    for content in ("one", "two"):
        with storage.atomic_folder(final, THING) as temporary:
            (temporary / content).write_text(content)
            assert not (final / content).exists()
        assert names(final) == [storage.MARKER, content]
    assert names(final.parent) == ["final"]


def test_a_folder_is_replaced_where_the_system_cannot_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunescope.storage.files._exchange", lambda first, second: False)
    test_a_folder_appears_whole_and_replaces_the_old_one(tmp_path)


def test_a_failed_folder_leaves_what_was_there(tmp_path: Path) -> None:
    final = tmp_path / "final"
    with storage.atomic_folder(final, THING) as temporary:
        (temporary / "old").touch()
    with pytest.raises(KeyboardInterrupt), storage.atomic_folder(final, THING) as temporary:
        (temporary / "new").touch()
        raise KeyboardInterrupt
    assert names(final) == [storage.MARKER, "old"]
    assert names(tmp_path) == ["final"]


def test_what_a_killed_process_left_is_removed_later(tmp_path: Path) -> None:
    old, fresh = tmp_path / ".final.tmp-0", tmp_path / ".final.tmp-1"
    foreign = tmp_path / ".final.tmp-2"
    for left in (old, fresh, foreign):
        left.mkdir()
        if left is not foreign:
            (left / storage.MARKER).write_text('{"kind": "thing", "sha256": {}, "unsealed": []}')
        os.utime(left, (time.time() - 7200 * (left is not fresh),) * 2)
    with storage.atomic_folder(tmp_path / "final"):
        pass
    assert names(tmp_path) == [".final.tmp-1", ".final.tmp-2", "final"]


def test_a_lock_keeps_other_processes_out(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_count_up, args=(tmp_path / "count",)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert (tmp_path / "count").read_text() == "20"


def _count_up(file: Path) -> None:
    for _ in range(10):
        with locked(file):
            count = int(file.read_text()) if file.exists() else 0
            time.sleep(0.002)
            file.write_text(str(count + 1))


def _full_disk(_descriptor: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")
