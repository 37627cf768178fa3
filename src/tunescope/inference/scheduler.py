"""Which rows run when: continuous batching within a number of rows and a budget of key-value memory.

A job is one sample of one request. It waits, is given a slot, has its prompt prefilled in chunks, decodes a token a
step with all the others, and leaves; the next one comes in at once.

``step`` is everything that happens: one token for every row that decodes, then at most one chunk of prompts. A job that
fails ends with the reason and hurts no other: where a joint pass fails, its rows are computed one by one.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import TypeVar

import torch

from tunescope.base import Base
from tunescope.data.tokenizing import common_prefix
from tunescope.errors import BaseInUseError, EngineError
from tunescope.inference.candidates import Candidates, scores_of
from tunescope.inference.compiled import Compiled
from tunescope.inference.job import Job
from tunescope.inference.passes import Passes
from tunescope.inference.prefix_cache import WORTH_SHARING, PrefixCache
from tunescope.inference.sampling import choose, likeliest
from tunescope.inference.slots import allowance
from tunescope.inference.turns import Turns

# Positions of prompts computed between two steps of the rows that decode: how long these have to wait.
_CHUNK = 256
# The same where nobody waits. More fills the cores no better and needs memory for the activations.
_CHUNK_ALONE = 2048
# Tokens that sharing must save before other jobs wait for the first to have computed what they share.
_WORTH_WAITING = 256
# How many of the waiting jobs are looked at for a shared prefix.
_LOOK_AHEAD = 64
_T = TypeVar("_T")
_NOT_FINITE = (
    "The model's logits for it are not finite numbers: the tensors of the customization, or of the base, are damaged "
    "or too large."
)

_NO_WAY_ON = (
    "No token of the vocabulary goes on with what json_schema allows here, or the logits are not finite numbers."
)


class Scheduler:
    """Runs jobs on one base.

    Args:
        base: frozen.
        slots: most rows at once.
        prefix_bytes: what kept prefixes may take.
        kv_bytes: what the keys and values of the rows under way may take. A job waits until those it may need fit.

    Attributes:
        waiting: jobs without a slot, in order of arrival.
        passes: computes them, and counts.
    """

    def __init__(self, base: Base, *, slots: int, prefix_bytes: int, kv_bytes: int) -> None:
        self.base = base
        self.waiting: deque[Job] = deque()
        self._arriving: deque[Job] = deque()  # these two are filled by other threads while a step is made
        self._leaving: deque[Compiled] = deque()
        self._stepping = threading.RLock()  # held for a step at a time
        self.prefixes = PrefixCache(prefix_bytes)
        self.passes = Passes(base, slots)
        self._slots = self.passes.slots
        self._kv_bytes = kv_bytes
        self._decoding: list[Job] = []
        self._prefilling: list[Job] = []
        self._scoring: list[Job] = []
        self._oldest_next = True
        self._arrived = 0

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        return bool(self.rows or self.queued)

    @property
    def rows(self) -> list[Job]:
        """Jobs under way."""
        return [*self._decoding, *self._prefilling, *self._scoring]

    @property
    def running(self) -> int:
        """Rows that have a slot."""
        return len(self.rows)

    def kv_bytes_of(self, positions: int) -> int:
        """Memory that the keys and values of rows with so many positions together take at most."""
        return allowance(positions) * self._position_bytes

    def fits(self, positions: int) -> bool:
        """Whether rows with so many positions together are within the budget."""
        return self.kv_bytes_of(positions) <= self._kv_bytes

    @property
    def kv_share(self) -> float:
        """The share of the budget of keys and values that is in use."""
        return self._slots.nbytes / max(self._kv_bytes, 1)

    @cached_property
    def _position_bytes(self) -> int:
        config = self.base.model.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return 2 * config.num_hidden_layers * heads * width * self.base.dtype.itemsize

    @property
    def queued(self) -> int:
        """Jobs that wait for a slot."""
        return len(self.waiting) + len(self._arriving)

    def add(self, job: Job) -> None:
        """Let a job wait for a slot, from the next step on. One thread at a time may call this, also during a step."""
        job.arrived, self._arrived = self._arrived, self._arrived + 1
        self._arriving.append(job)

    def evict(self, effects: Compiled) -> None:
        """A customization is no longer served: free what was kept for it, now or, where a step is under way, with the
        next. Rows under way end as they began."""
        self._leaving.append(effects)
        if self._stepping.acquire(blocking=False):
            try:
                self._take_in()
            finally:
                self._stepping.release()

    def _take_in(self) -> None:
        """Take note of what other threads brought since the last step."""
        while self._arriving:
            self.waiting.append(self._arriving.popleft())
        while self._leaving:
            effects = self._leaving.popleft()
            self.prefixes.evict(effects)
            self.passes.evict(effects)

    def step(self) -> bool:
        """Go on by a token a row and at most a chunk of prompts; returns whether anything is left to do.

        Threads take turns at it.
        """
        with self._stepping, torch.inference_mode():
            return self._step()

    def _step(self) -> bool:
        try:
            self._take_in()
            self._drop_cancelled()
            self._admit()
            chunk = _CHUNK if self._decoding else _CHUNK_ALONE
            if self._decoding:
                self._decode()
            if self._scoring:
                self._score(chunk)
            if self._prefilling:
                self._prefill(chunk)
            with contextlib.suppress(RuntimeError, MemoryError):  # rows are moved into new memory: another time, then
                self._slots.tidy()
        except Exception as error:
            # No job's own fault, which ``_isolated`` would have found: nobody is to wait for ever.
            for job in [*self.rows, *self.waiting]:
                self._end(job, "error", error)
            self.waiting.clear()
            raise
        return self.busy

    def _isolated(self, jobs: list[Job], compute: Callable[[list[Job]], _T]) -> list[tuple[list[Job], _T]]:
        """What ``compute`` gives for jobs together; where that fails, for each by itself. Those that fail then, end."""
        failure: Exception | None = None
        try:
            return [(jobs, compute(jobs))]
        except BaseInUseError:
            raise  # no job's own fault: the others would be refused as well
        except Exception as error:
            failure = error
        if len(jobs) == 1:
            self._end(jobs[0], "error", failure)
            return []
        del failure  # and the memory that its frames hold
        return [each for job in jobs for each in self._isolated([job], compute)]

    # Rows come and go.

    def _drop_cancelled(self) -> None:
        for job in [job for job in self.waiting if job.cancelled]:
            self.waiting.remove(job)
            self._end(job, "cancelled")
        for job in [job for job in self.rows if job.cancelled]:
            self._end(job, "cancelled")

    def _admit(self) -> None:
        if not self.waiting or self.running >= self.passes.rows:
            return
        held: list[Job] = []
        reserved = sum(job.most for job in self.rows)
        turns = Turns(self.waiting, self.rows)
        while self.waiting and self.running < self.passes.rows and len(held) < _LOOK_AHEAD:
            job = turns.next()
            if self.running and not self.fits(reserved + job.most):
                break  # nobody of its turn overtakes it, or it would never come in
            turns.take(job)
            try:
                if self._computing_its_prefix(job):
                    held.append(job)
                    continue
                self._start(job, held)
                reserved += job.most
            except Exception as error:
                self._end(job, "error", error)
        if held:
            self.waiting = deque(sorted([*held, *self.waiting], key=lambda job: job.arrived))

    def _start(self, job: Job, held: Sequence[Job]) -> None:
        kept = self.prefixes.find(job.effects, job.tokens)
        if kept is not None:
            self._slots.restore(job.arrived, kept)
            job.placed = job.cached = kept.tokens
        job.marks = {mark for mark in self._marks(job, held) if mark > job.placed}
        (self._prefilling if job.left else self._scoring).append(job)

    def _marks(self, job: Job, held: Sequence[Job]) -> set[int]:
        """The prefixes of a job's prompt that others have or will have."""
        longest = len(job.tokens) - 1
        found = {job.prefix_tokens} if job.prefix_tokens >= WORTH_SHARING else set()
        if job.sampling.n > 1:
            found.add(longest)
        others = [*held, *list(self.waiting)[:_LOOK_AHEAD]]
        lengths = [common_prefix(job.tokens, o.tokens) for o in others if o.effects is job.effects]
        lengths = [length for length in lengths if length >= WORTH_SHARING]
        if lengths and min(lengths) * len(lengths) >= _WORTH_WAITING:
            found.add(min(lengths))
        return {min(mark, longest) for mark in found if longest >= WORTH_SHARING}

    def _computing_its_prefix(self, job: Job) -> bool:
        """Whether a row is about to have computed more of this job's prompt than is kept now."""
        return any(
            row.effects is job.effects and mark < len(job.tokens) and row.tokens[:mark] == job.tokens[:mark]
            for row in self._prefilling
            for mark in row.marks
        )

    def _end(self, job: Job, reason: str, error: BaseException | None = None) -> None:
        """A row leaves. Its reason comes last: with it the answer is complete."""
        try:
            job.text.close()
        except Exception as failure:
            reason, error = "error", error or failure
        for rows in (self._decoding, self._prefilling, self._scoring):
            if job in rows:
                rows.remove(job)
        self._slots.close(job.arrived)
        job.error = error
        job.reason = reason

    # Prompts.

    def _prefill(self, chunk: int) -> None:
        group, length = self._group(chunk)
        for jobs, logits in self._isolated(group, lambda jobs: self._prompt_logits(jobs, length)):
            for job in jobs:
                job.placed += min(job.left, length)
                self._keep_marks(job)
            ready = [job for job in jobs if not job.left]
            for job in ready:
                self._prefilling.remove(job)
                (self._scoring if job.completions else self._decoding).append(job)
            if writing := [job for job in ready if not job.completions]:
                self._take(writing, logits)

    def _prompt_logits(self, jobs: list[Job], length: int) -> torch.Tensor:
        """Logits after the last prompt token of those jobs that have at most ``length`` left, and write then."""
        counts = [min(job.left, length) for job in jobs]
        ids = torch.zeros(len(jobs), max(counts), dtype=torch.long)
        for line, job, count in zip(ids, jobs, counts, strict=True):
            line[:count] = torch.tensor(job.tokens[job.placed : job.placed + count])
        offsets = torch.arange(ids.shape[1])
        begin = torch.tensor([job.placed for job in jobs])[:, None]
        end = torch.tensor(counts)[:, None]
        real = offsets < end
        last = torch.tensor(
            [count == job.left and not job.completions for job, count in zip(jobs, counts, strict=True)]
        )
        keep = (offsets == end - 1) & last[:, None]
        # Padding stands behind a row's tokens, where they cannot see it, and has the position of a real token.
        places = torch.where(real, begin + offsets, -1)
        slots = [job.arrived for job in jobs]
        effects = [job.effects for job in jobs]
        return self.passes.logits(self.passes.hidden(effects, slots, ids, places.clamp(min=0), places, keep))

    def _keep_marks(self, job: Job) -> None:
        for mark in sorted(mark for mark in job.marks if mark <= job.placed):
            job.marks.discard(mark)
            if not self.prefixes.has(job.effects, job.tokens[:mark]):
                with contextlib.suppress(RuntimeError, MemoryError):  # no memory for it: others compute it again
                    self.prefixes.add(job.effects, job.tokens[:mark], self._slots, job.arrived)

    def _group(self, chunk: int) -> tuple[list[Job], int]:
        """Prompts to compute together, and how many positions of each.

        By turns that of the oldest row and that of the row with least to do, with others of similar length: the long
        ones always go on, and the short ones do not wait for them.
        """
        rows = self._prefilling
        oldest = min(rows, key=lambda job: job.arrived)
        first = oldest if self._oldest_next else min(rows, key=lambda job: job.left)
        self._oldest_next = not self._oldest_next
        length = min(first.left, chunk)
        group = [first]
        for job in sorted(rows, key=lambda job: abs(job.left - length)):
            longest = max(length, min(job.left, chunk))
            least = min(min(each.left, chunk) for each in (*group, job))
            if job is not first and least * 2 >= longest and longest * (len(group) + 1) <= chunk:
                group.append(job)
                length = longest
        return group, length

    # Answers.

    def _decode(self) -> None:
        self._decoding.sort(key=lambda job: self._slots.order(job.arrived))
        for jobs, logits in self._isolated(list(self._decoding), self._next_logits):
            for job in jobs:
                job.placed += 1
            self._take(jobs, logits)

    def _next_logits(self, jobs: list[Job]) -> torch.Tensor:
        ids = torch.tensor([[job.written[-1]] for job in jobs])
        places = torch.tensor([[job.placed] for job in jobs])
        keep = torch.ones_like(ids, dtype=torch.bool)
        slots = [job.arrived for job in jobs]
        effects = [job.effects for job in jobs]
        return self.passes.logits(self.passes.hidden(effects, slots, ids, places, places, keep))

    def _take(self, jobs: list[Job], logits: torch.Tensor) -> None:
        """Each job's next token from its line of ``logits``; jobs that it ends leave."""
        lines = {job: line for line, job in enumerate(jobs)}

        def chosen(some: list[Job]) -> list[list[float]]:
            own = logits if len(some) == len(jobs) else logits[[lines[job] for job in some]]
            tokens, logprobs = choose(own, [job.draw for job in some])
            # One transfer a step; a float32 holds every id below 2**24 exactly, and MPS has no float64.
            return torch.stack((tokens.float(), (tokens if logprobs is None else logprobs).float())).tolist()

        for some, found in self._isolated(jobs, chosen):
            self._note_likeliest(some, logits, lines)
            for job, token, nat in zip(some, *found, strict=True):
                self._ended(job, partial(self._write, job, int(token), nat))

    def _note_likeliest(self, jobs: list[Job], logits: torch.Tensor, lines: dict[Job, int]) -> None:
        asked = [job for job in jobs if job.sampling.top_logprobs]
        if asked:
            most = max(job.sampling.top_logprobs for job in asked)
            for job, found in zip(asked, likeliest(logits[[lines[job] for job in asked]], most), strict=True):
                job.likeliest.append(found[: job.sampling.top_logprobs])

    def _ended(self, job: Job, answer: Callable[[], str | None]) -> None:
        """End a job for the reason that its answer gives, or because its answer failed."""
        try:
            reason = answer()
        except Exception as error:
            self._end(job, "error", error)
            return
        if reason is not None:
            self._end(job, reason)

    def _write(self, job: Job, token: int, nat: float) -> str | None:
        """Go on with a token; returns why the answer ends with it, where it does.

        Raises:
            EngineError: there is no next token.
        """
        if token < 0:
            raise EngineError(_NOT_FINITE if job.grammar is None else _NO_WAY_ON)
        if job.sampling.logprobs:
            job.logprobs.append(nat)  # first, so that whoever looks meanwhile finds one for every token written
        job.written.append(token)
        job.draw.took(token)
        if token in job.stop:
            return "stop"
        job.text.add(token)
        if job.text.stopped or (job.grammar is not None and job.grammar.complete):
            return "stop"
        return "length" if job.draw.written >= job.sampling.max_new_tokens else None

    # Scores.

    def _score(self, chunk: int) -> None:
        """Score completions of the oldest job, and of those after it that fit into the same chunk of positions."""
        group: dict[Job, Candidates] = {}
        longest = 0
        for job in sorted(self._scoring, key=lambda job: job.arrived):
            row = job.candidates.within(chunk)
            longest = max(longest, row.positions)
            if group and longest * (len(group) + 1) > chunk:
                break
            group[job] = row
        for jobs, found in self._isolated(list(group), lambda jobs: scores_of(self.passes, [group[j] for j in jobs])):
            for job, scores in zip(jobs, found, strict=True):
                job.scores += scores
                if len(job.scores) == len(job.completions):
                    self._ended(job, partial(self._choose if job.head is None else self._give, job))

    def _give(self, job: Job) -> str:
        """A head's scores are the answer.

        Raises:
            EngineError: scores that are not numbers.
        """
        if not all(math.isfinite(value) for outputs in job.scores for value in outputs):
            raise EngineError(_NOT_FINITE)
        return "score"

    def _choose(self, job: Job) -> str:
        """Take the completion that is likeliest as a whole, or sample one by likelihood ** (1 / temperature).

        Raises:
            EngineError: log-probabilities that are not numbers.
        """
        totals = job.totals
        if not math.isfinite(max(totals, key=lambda total: math.inf if math.isnan(total) else total)):
            raise EngineError(_NOT_FINITE)
        best = job.draw.among(totals)
        job.written = list(job.completions[best])
        if job.sampling.logprobs:
            job.logprobs = job.scores[best]
        for token in job.written:
            if token not in job.stop:
                job.text.add(token)
        return "choice"
