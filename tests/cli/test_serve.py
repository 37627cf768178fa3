"""The command that serves: what it refuses before anything listens, and a process that is told to stop."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from tests.cli.conftest import Ended, Place

from tunescope.commands.serve import ServeRequest

pytestmark = pytest.mark.usefixtures("trained")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ((), "--base"),
        (("--bank", "nowhere"), "is no folder"),
        (("--bank", "empty"), "--base"),
        (("--base", "nowhere"), "nowhere"),
        (("--base", "{base}", "--api-keys", "keys.yaml"), "cannot be read"),
        (("--base", "{base}", "--reports", "nowhere"), "no folder of comparisons"),
        (("--base", "{base}", "--work", "here"), "--work needs --bank"),
        (("--base", "{base}", "--bank", "{bank}", "--name", "lora"), "the base's name"),
        (("--base", "{base}", "--host", "256.1.1.1"), "cannot be listened at"),
        (("--base", "{base}", "--timeout", "soon"), "--timeout"),
        (("--base", "{base}", "--threads", "0"), "--threads"),
    ],
)
def test_what_cannot_be_served(
    place: Place, cli: Callable[..., Ended], tmp_path: Path, arguments: tuple[str, ...], why: str
) -> None:
    (tmp_path / "empty").mkdir()
    ended = cli("serve", *(each.format(base=place.base, bank=place.bank) for each in arguments), "--port", 0)
    assert ended.code == 2 and why in ended.err.replace("\n", " "), ended.err


def test_a_process_serves_until_it_is_told_to_stop(place: Place) -> None:
    program = "from tunescope.cli import main; main()"
    command = [sys.executable, "-c", program, "serve", "--bank", str(place.bank), "--base", str(place.base)]
    command += ["--port", "0", "--dtype", "float32", "--name", "small"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"COLUMNS": "300"}) as process:
        assert process.stderr is not None
        url = re.search(r"http://[\d.:]+", process.stderr.readline())
        assert url is not None
        body: dict[str, Any] = {"model": "small", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
        answer = requests.post(f"{url[0]}/v1/chat/completions", json=body, timeout=60)
        assert answer.status_code == 200 and answer.json()["usage"]["completion_tokens"] <= 2
        assert requests.get(f"{url[0]}/health", headers={"Host": "elsewhere"}, timeout=60).status_code == 400
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) in (0, -signal.SIGTERM)
        assert '"path": "/v1/chat/completions"' in process.stderr.read()


def test_threads_leave_a_core_to_the_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for cores, threads in ((1, 1), (2, 1), (8, 7)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid, cores=cores: range(cores), raising=False)
        assert ServeRequest(base="x")._threads() == threads
    assert ServeRequest(base="x", threads=5)._threads() == 5
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert ServeRequest(base="x")._threads() is None
