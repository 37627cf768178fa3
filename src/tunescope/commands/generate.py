"""``generate``: a few prompts by the base or one entry, or a file of prompts by any mix of a bank's entries."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from tunescope import bank
from tunescope.commands import fields
from tunescope.commands.answers import Answer
from tunescope.commands.command import Command, Part, Result
from tunescope.commands.generate_batch import answer_batch
from tunescope.commands.report import Report
from tunescope.commands.subject import customized_of
from tunescope.data.attributes import parse_steer
from tunescope.errors import TunescopeError
from tunescope.inference import Engine, Request, Sampling
from tunescope.settings import Shown

# Given by options of their own: texts may hold the comma that separates a list's parts.
_TEXTS = frozenset({"stop", "stop_tokens", "choices"})
_NAME = "entry"


class GenerateRequest(Command):
    """Answer prompts by the base or its customizations, any mix of them in one batch."""

    prompts: Annotated[tuple[str, ...], Shown("[BANK/NAME] PROMPT...", positional=True)] = ()
    """Prompts, after an entry of a bank if any."""
    base: fields.OptionalBase = None
    stop: Annotated[tuple[str, ...], Shown(repeated=True)] = ()
    """A text that ends the answer before it. Repeatable."""
    choice: Annotated[tuple[str, ...], Shown(repeated=True)] = ()
    """An answer to choose from, by likelihood. Repeatable."""
    batch: fields.HomePath | None = None
    """A .jsonl file of rows {"prompt", "customization", "max_new_tokens", ...}: any mix, all at once. In place of
    "prompt" stand "messages", or "row": columns that the customization's own template renders,
    {"row": {"text": "..."}}, answered with its label where it was trained on labels. "steer" says what an answer is to
    be like: {"steer": {"quality": 4}}."""
    bank: fields.HomePath | None = None
    """Folder of the entries that the rows of --batch name."""
    url: str | None = None
    """Ask a server (tunescope serve, or any with OpenAI's API) instead: http://HOST:PORT. The environment's
    TUNESCOPE_API_KEY is sent as the key."""
    model: str | None = None
    """What is asked of the server: an entry's name there. By default the first that it lists."""
    steer: fields.Steer = None
    dtype: fields.Dtype = "auto"
    device: fields.Device = None
    sampling: Sampling = Field(default_factory=Sampling)
    """How the next token is chosen."""

    @classmethod
    def parts(cls, chosen: Mapping[str, Any]) -> dict[str, Part]:
        """The settings of sampling."""
        return {"sampling": Part(Sampling, _TEXTS)}

    def run(self, report: Report | None = None) -> Result:
        """Answer, each as soon as those before it are there; with ``batch`` the totals are left."""
        report = report or Report()
        texts = {name: value for name, value in (("stop", self.stop), ("choices", self.choice)) if value}
        sampling = Sampling.parse(self.sampling.model_dump(exclude_unset=True) | texts)
        if self.url is not None:
            return self._ask_server(sampling, report)
        if self.model is not None:
            raise TunescopeError("--model is for a server: give its --url. Here an entry stands before the prompts.")
        if self.batch is not None:
            if self.prompts:
                raise TunescopeError("Give prompts, or a file of them with --batch, not both.")
            if self.steer is not None:
                raise TunescopeError('--steer is for prompts; a row of --batch says "steer": {"quality": 4}.')
            return answer_batch(self, sampling, report)
        if self.bank is not None:
            raise TunescopeError("--bank goes with --batch. To run one entry, name it before the prompts: BANK/NAME.")
        if not self.prompts:
            raise TunescopeError("Give at least one prompt, or a file of them with --batch.")
        entry, prompts = self._whose()
        if entry is not None and bank.read_record(entry).labels and not sampling.choices:
            report.note(
                f"{entry} was trained on labels, and this answers with free text. A label with its probability, "
                f"without typing the template:\n  tunescope predict {shlex.quote(str(entry))} --data new.csv --out "
                "answers.csv"
            )
        customized = customized_of(entry, self.base, self.device, self.dtype)
        engine = Engine(customized.base)
        if entry is not None:
            engine.load(_NAME, customized)
        name, steer = _NAME if entry else None, parse_steer(self.steer) if self.steer else {}
        self._answer(engine, entry, [Request(prompt, name, sampling, steer) for prompt in prompts], report)
        return Result(None)

    def _ask_server(self, sampling: Sampling, report: Report) -> Result:
        from tunescope.commands.generate_url import Client

        here = {"--base": self.base, "--batch": self.batch, "--bank": self.bank, "--device": self.device}
        if given := [name for name, value in here.items() if value is not None]:
            raise TunescopeError(f"{given[0]} is for this machine, and --url asks a server: give one of them.")
        if not self.prompts:
            raise TunescopeError("Give at least one prompt.")
        steer = parse_steer(self.steer) if self.steer else {}
        Client(str(self.url), self.model).answer_all(self.prompts, sampling, steer, report)
        return Result(None)

    def _whose(self) -> tuple[Path | None, tuple[str, ...]]:
        """The entry among the prompts, and the prompts."""
        first, *others = self.prompts
        entry, prompts = (Path(first), tuple(others)) if _names_entry(first) else (None, self.prompts)
        if entry is not None:
            bank.read_record(entry)  # a name that only nearly is an entry's is no prompt
        if not prompts:
            raise TunescopeError(f"{entry} is an entry; give at least one prompt after it.")
        if entry is None and self.base is None:
            raise TunescopeError(f"{prompts[0]!r} is no entry of a bank: name one, or a base with --base.")
        for number, prompt in enumerate(prompts, start=1):
            if not prompt.strip():
                raise TunescopeError(f"Prompt {number} is empty.")
        return entry, prompts

    @staticmethod
    def _answer(engine: Engine, entry: Path | None, requests: list[Request], report: Report) -> None:
        if len(requests) == 1 and requests[0].sampling.n == 1 and report.pieces:
            for piece in engine.stream(requests[0]):
                report.write(piece)
            report.write("\n")
            return
        for number, (request, answer) in enumerate(zip(requests, engine.generate(requests), strict=True), start=1):
            if answer.error is not None:
                raise TunescopeError(f"Prompt {number}: {answer.error}")
            report.part(
                Answer.of(answer, before={"prompt": request.prompt}, customization=str(entry) if entry else None)
            )


def _names_entry(text: str) -> bool:
    """Whether a text is the path of an entry, or stands right in a folder of entries as an entry would."""
    path = Path(text)
    try:
        if (path / bank.RECORD).is_file():
            return True
        if " " in text:
            return False
        return bank.entry_folder(path) != path or (len(path.parts) > 1 and bool(bank.names_in(path.parent)))
    except (OSError, ValueError):  # too long for a path, or with characters none can have
        return False
