"""A bank with an entry of every kind on a tiny base, and servers of it on free ports."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
import uvicorn
from tests.tiny import tiny_base

import tunescope as ts
from tunescope.inference import Engine
from tunescope.serving.app import make_app
from tunescope.serving.keys import Keys
from tunescope.serving.limits import Limits

LABELS = [{"text": f"the {('sun', 'rain')[i % 2]} of day {i}", "label": ("warm", "wet")[i % 2]} for i in range(24)]
TEXTS = [{"prompt": f"say {i}", "completion": f"well {i} {i}"} for i in range(12)]
PAIRS = [{"prompt": f"say {i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(12)]
RATED = [
    {"prompt": f"say {i}", "completion": "well " * (1 + i % 5), "quality": i % 5, "verbosity": (i * 3) % 5}
    for i in range(20)
]
STEPS = ts.TrainSettings(max_steps=3, lr=0.01)
BASE = "tiny-llama"


@pytest.fixture(scope="session")
def bank_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Entries that write texts: lora, dora, ia3, adapter, prompt, few-shot, labels, steered, tasks:a, tasks:b; that
    score: reward, raters; that cannot be served: full (which no row can share), damaged, other (of another base)."""
    folder, base = tmp_path_factory.mktemp("serving") / "bank", tiny_base()
    methods = {
        "lora": ts.LoRA(rank=4),
        "dora": ts.LoRA(rank=2, dora=True),
        "ia3": ts.IA3(),
        "adapter": ts.Adapter(bottleneck=4),
        "prompt": ts.PromptTuning(virtual_tokens=4),
        "few-shot": ts.FewShot(shots=2),
        "full": ts.Full(),
        "damaged": ts.LoRA(rank=2),
    }
    for name, method in methods.items():
        ts.train(base, method, None, TEXTS, settings=STEPS, out=folder / name)
    ts.train(
        base, ts.LoRA(rank=4), None, LABELS, settings=ts.TrainSettings(max_steps=30, lr=0.02),
        pattern="{text} topic: {label}", out=folder / "labels",
    )  # fmt: skip
    ts.train(base, ts.LoRA(rank=4), ts.Reward(), PAIRS, settings=STEPS, out=folder / "reward")
    columns = ("quality", "verbosity")
    ts.train(base, ts.LoRA(rank=4), ts.Attributes(columns=columns), RATED, settings=STEPS, out=folder / "raters")
    ts.train(
        base, ts.LoRA(rank=8), ts.SFT(steer_columns=columns), RATED, settings=ts.TrainSettings(max_steps=60, lr=0.02),
        out=folder / "steered",
    )  # fmt: skip
    ts.train_tasks(
        base, ts.PTuning(virtual_tokens=3), {"a": TEXTS, "b": TEXTS[:6]}, settings=STEPS, out=folder / "tasks"
    )
    ts.train(tiny_base("mistral"), ts.LoRA(rank=2), None, TEXTS, settings=STEPS, out=folder / "other")
    tensors = folder / "damaged" / "customization.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-8] + b"\x00" * 8)
    return folder


@dataclass(frozen=True)
class Server:
    """A running server."""

    url: str
    app: Any

    def post(self, path: str, body: Any, **more: Any) -> requests.Response:
        """Send a body."""
        return requests.post(self.url + path, json=body, timeout=60, **more)

    def get(self, path: str, **more: Any) -> requests.Response:
        """Ask."""
        return requests.get(self.url + path, timeout=60, **more)

    def chat(self, model: str, text: str = "say 3", **more: Any) -> dict[str, Any]:
        """A conversation's answer, likeliest tokens by default."""
        body = {"model": model, "messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 8}
        answer = self.post("/v1/chat/completions", body | more)
        assert answer.status_code == 200, answer.text
        return answer.json()


@contextlib.contextmanager
def serving(
    bank: Path | None, *, limits: Limits | None = None, keys: Keys | None = None, **more: Any
) -> Iterator[Server]:
    """A server of its own engine while the context lasts."""
    limits = limits or Limits()
    options = {name: more.pop(name) for name in ("slots", "customizations_mb") if name in more}
    engine = Engine(more.pop("base", None) or tiny_base(), max_waiting=limits.max_waiting, **options)
    app = make_app(engine, bank, base_name=BASE, limits=limits, keys=keys, **more)
    config = uvicorn.Config(app, port=0, log_config=None, lifespan="off", timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield Server(f"http://127.0.0.1:{port}", app)
    finally:
        server.should_exit = True
        thread.join(20)


@pytest.fixture(scope="session")
def server(bank_folder: Path) -> Iterator[Server]:
    """One that takes no updates."""
    with serving(bank_folder) as running:
        yield running


def events(answer: requests.Response) -> list[dict[str, Any]]:
    """The events of a streamed answer; the last line says that it is done."""
    lines = [line for line in answer.text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]", lines[-3:]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
