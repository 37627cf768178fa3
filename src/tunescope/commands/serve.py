"""``serve``: a base and a bank of customizations over HTTP."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Annotated, Any

from pydantic import Field

from tunescope import bank
from tunescope.commands import fields
from tunescope.commands.command import Command, Part, Result
from tunescope.commands.report import Report
from tunescope.errors import BankError, TunescopeError
from tunescope.serving.limits import Limits
from tunescope.settings import Shown

_NEEDED = ("fastapi", "uvicorn", "prometheus_client")


class ServeRequest(Command):
    """Serve a base and every customization of a bank by OpenAI's API, with a studio page.

    A request names an entry as its model, and entries of every kind share the batches of one base. An entry is loaded
    when it is first asked for. The server stops on Ctrl-C, and what is under way ends.
    """

    base: fields.OptionalBase = None
    bank: fields.HomePath | None = None
    """Folder of entries, and of tables of tasks. Without it the base is served alone."""
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 for other machines, which then should need keys."""
    port: int = Field(8000, ge=0, lt=65536)
    """Port to listen at; 0 takes a free one."""
    name: str | None = Field(None, min_length=1)
    """What clients call the base. By default the name it has here."""
    api_keys: fields.HomePath | None = None
    """A YAML file of keys: a list of {name, key or sha256, models, requests_per_minute, updates}. Without it everyone
    may ask."""
    origin: Annotated[tuple[str, ...], Shown(repeated=True)] = ()
    """A web page's origin that may ask (CORS), such as https://app.example.org. Repeatable."""
    reports: fields.HomePath | None = None
    """Folder of comparisons (compare --out), whose reports the studio shows."""
    work: fields.HomePath | None = None
    """Lets the studio start look, train and compare on uploaded rows, which are kept in this folder. Entries go to the
    bank."""
    threads: int | None = Field(None, gt=0)
    """Threads that compute on a CPU. By default all cores but one, which is left to what answers the clients: threads
    that compute together wait for the one that is interrupted."""
    dtype: fields.Dtype = "auto"
    device: fields.Device = None
    limits: Limits = Field(default_factory=Limits)
    """What clients may ask for."""

    @classmethod
    def parts(cls, chosen: Mapping[str, Any]) -> dict[str, Part]:
        """The limits."""
        return {"limits": Part(Limits)}

    def run(self, report: Report | None = None) -> Result:
        """Serve until it is stopped."""
        report = report or Report()
        if missing := [name for name in _NEEDED if find_spec(name) is None]:
            raise TunescopeError(f"serve needs {', '.join(missing)}: pip install 'tunescope[serve]'.")
        import torch

        from tunescope.base import load_base
        from tunescope.inference import Engine
        from tunescope.serving.app import make_app
        from tunescope.serving.jobs import Jobs
        from tunescope.serving.keys import Keys, read_keys
        from tunescope.serving.run import serve

        keys = Keys() if self.api_keys is None else read_keys(self.api_keys)
        if self.reports is not None and not self.reports.is_dir():
            raise TunescopeError(f"{self.reports} is no folder of comparisons: give what compare --out wrote.")
        if self.work is not None and self.bank is None:
            raise TunescopeError("--work needs --bank, which trained entries go to.")
        name = self._base_name()
        if threads := self._threads():
            torch.set_num_threads(threads)
        engine = Engine(load_base(name, dtype=self.dtype, device=self.device), max_waiting=self.limits.max_waiting)
        app = make_app(
            engine, self.bank, base_name=self.name or name, limits=self.limits, keys=keys, origins=self.origin,
            reports=self.reports, hosts=self._hosts(),
            jobs=Jobs(self.work, self.bank, name, [self.name or name]) if self.work and self.bank else None,
        )  # fmt: skip

        def ready(url: str) -> None:
            count = 0 if self.bank is None else len(bank.names_in(self.bank))
            entries = "1 entry" if count == 1 else f"{count} entries"
            report.note(f"{url} serves {self.name or name} and {entries}; the studio is at {url}/")

        serve(app, self.host, self.port, on_ready=ready)
        return Result(None)

    def _threads(self) -> int | None:
        """Threads to compute with; None leaves it to the environment (OMP_NUM_THREADS), which may say."""
        if self.threads is not None or "OMP_NUM_THREADS" in os.environ:
            return self.threads
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max(cores - 1, 1)

    def _hosts(self) -> tuple[str, ...]:
        """The names that requests may be sent to: where the server listens on this machine alone and asks for no key, a
        web page could otherwise reach it under a name of its own."""
        only_here = self.api_keys is None and self.host in ("127.0.0.1", "localhost", "::1")
        return ("127.0.0.1", "localhost", "[::1]") if only_here else ("*",)

    def _base_name(self) -> str:
        """The base to load: the one that is named, or that the bank's entries were made for."""
        entries = []
        if self.bank is not None:
            if not self.bank.is_dir():
                raise BankError(f"{self.bank} is no folder: give the bank that train wrote to, or leave --bank out.")
            entries = bank.names_in(self.bank)
        if self.base is not None:
            return self.base
        if self.bank is None or not entries:
            raise TunescopeError("Name a base with --base, or a bank of entries made for one with --bank.")
        bases = {bank.read_record(self.bank / each).base.name for each in entries}
        if len(bases) > 1:
            raise TunescopeError(f"The entries of {self.bank} are for {', '.join(sorted(bases))}: say which by --base.")
        return bases.pop()
