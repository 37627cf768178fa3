"""The files of deploy/: valid, with options that exist, and two replicas behind the balancer."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from tests.serving.conftest import BASE, serving

from tunescope.cli.app import build_app
from tunescope.commands import request
from tunescope.commands.command import Result

DEPLOY = Path(__file__).parents[2] / "deploy"
HAPROXY = shutil.which("haproxy")
NEEDS_HAPROXY = pytest.mark.skipif(HAPROXY is None, reason="no haproxy on this machine")


def kubernetes() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))


@pytest.mark.parametrize("resource", kubernetes(), ids=lambda resource: resource["kind"])
def test_kubernetes_takes_each_resource(resource: dict[str, Any]) -> None:
    import kubernetes_validate

    kubernetes_validate.validate(resource, "1.30", strict=True)


def test_the_containers_options_are_options(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = yaml.safe_load((DEPLOY / "Dockerfile").read_text().rpartition("ENTRYPOINT ")[2])
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    pod = kubernetes()[0]["spec"]["template"]["spec"]["containers"][0]["args"]
    for arguments in (compose["services"]["server-1"]["command"], compose["services"]["server-2"]["command"], pod):
        ran: list[Any] = []
        monkeypatch.setattr(request("serve"), "run", lambda made, *_, ran=ran: ran.append(made) or Result(None))
        build_app().main(args=[*entry[1:], *arguments], prog_name="tunescope", standalone_mode=False)
        assert ran[0].host == "0.0.0.0" and ran[0].bank == Path("/bank")
        grace = ran[0].limits.grace
        assert grace < kubernetes()[0]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert int(compose["services"]["server-1"]["stop_grace_period"].removesuffix("s")) > 30


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


@NEEDS_HAPROXY
def test_two_replicas_behind_the_balancer(bank_folder: Path) -> None:
    front = f"127.0.0.1:{free_port()}"
    with serving(bank_folder) as one, serving(bank_folder) as two:
        places = {"FRONT": front, "SERVER_1": one.url[7:], "SERVER_2": two.url[7:]}
        config = [str(HAPROXY), "-f", str(DEPLOY / "haproxy.cfg")]
        subprocess.run([*config, "-c"], check=True, env=os.environ | places, capture_output=True)
        with subprocess.Popen(config, env=os.environ | places, stderr=subprocess.DEVNULL) as balancer:
            try:
                check(f"http://{front}", one, two)
            finally:
                balancer.terminate()


def check(front: str, one: Any, two: Any) -> None:
    body = {"model": "lora", "messages": [{"role": "user", "content": "say 3"}], "max_tokens": 6, "temperature": 0}

    def ask(**more: Any) -> requests.Response:
        return requests.post(f"{front}/v1/chat/completions", json=body | more, timeout=30)

    for _ in range(100):
        try:
            if requests.get(f"{front}/health", timeout=5).status_code == 200:
                break
        except requests.ConnectionError:
            pass
        time.sleep(0.1)
    wanted = one.chat("lora", max_tokens=6)["choices"]
    assert all(ask().json()["choices"] == wanted for _ in range(6))
    asked = [server.app.state.service.metrics.text().decode().count('model_name="lora"') for server in (one, two)]
    assert all(asked)  # both had some
    streamed = ask(stream=True)
    assert streamed.text.endswith("data: [DONE]\n\n")
    one.app.state.service.stopping = True  # as when it is told to stop: the balancer sees it within a second
    time.sleep(2.5)
    assert all(ask().status_code == 200 for _ in range(6))
    assert requests.get(f"{front}/v1/models", timeout=30).json()["data"][0]["id"] == BASE
