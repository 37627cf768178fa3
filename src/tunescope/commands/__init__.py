"""The commands: what each takes, as settings, and what it does. The command line, recipes and Python use the same ones.

Those that a command loads tensor libraries for import them when it runs, so that its help is there at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from tunescope.errors import UnknownNameError


@dataclass(frozen=True)
class Listed:
    """A command in a list of commands.

    Attributes:
        summary: what it does, in a line.
        path: ``module:class`` of its settings; empty for a group of commands.
    """

    summary: str
    path: str = ""


COMMANDS = {
    "pull": Listed("Fetch a base model into the cache and fingerprint it.", "tunescope.commands.pull:PullRequest"),
    "look": Listed(
        "Show the exact tokens a model will learn from, before any compute.", "tunescope.commands.look:LookRequest"
    ),
    "plan": Listed(
        "Say for every method whether it fits and how long it takes, before any compute.",
        "tunescope.commands.plan:PlanRequest",
    ),
    "train": Listed("Customize a base by one method and keep the result.", "tunescope.commands.train:TrainRequest"),
    "train-tasks": Listed(
        "Customize a base for several tasks at once: a table of entries, one a task.",
        "tunescope.commands.train_tasks:TrainTasksRequest",
    ),
    "eval": Listed(
        "Measure an entry on rows it has not seen: task, forgetting, latency, cost.",
        "tunescope.commands.eval:EvalRequest",
    ),
    "predict": Listed("Answer new rows through an entry's own template.", "tunescope.commands.predict:PredictRequest"),
    "generate": Listed(
        "Answer prompts by the base or its customizations, any mix of them.",
        "tunescope.commands.generate:GenerateRequest",
    ),
    "mix": Listed("Mix tasks for instruction tuning.", "tunescope.commands.mix:MixRequest"),
    "annotate": Listed(
        "Label rows with attributes: by an attribute model, or by functions.",
        "tunescope.commands.annotate:AnnotateRequest",
    ),
    "pairs": Listed("Make preference pairs of a model's own samples.", "tunescope.commands.pairs:PairsRequest"),
    "compare": Listed(
        "Train and measure the methods on your data, and say which one to take.",
        "tunescope.commands.compare:CompareRequest",
    ),
    "advise": Listed(
        "Say which method of a comparison to take under your constraints.", "tunescope.commands.advise:AdviseRequest"
    ),
    "serve": Listed(
        "Serve a base and its customizations by OpenAI's API, with a studio page.",
        "tunescope.commands.serve:ServeRequest",
    ),
    "run": Listed("Run what a recipe says: one command, or several stages.", "tunescope.commands.run:RunRequest"),
    "bank": Listed("Look after customizations at rest."),
    "doctor": Listed(
        "Say what this machine can do: CPU, precision, memory, versions.", "tunescope.commands.doctor:DoctorRequest"
    ),
}

BANK = {
    "list": Listed("List the entries of a bank.", "tunescope.commands.bank:ListRequest"),
    "show": Listed("Show an entry's record: method, base, data, training.", "tunescope.commands.bank:ShowRequest"),
    "verify": Listed("Check that an entry still is what was saved.", "tunescope.commands.bank:VerifyRequest"),
    "export": Listed("Write an entry for other tools.", "tunescope.commands.bank:ExportRequest"),
    "import": Listed("Make an entry of a folder that PEFT wrote.", "tunescope.commands.bank:ImportRequest"),
    "merge": Listed("Make one LoRA of several.", "tunescope.commands.bank:MergeRequest"),
    "rebase": Listed("Copy an entry for its base in other bits.", "tunescope.commands.bank:RebaseRequest"),
    "join": Listed("Make a table of entries, one a task.", "tunescope.commands.bank_tables:JoinRequest"),
    "split": Listed("Make a table's tasks entries of a bank.", "tunescope.commands.bank_tables:SplitRequest"),
}


def names() -> list[str]:
    """Every command as it is typed: ``train``, ``bank merge``."""
    return list(_PATHS)


def request(name: str) -> Any:
    """The class of a command's settings.

    Raises:
        UnknownNameError: with the nearest names.
    """
    if name not in _PATHS:
        raise UnknownNameError("command", name, _PATHS)
    module, _, attribute = _PATHS[name].partition(":")
    return getattr(import_module(module), attribute)


_PATHS = {
    name: listed.path
    for name, listed in {**COMMANDS, **{f"bank {each}": found for each, found in BANK.items()}}.items()
    if listed.path
}
