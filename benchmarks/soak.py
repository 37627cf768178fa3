"""Half an hour at twice a server's capacity, with customizations that come and go and clients that leave: no answer is
lost, none is another's, and memory stays flat.

    python benchmarks/soak.py [--minutes 30] [--clients 64]

A tiny random model in float32 is served with 16 rows and a queue of 16, and asked by 64 clients. Every answer, streamed
or not, is compared with what the same customization answers alone; one that is refused because the queue is full is
asked for again. Of ten requests one leaves in the middle; of fifty one loads a customization, replaces and unloads it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx2
from banks import write_bank

PROMPTS = [f"What does number {i} say?" for i in range(12)]
TOKENS = 24
PORT = 8476
KINDS = ("lora", "lora2", "dora", "ia3", "adapter", "prompt-tuning", "p-tuning", "few-shot")


def make(folder: Path) -> None:
    """A tiny model, a bank of every kind, and what each answers alone."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    import tunescope as ts
    from tunescope.data.rows import Row

    torch.manual_seed(0)
    tokenizer = ts.load_base("smollm2-135m").tokenizer
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=1024, initializer_range=0.3, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    base = ts.load_base(str(folder / "base"), dtype="float32")
    methods: dict[str, Any] = {
        "lora": ts.LoRA(rank=4), "lora2": ts.LoRA(rank=8, targets=("all-linear",)), "dora": ts.LoRA(rank=4, dora=True),
        "ia3": ts.IA3(), "adapter": ts.Adapter(bottleneck=8), "prompt-tuning": ts.PromptTuning(virtual_tokens=6),
        "p-tuning": ts.PTuning(virtual_tokens=4), "few-shot": ts.FewShot(shots=2),
    }  # fmt: skip
    rows = [Row(({"role": "user", "content": f"row {i}"},), f"answer {i}", i) for i in range(4)]
    write_bank(folder / "bank", base, methods, moved_by=0.2, rows=rows)
    engine = ts.Engine(base)
    for name in KINDS:
        engine.load(name, folder / "bank" / name)
    alone = {
        f"{name}\n{prompt}": engine.generate([ts.Request(prompt, name, ts.Sampling(max_new_tokens=TOKENS))])[0].text
        for name in KINDS
        for prompt in PROMPTS
    }
    (folder / "alone.json").write_text(json.dumps(alone))


def serve(folder: Path) -> None:
    """The server."""
    import tunescope as ts
    from tunescope.serving.app import make_app
    from tunescope.serving.limits import Limits
    from tunescope.serving.run import serve as run

    engine = ts.Engine(ts.load_base(str(folder / "base"), dtype="float32"), slots=16, max_waiting=16)
    limits = Limits(allow_updates=True, max_waiting=16)
    run(make_app(engine, folder / "bank", base_name="base", limits=limits), "127.0.0.1", PORT, on_ready=print)


class Soak:
    """The clients, and what they saw."""

    def __init__(self, folder: Path, until: float) -> None:
        self.alone: dict[str, str] = json.loads((folder / "alone.json").read_text())
        self.until = until
        self.seen: Counter[str] = Counter()
        self.url = f"http://127.0.0.1:{PORT}/v1"

    async def client(self, http: httpx2.AsyncClient, number: int) -> None:
        """One request after the other, until the time is up."""
        draw = random.Random(number)
        while time.monotonic() < self.until:
            what = draw.choices(("whole", "stream", "leave", "update"), (70, 18, 10, 2))[0]
            try:
                await getattr(self, what)(http, draw)
                self.seen[what] += 1
            except httpx2.HTTPError as error:
                self.seen[f"lost: {error!r}"] += 1

    async def whole(self, http: httpx2.AsyncClient, draw: random.Random) -> None:
        """An answer at once."""
        body = self.body(draw)
        while (answer := await http.post("chat/completions", json=body)).status_code == 429:
            self.seen["refused"] += 1
            await asyncio.sleep(0.05 + draw.random() / 10)
        self.compare(body, self.said(answer))

    async def stream(self, http: httpx2.AsyncClient, draw: random.Random) -> None:
        """An answer in parts."""
        body = self.body(draw)
        answer = await http.post("chat/completions", json=body | {"stream": True})
        if answer.status_code == 429:
            self.seen["refused"] += 1
            return
        events = [json.loads(line[6:]) for line in answer.text.split("\n\n") if line.startswith("data: {")]
        self.compare(body, "".join(event["choices"][0]["delta"].get("content", "") for event in events))

    async def leave(self, http: httpx2.AsyncClient, draw: random.Random) -> None:
        """A client that hears the first part and goes, or goes before."""
        body = self.body(draw) | {"stream": draw.random() < 0.7, "max_tokens": 200}
        with contextlib.suppress(httpx2.TimeoutException):
            async with http.stream("POST", "chat/completions", json=body, timeout=0.01 + draw.random() / 5) as answer:
                async for _ in answer.aiter_bytes():
                    break

    async def update(self, http: httpx2.AsyncClient, draw: random.Random) -> None:
        """Another name for an entry: loaded, asked, replaced by another, asked, unloaded."""
        name = f"mine-{draw.random()}"
        for source in draw.sample(KINDS, 2):
            self.check(await http.post("customizations", json={"name": name, "path": source, "replace": True}))
            body = self.body(draw, name)
            answer = await http.post("chat/completions", json=body)
            if answer.status_code != 429:
                self.compare(body | {"model": source}, self.said(answer))
        self.check(await http.delete(f"customizations/{name}"))

    def check(self, answer: httpx2.Response) -> None:
        """Count what failed."""
        if answer.status_code not in (200, 201):
            self.seen[f"lost: {answer.text}"] += 1

    def said(self, answer: httpx2.Response) -> str | None:
        """The text of an answer; None where there is none."""
        self.check(answer)
        return answer.json()["choices"][0]["message"]["content"] if answer.status_code == 200 else None

    def body(self, draw: random.Random, name: str | None = None) -> dict[str, Any]:
        """A request."""
        said = {"role": "user", "content": draw.choice(PROMPTS)}
        return {"model": name or draw.choice(KINDS), "messages": [said], "temperature": 0, "max_tokens": TOKENS}

    def compare(self, body: dict[str, Any], text: str | None) -> None:
        """An answer with the one alone."""
        if text is None:
            return
        wanted = self.alone[f"{body['model']}\n{body['messages'][0]['content']}"]
        self.seen["as alone" if text == wanted else "mixed up"] += 1


def memory_mb(pid: int) -> float:
    """Memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1000


async def soak(folder: Path, minutes: float, clients: int, pid: int) -> dict[str, Any]:
    """Run all clients, and note the server's memory ten times."""
    made = Soak(folder, time.monotonic() + 60 * minutes)
    memory: list[float] = []
    room = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(base_url=made.url, timeout=120, limits=room) as http:
        running = asyncio.gather(*(made.client(http, number) for number in range(clients)))
        for _ in range(10):
            await asyncio.sleep(6 * minutes)
            memory.append(round(memory_mb(pid)))
            print(dict(made.seen), f"{memory[-1]} MB", file=sys.stderr, flush=True)
        await running
        metrics = await http.get(f"{made.url[:-3]}/metrics")
        left = [line for line in metrics.text.splitlines() if line.startswith("vllm:num_requests_")]
    return {"minutes": minutes, "clients": clients, "seen": dict(made.seen), "memory_mb": memory, "left": left}


def main() -> None:
    """Make, serve, ask."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(given.serve)
        return
    with tempfile.TemporaryDirectory(prefix="tunescope-soak-") as folder:
        make(Path(folder))
        command = [sys.executable, __file__, "--serve", folder]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
            assert server.stdout is not None
            server.stdout.readline()
            found = asyncio.run(soak(Path(folder), given.minutes, given.clients, server.pid))
            server.terminate()
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
