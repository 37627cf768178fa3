"""Standard benchmarks, measured by EleutherAI's lm-evaluation-harness (the extra ``lm-eval``).

The harness asks a model for three things: the log-probability of continuations, that of whole texts, and generated
texts. ``HarnessModel`` answers them for a customization, through the engine. So any of its tasks is a score of what was
learned, or, of a task that was not, of what was forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from tunescope import peak_memory
from tunescope.data.packing import Group, pack
from tunescope.data.rendering import Renderer
from tunescope.data.tokenizing import lead_ids
from tunescope.errors import DataError
from tunescope.evaluation.statistics import paired_difference_of
from tunescope.inference import Sampling, generate_ids
from tunescope.methods import Customized
from tunescope.objectives.forward import in_passes, packed_hidden
from tunescope.objectives.reference import untouched

Card = dict[str, Any]
_Request = tuple[tuple[str, str], list[int], list[int]]

# Positions whose logits are there at once: 64 MB of them in a vocabulary of 250,000.
_POSITIONS = 64
# Tokens of an answer where a task does not say.
_MOST_NEW = 256
# What tasks say of generation, and what we call it.
_GENERATION = {"temperature": "temperature", "top_k": "top_k", "top_p": "top_p", "max_gen_toks": "max_new_tokens"}


class HarnessModel(TemplateLM):
    """A customization as the harness wants it. Its virtual tokens stand before every text.

    Texts are taken as they are. Where the harness applies a chat template (``apply_chat_template``), it is the
    customization's own, with its system text and its shots.

    Args:
        customized: whose answers.

    Raises:
        DataError: its virtual tokens stand at marked places of its prompts, which texts of a benchmark do not have.
    """

    def __init__(self, customized: Customized) -> None:
        super().__init__()
        template, tokenizer = customized.template, customized.base.tokenizer
        if template.virtual_splits:
            raise DataError("Its virtual tokens stand at marked places of its prompts, which a benchmark's have not.")
        self.customized, self.tokenizer = customized, tokenizer
        self._virtual, self._lead = template.virtual_ids, lead_ids(tokenizer)
        self._renderer = Renderer(tokenizer, template)
        self.max_length = customized.base.context_length - len(self._virtual)
        self.notes: list[str] = []

    @property
    def eot_token_id(self) -> int:
        """What ends a text, and where a text has no context stands before it."""
        found = self.tokenizer.bos_token_id if self._lead else self.tokenizer.eos_token_id
        return int(found)

    @property
    def tokenizer_name(self) -> str:
        """For the harness's own cache of requests."""
        return f"{self.customized.base.name}-{self.customized.template.model_dump_json()}"

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The prompt of messages, under the customization's template."""
        return self._renderer.prompt(chat_history).text

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids; behind those that the tokenizer writes before every text, unless they stand there."""
        ids = list(self.tokenizer(string, add_special_tokens=False)["input_ids"])
        there = ids[: len(self._lead)] == self._lead
        return ids if there or add_special_tokens is False else [*self._lead, *ids]

    def _loglikelihood_tokens(self, requests: Sequence[_Request], **_: Any) -> list[tuple[float, bool]]:
        """Nats of each continuation, and whether every token of it is the likeliest one."""
        contexts: dict[tuple[int, ...], list[int]] = {}
        for number, (_texts, context, continuation) in enumerate(requests):
            kept = context[max(len(context) + len(continuation) - 1 - self.max_length, 0) :]  # the last is not computed
            if len(kept) < len(context):
                self._note("Contexts lost their beginning: they are longer than the base's context.")
            contexts.setdefault((*self._virtual, *kept), []).append(number)
        groups = [Group.of(context, [requests[i][2] for i in numbers]) for context, numbers in contexts.items()]
        with self.customized.active(), torch.inference_mode():
            found = in_passes([len(each) for each in groups], lambda own: self._of_pass([groups[i] for i in own]))
        answers: dict[int, tuple[float, bool]] = {}
        for numbers, own in zip(contexts.values(), found, strict=True):
            answers.update(zip(numbers, own, strict=True))
        return [answers[i] for i in range(len(requests))]

    def _of_pass(self, groups: Sequence[Group]) -> list[list[tuple[float, bool]]]:
        """[groups][branches] nats, and whether each token is the likeliest."""
        base = self.customized.base
        packed = pack(groups, ends=False).to(base.device)
        hidden = packed_hidden(base, packed)[packed.predictors]
        nats, likeliest = [], []
        for some, targets in zip(hidden.split(_POSITIONS), packed.targets.split(_POSITIONS), strict=True):
            logits = base.vocabulary_head(some).float()
            nats.append(logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0])
            likeliest.append(logits.argmax(-1) == targets)
        lengths = packed.lengths.tolist()
        texts = zip(torch.cat(nats).split(lengths), torch.cat(likeliest).split(lengths), strict=True)
        each = iter([(float(own.sum()), bool(same.all())) for own, same in texts])
        return [[next(each) for _ in group.branches] for group in groups]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Nats of each text, in windows of the base's context."""
        windows: list[list[_Request]] = []
        for (text,) in (request.args for request in requests):
            cut = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, 1)
            windows.append([(("", ""), *make_disjoint_window(window)) for window in cut])
        found = iter(self._loglikelihood_tokens([window for own in windows for window in own]))
        return [sum(next(found)[0] for _ in own) for own in windows]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Texts, up to what ends them; requests that ask for the same are answered together."""
        asked: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            asked.setdefault(_sampling(request.args[1]).model_dump_json(), []).append(number)
        answers: dict[int, str] = {}
        for how, numbers in asked.items():
            sampling = Sampling.model_validate_json(how)
            room = self.max_length - sampling.max_new_tokens
            prompts = [[*self._virtual, *self.tok_encode(requests[i].args[0])[-room:]] for i in numbers]
            texts = generate_ids(self.customized, prompts, sampling)
            answers |= {number: answer.text for number, answer in zip(numbers, texts, strict=True)}
        return [answers[number] for number in range(len(requests))]

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def _sampling(given: Mapping[str, Any]) -> Sampling:
    """What a task asks of generation, as ours.

    Raises:
        DataError: something that the engine cannot do.
    """
    values = dict(given)
    until = values.pop("until", ())
    samples = bool(values.pop("do_sample", False))
    if not samples:
        values.pop("temperature", None)
    if unknown := sorted(set(values) - set(_GENERATION)):
        raise DataError(f"The task asks to generate with {', '.join(unknown)}, which tunescope has no setting for.")
    own = {_GENERATION[name]: value for name, value in values.items()}
    stops = (until,) if isinstance(until, str) else tuple(until)
    return Sampling(**{"max_new_tokens": _MOST_NEW, "stop": tuple(filter(None, stops)), **own})


def evaluate_standard(
    customized: Customized,
    tasks: Sequence[str],
    *,
    against: Customized | None = None,
    shots: int | None = None,
    limit: int | None = None,
    chat: bool = False,
    on_task: Callable[[str], None] = lambda name: None,
) -> Card:
    """Measure standard benchmarks under a customization and under what it began as, question by question.

    Args:
        customized: what to measure.
        tasks: names of the harness's tasks, or paths of ``.yaml`` files that define one.
        against: what to compare with; the base by default.
        shots: worked examples before each question; as the task says by default.
        limit: most questions of each task.
        chat: put questions into the customization's chat template; by default they are taken as they are.
        on_task: callback with what is being measured now.

    Returns:
        ``metric, tasks``, of each task by name and metric ``rows, before, after, gain, gain_low, gain_high`` (paired
        over the questions, 95%; of a metric that is no mean over questions without an interval); ``score, score_low,
        score_high`` of the task that gains least by its first metric; ``peak_memory_mb, notes``.

    Raises:
        DataError: a task that the harness does not know, or that cannot be put to a customization.
    """
    peak_memory.reset_peak(customized.base.device)
    names, manager = _known(tasks)
    found, notes = {}, []
    for when, whose in (("before", against or untouched(customized)), ("after", customized)):
        model = HarnessModel(whose)
        on_task(f"{', '.join(names)}, {when}")
        found[when] = simple_evaluate(
            model, tasks=names, num_fewshot=shots, limit=limit, apply_chat_template=chat, task_manager=manager,
            bootstrap_iters=0, verbosity="ERROR",
        )  # fmt: skip
        notes += model.notes
    cards = {name: dict(_metrics(found["before"], found["after"], name)) for name in found["after"]["samples"]}
    least = min((next(iter(own.values())) for own in cards.values() if own), key=lambda card: card["gain"])
    return {
        "metric": "gain on benchmarks",
        "rows": sum(next(iter(own.values()))["rows"] for own in cards.values() if own),
        **{f"score{end}": least.get(f"gain{end}") for end in ("", "_low", "_high")},
        "tasks": cards,
        "peak_memory_mb": round(peak_memory.peak_mb(customized.base.device), 1),
        "notes": list(dict.fromkeys(notes)),
    }


def _known(tasks: Sequence[str]) -> tuple[list[str], TaskManager]:
    """The tasks by the harness's names, and who finds them."""
    files = [Path(task) for task in tasks if task.endswith((".yaml", ".yml"))]
    if missing := [file for file in files if not file.is_file()]:
        raise DataError(f"{missing[0]}: no such file; it would define a task of the harness.")
    manager = TaskManager(include_path=[str(file.resolve().parent) for file in files] or None)
    names = [task if not task.endswith((".yaml", ".yml")) else _name_in(Path(task)) for task in tasks]
    if unknown := [name for name in names if name not in manager.all_tasks]:
        raise DataError(f"The harness has no task {unknown[0]!r}: `lm-eval ls tasks` lists them.")
    return names, manager


def _name_in(file: Path) -> str:
    import yaml

    found = yaml.safe_load(file.read_text(encoding="utf-8"))
    if not isinstance(found, dict) or not isinstance(found.get("task"), str):
        raise DataError(f"{file} defines no task: it needs a line such as `task: my-questions`.")
    return str(found["task"])


def _metrics(before: Mapping[str, Any], after: Mapping[str, Any], task: str) -> Iterator[tuple[str, Card]]:
    """Each metric of a task, before and after."""
    old = {sample["doc_id"]: sample for sample in before["samples"][task]}
    for key, value in after["results"][task].items():
        metric, _, filtered = key.partition(",")
        if (
            not filtered
            or metric.endswith("_stderr")
            or not isinstance(value, int | float)
            or key not in before["results"][task]
        ):
            continue
        samples = [each for each in after["samples"][task] if each.get("filter", filtered) == filtered]
        card: Card = {"rows": len(samples), "before": before["results"][task][key], "after": value}
        card["gain"] = card["after"] - card["before"]
        pairs = [(each.get(metric), old[each["doc_id"]].get(metric)) for each in samples]
        if all(isinstance(one, int | float) and isinstance(other, int | float) for one, other in pairs):
            gain = paired_difference_of([float(a) for a, _ in pairs], [float(b) for _, b in pairs], metric)
            if abs(gain.mean - card["gain"]) < 1e-6:
                card |= {"gain_low": gain.low, "gain_high": gain.high}
        yield metric, card
