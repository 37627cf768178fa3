"""Requests over HTTP: ``tunescope serve`` against its own engine, a server of transformers and PEFT that switches
adapters per request, and transformers' own ``serve``.

    python benchmarks/serving.py [--clients 16] [--requests 4] [--new-tokens 48] [--repeats 3] [--sides ours engine ...]

Every server is a process of its own, and so is the load: clients that each send one request after the other. The sides
take turns, and every figure is a median over repeats. The bank has eight customizations of five kinds (three LoRAs, two
IA3, an adapter, prompt tuning, p-tuning) and eight LoRAs, which PEFT's server has too.

    engine       what the engine makes of as many rows in this process, without HTTP: all requests at once
    ours         the mix of eight customizations of five kinds
    streamed     the same, streamed
    loras        the eight LoRAs
    peft         the eight LoRAs by transformers and PEFT: a request at a time, as the adapter is switched
    base         the base alone
    transformers the base alone by ``transformers serve``
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from banks import write_bank
from sides import Figures, machine, medians

MIX = ("lora0", "lora1", "lora2", "ia3a", "ia3b", "adapter", "prompt-tuning", "p-tuning")
LORAS = tuple(f"lora{i}" for i in range(8))
SIDES = ("engine", "ours", "streamed", "loras", "peft", "base", "transformers")
TOPICS = ("a miller", "two sisters", "the sea", "a clever fox", "winter", "a lost key", "a giant", "an old clock")


def prompt(client: int, turn: int) -> str:
    """What a client asks; all differ."""
    return f"Write a long tale about {TOPICS[client % len(TOPICS)]}, the {turn + 1}. time for listener {client}."


# The load.


async def load(url: str, models: list[str], clients: int, requests: int, tokens: int, stream: bool) -> Figures:
    """What clients get that each send ``requests`` one after the other."""
    where = urlsplit(url)
    firsts: list[float] = []
    written: list[int] = []

    async def client(number: int) -> None:
        reader, writer = await asyncio.open_connection(where.hostname, where.port)
        for turn in range(requests):
            body = {
                "model": models[number % len(models)],
                "messages": [{"role": "user", "content": prompt(number, turn)}],
                "temperature": 0,
                "max_tokens": tokens,
                **({"stream": True, "stream_options": {"include_usage": True}} if stream else {}),
            }
            sent = json.dumps(body).encode()
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {where.netloc}\r\nContent-Type: application/json\r\n"
            begun = time.perf_counter()
            writer.write(f"{head}Content-Length: {len(sent)}\r\n\r\n".encode() + sent)
            first, answer = await read_answer(reader)
            firsts.append(first - begun)
            written.append(tokens_of(answer, stream))
        writer.close()

    cpu, begun = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    await asyncio.gather(*(client(number) for number in range(clients)))
    seconds, now = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_SELF)
    firsts.sort()
    return {
        "tokens_per_s": sum(written) / seconds,
        "tokens": sum(written),
        "first_ms": 1000 * statistics.median(firsts),
        "first_p99_ms": 1000 * firsts[min(int(len(firsts) * 0.99), len(firsts) - 1)],
        "load_cpu_share": (now.ru_utime + now.ru_stime - cpu.ru_utime - cpu.ru_stime) / seconds,
    }


async def read_answer(reader: asyncio.StreamReader) -> tuple[float, bytes]:
    """When the first byte of the body came, and the whole body."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    if b" 200 " not in head.split(b"\r\n")[0]:
        raise RuntimeError(head.decode() + (await reader.read(2000)).decode())
    if b"content-length:" in head:
        length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
        body = await reader.readexactly(length)
        return time.perf_counter(), body
    first, parts = None, []
    while size := int(await reader.readline(), 16):
        parts.append(await reader.readexactly(size))
        first = first or time.perf_counter()
        await reader.readline()
    await reader.readline()
    return first or time.perf_counter(), b"".join(parts)


def tokens_of(answer: bytes, stream: bool) -> int:
    """How many tokens an answer has, by its usage."""
    if not stream:
        return int(json.loads(answer)["usage"]["completion_tokens"])
    events = [json.loads(line[6:]) for line in answer.decode().split("\n\n") if line.startswith("data: {")]
    return int(next(each["usage"] for each in reversed(events) if each.get("usage"))["completion_tokens"])


# The sides.


def make_bank(folder: Path, base_name: str) -> None:
    """The bank that is served, and the LoRAs as PEFT has them."""
    import tunescope as ts
    from tunescope import bank

    base = ts.load_base(base_name)
    methods: dict[str, Any] = {name: ts.LoRA(rank=8) for name in LORAS}
    methods |= {"ia3a": ts.IA3(), "ia3b": ts.IA3(), "adapter": ts.Adapter()}
    methods |= {"prompt-tuning": ts.PromptTuning(), "p-tuning": ts.PTuning()}
    write_bank(folder / "bank", base, methods, moved_by=0.002)
    for name in LORAS:
        bank.export(folder / "bank" / name, folder / "peft" / name, base=base)


def engine_side(folder: Path, base_name: str, clients: int, requests: int, tokens: int) -> Figures:
    """The mix without HTTP."""
    import tunescope as ts

    engine = ts.Engine(ts.load_base(base_name), slots=clients)
    for name in MIX:
        engine.load(name, folder / "bank" / name)
    asked = [
        ts.Request(prompt(client, turn), MIX[client % len(MIX)], ts.Sampling(max_new_tokens=tokens))
        for turn in range(requests)
        for client in range(clients)
    ]
    engine.generate(asked[:clients])
    begun = time.perf_counter()
    answers = engine.generate(asked)
    seconds = time.perf_counter() - begun
    written = sum(len(answer.tokens) for answer in answers)
    return {"tokens_per_s": written / seconds, "tokens": written}


def peft_server(folder: Path, base_name: str, port: int) -> None:
    """A server as one writes it: transformers and PEFT, the adapter switched for each request."""
    import threading

    import torch
    import uvicorn
    from fastapi import FastAPI
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import tunescope as ts

    base = ts.load_base(base_name)
    model = AutoModelForCausalLM.from_pretrained(base.folder, dtype=base.dtype).eval()
    tokenizer = AutoTokenizer.from_pretrained(base.folder)
    model = PeftModel.from_pretrained(model, folder / "peft" / LORAS[0], adapter_name=LORAS[0])
    for name in LORAS[1:]:
        model.load_adapter(folder / "peft" / name, adapter_name=name)
    app, lock = FastAPI(), threading.Lock()

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/v1/chat/completions")
    def answer(body: dict[str, Any]) -> dict[str, Any]:
        text = tokenizer.apply_chat_template(body["messages"], tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)
        with lock, torch.inference_mode():
            model.set_adapter(body["model"])
            made = model.generate(**ids, max_new_tokens=body["max_tokens"], do_sample=False)
        new = made[0, ids["input_ids"].shape[1] :]
        said = tokenizer.decode(new, skip_special_tokens=True)
        choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
        return {"choices": [choice], "usage": {"completion_tokens": len(new)}}

    uvicorn.run(app, port=port, log_level="error")


@contextlib.contextmanager
def server(command: list[str], port: int, ready: str = "/health") -> Iterator[str]:
    """A process that serves, until the context ends."""
    import requests

    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile() as log:  # not a pipe: nobody would read it, and a full one stops the server
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log)
        try:
            for _ in range(600):
                if process.poll() is not None:
                    log.seek(0)
                    sys.exit(f"{command}: {log.read().decode()}")
                with contextlib.suppress(requests.exceptions.ConnectionError):
                    requests.get(url + ready, timeout=5)
                    break
                time.sleep(0.2)
            yield url
        finally:
            process.terminate()
            process.wait(30)


def side(name: str, arguments: argparse.Namespace, urls: dict[str, str]) -> Figures:
    """What a side does once, in a process of its own."""
    this = [sys.executable, __file__, "--folder", str(arguments.folder), "--base", arguments.base]
    sizes = ["--clients", arguments.clients, "--requests", arguments.requests, "--new-tokens", arguments.new_tokens]
    this += [str(each) for each in sizes]
    base = Path(arguments.base).name
    models = {"ours": MIX, "streamed": MIX, "loras": LORAS, "peft": LORAS, "base": (base,)}
    if name == "engine":
        this += ["--engine"]
    else:
        this += ["--load", urls[name], "--models", *models.get(name, (arguments.transformers_model,))]
        this += ["--stream"] * (name in ("streamed", "transformers"))
    done = subprocess.run(this, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{name}: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure all sides."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=4)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    for inner in ("--folder", "--load", "--peft-port", "--transformers-model"):
        parser.add_argument(inner, help=argparse.SUPPRESS)
    parser.add_argument("--models", nargs="+", help=argparse.SUPPRESS)
    for inner in ("--engine", "--stream", "--bank"):
        parser.add_argument(inner, action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    sizes = (given.clients, given.requests, given.new_tokens)
    if given.load:
        print(json.dumps(asyncio.run(load(given.load, given.models, *sizes, given.stream))))
    elif given.engine:
        print(json.dumps(engine_side(Path(given.folder), given.base, *sizes)))
    elif given.peft_port:
        peft_server(Path(given.folder), given.base, int(given.peft_port))
    elif given.bank:
        make_bank(Path(given.folder), given.base)
    else:
        measure(given)


def measure(arguments: argparse.Namespace) -> None:
    """Start the servers, let the sides take turns, and print the medians."""
    made = Path(tempfile.mkdtemp(prefix="tunescope-serving-"))
    arguments.folder = str(made)
    this = [sys.executable, __file__, "--folder", str(made), "--base", arguments.base]
    subprocess.run([*this, "--bank"], check=True, stdout=subprocess.DEVNULL)
    ours = [str(Path(sys.executable).with_name("tunescope")), "serve", "--base", arguments.base, "--bank"]
    ours += [str(made / "bank"), "--port", "8471", "--max-waiting", "512"]
    transformers = [
        str(Path(sys.executable).with_name("transformers")),
        "serve",
        "--port",
        "8473",
        "--dtype",
        "bfloat16",
    ]
    runs: dict[str, list[Figures]] = {name: [] for name in arguments.sides}
    try:
        with contextlib.ExitStack() as servers:
            urls = {}
            if {"ours", "streamed", "loras", "base"} & set(arguments.sides):
                url = servers.enter_context(server(ours, 8471))
                urls = dict.fromkeys(("ours", "streamed", "loras", "base"), url)
            if "peft" in arguments.sides:
                urls["peft"] = servers.enter_context(server([*this, "--peft-port", "8472"], 8472))
            if "transformers" in arguments.sides:
                arguments.transformers_model = model_folder(arguments.base)
                command = [*transformers, arguments.transformers_model]
                urls["transformers"] = servers.enter_context(server(command, 8473))
            requests, arguments.requests = arguments.requests, 1
            for name in arguments.sides:  # warm, so that nothing is read or compiled while it is measured
                if name != "engine":
                    side(name, arguments, urls)
            arguments.requests = requests
            for _ in range(arguments.repeats):
                for name in arguments.sides:
                    runs[name].append(side(name, arguments, urls))
                    print(name, runs[name][-1], file=sys.stderr, flush=True)
    finally:
        shutil.rmtree(made)
    found = {name: medians(each) for name, each in runs.items()}
    ratios = {
        f"{one} / {other}": statistics.median(
            a["tokens_per_s"] / b["tokens_per_s"] for a, b in zip(runs[one], runs[other], strict=True)
        )
        for one, other in (("ours", "engine"), ("streamed", "ours"), ("loras", "peft"), ("ours", "peft"),
                           ("base", "transformers"))
        if one in runs and other in runs
    }  # fmt: skip
    print(json.dumps({"machine": machine(), "cores": os.cpu_count(), "ratios": ratios, "sides": found}, indent=1))


def model_folder(base_name: str) -> str:
    """Where transformers finds the base."""
    import tunescope as ts

    return str(ts.load_base(base_name).folder)


if __name__ == "__main__":
    main()
