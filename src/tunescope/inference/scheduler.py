"""Which rows run when: continuous batching over a fixed number of slots.

A job is one sample of one request. It waits, is given a slot, has its prompt computed in chunks, writes a token a step
with all the others, and leaves; the next one takes its slot at once. The rows that write stand in the first slots, and
those whose prompts are still being computed behind them, so that a step reads the key-value memory without a copy.

``step`` is everything that happens: one token for every row that writes, then at most one chunk of prompts.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from tunescope.base import Base
from tunescope.data.encoding import common_prefix
from tunescope.inference.detokenizing import Detokenizer
from tunescope.inference.healing import Owed
from tunescope.inference.passes import Passes
from tunescope.inference.prefix import WORTH_SHARING, PrefixCache
from tunescope.inference.row_effects import Compiled
from tunescope.inference.sampling import Draw, Sampling, choose

# Positions of prompts computed between two steps of the rows that write: how long these have to wait.
_CHUNK = 256
# The same where nobody waits. More fills the cores no better and needs memory for the activations.
_CHUNK_ALONE = 2048
# Tokens that sharing must save before other jobs wait for the first to have computed what they share.
_WORTH_WAITING = 256
# How many of the waiting jobs are looked at for a shared beginning.
_LOOK_AHEAD = 64


@dataclass(eq=False)
class Job:
    """One sample of one request, from when it waits until it is done.

    Attributes:
        tokens: the prompt. Negative ids are virtual tokens.
        effects: the customization's effects; None for the base.
        sampling: how its tokens are chosen.
        sample: which of the request's samples it is, from 0.
        stop: token ids that end it.
        text: its words so far.
        choices: the answers to choose from, as tokens, where there are some.
        beginning: how many tokens of the prompt every prompt of this customization has.
        owed: what its answer must begin with.
        written: tokens generated; the stop token is one.
        logprobs: of the tokens written, in nats, where asked for.
        choice_logprobs: log-probability of each choice as a whole.
        cached: tokens of the prompt that were not computed for it.
        reason: why it ended: ``stop``, ``length``, ``choice``, ``cancelled`` or ``error``; None until then.
        error: what went wrong, where something did.
    """

    tokens: list[int]
    effects: Compiled | None
    sampling: Sampling
    sample: int
    stop: frozenset[int]
    text: Detokenizer
    choices: list[list[int]] = field(default_factory=list)
    beginning: int = 0
    owed: Owed | None = None
    written: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    choice_logprobs: list[float] = field(default_factory=list)
    cached: int = 0
    reason: str | None = None
    error: BaseException | None = None
    cancelled: bool = False
    arrived: int = 0  # how many jobs came before it
    placed: int = 0  # tokens whose keys and values are in its slot
    marks: set[int] = field(default_factory=set)  # beginnings of it to be kept once they are computed

    def __post_init__(self) -> None:
        self.draw = Draw(
            self.sampling, self.sample, self.stop, {token for token in self.tokens if token >= 0}, owed=self.owed
        )

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return self.reason is not None

    @property
    def left(self) -> int:
        """Prompt tokens still to be computed."""
        return max(len(self.tokens) - self.placed, 0)


class Scheduler:
    """Runs jobs on one base.

    Args:
        base: frozen.
        slots: most rows at once.
        prefix_bytes: what kept beginnings may take.

    Attributes:
        waiting: jobs without a slot, in order of arrival.
        passes: computes them, and counts.
    """

    def __init__(self, base: Base, *, slots: int, prefix_bytes: int) -> None:
        self.base = base
        self.waiting: deque[Job] = deque()
        self.prefixes = PrefixCache(prefix_bytes)
        self.passes = Passes(base, slots)
        self._slots = self.passes.slots
        self._rows: list[Job] = []  # by slot
        self._writing = 0  # how many of them, from the first on, write
        self._oldest_next = True
        self._arrived = 0

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._rows or self.waiting)

    @property
    def running(self) -> int:
        """Rows that have a slot."""
        return len(self._rows)

    def add(self, job: Job) -> None:
        """Let a job wait for a slot."""
        job.arrived, self._arrived = self._arrived, self._arrived + 1
        self.waiting.append(job)

    def forget(self, effects: Compiled) -> None:
        """A customization is no longer served: free what was kept for it. Rows under way still end as they began."""
        self.prefixes.forget(effects)
        self.passes.forget(effects)

    @torch.inference_mode()
    def step(self) -> bool:
        """Go on by a token a row and at most a chunk of prompts; returns whether anything is left to do."""
        try:
            self._drop_cancelled()
            self._admit()
            if self._writing:
                self._write()
            if self._writing < len(self._rows):
                self._prefill()
        except Exception as error:
            self._fail(error)
            raise
        return self.busy

    def _fail(self, error: BaseException) -> None:
        """What a step left undone cannot be gone on with: every job ends, and says why."""
        for job in [*self._rows, *self.waiting]:
            job.error, job.reason = error, "error"
        self._rows.clear()
        self.waiting.clear()
        self._writing = 0

    # Rows come and go.

    def _drop_cancelled(self) -> None:
        for job in [job for job in self.waiting if job.cancelled]:
            self.waiting.remove(job)
            job.reason = "cancelled"
        for slot in reversed([slot for slot, job in enumerate(self._rows) if job.cancelled]):
            self._end(slot, "cancelled")

    def _admit(self) -> None:
        held: list[Job] = []
        while self.waiting and len(self._rows) < self._slots.rows and len(held) < _LOOK_AHEAD:
            job = self.waiting.popleft()
            if self._computing_its_beginning(job):
                held.append(job)
                continue
            slot = len(self._rows)
            kept = self.prefixes.find(job.effects, job.tokens)
            if kept is not None:
                self._slots.restore(slot, kept)
                job.placed = job.cached = kept.tokens
            job.marks = {mark for mark in self._marks(job, held) if mark > job.placed}
            self._rows.append(job)
        self.waiting.extendleft(reversed(held))

    def _marks(self, job: Job, held: Sequence[Job]) -> set[int]:
        """The beginnings of a job's prompt that others have or will have."""
        longest = len(job.tokens) - 1
        found = {job.beginning} if job.beginning >= WORTH_SHARING else set()
        if job.sampling.n > 1:
            found.add(longest)
        others = [*held, *list(self.waiting)[:_LOOK_AHEAD]]
        lengths = [common_prefix(job.tokens, o.tokens) for o in others if o.effects is job.effects]
        lengths = [length for length in lengths if length >= WORTH_SHARING]
        if lengths and min(lengths) * len(lengths) >= _WORTH_WAITING:
            found.add(min(lengths))
        return {min(mark, longest) for mark in found if longest >= WORTH_SHARING}

    def _computing_its_beginning(self, job: Job) -> bool:
        """Whether a row is about to have computed more of this job's prompt than is kept now."""
        return any(
            row.effects is job.effects and mark < len(job.tokens) and row.tokens[:mark] == job.tokens[:mark]
            for row in self._rows[self._writing :]
            for mark in row.marks
        )

    def _end(self, slot: int, reason: str) -> None:
        """A row leaves; others move so that no slot is empty between rows."""
        job = self._rows[slot]
        job.reason = reason
        job.text.close()
        if slot < self._writing:
            self._writing -= 1
            self._relocate(self._writing, slot)
            slot = self._writing
        self._relocate(len(self._rows) - 1, slot)
        self._rows.pop()
        # The memory of the last row stays: the next one to come is often like it.
        left = self._rows or [job]
        self._slots.release(len(left), max(row.placed for row in left))

    def _relocate(self, source: int, target: int) -> None:
        if source != target:
            self._slots.move(source, target, self._rows[source].placed)
            self._rows[target] = self._rows[source]

    # Prompts.

    def _prefill(self) -> None:
        chunk = _CHUNK if self._writing else _CHUNK_ALONE
        jobs, length = self._group(chunk)
        slots = [self._rows.index(job) for job in jobs]
        counts = [min(job.left, length) for job in jobs]
        ids = torch.zeros(len(jobs), length, dtype=torch.long)
        for line, job, count in zip(ids, jobs, counts, strict=True):
            line[:count] = torch.tensor(job.tokens[job.placed : job.placed + count])
        device = self.base.device
        offsets = torch.arange(length)
        begin = torch.tensor([job.placed for job in jobs])[:, None]
        real = offsets < torch.tensor(counts)[:, None]
        places = (begin + offsets).to(device)
        last = torch.tensor([count == job.left for job, count in zip(jobs, counts, strict=True)])
        keep = (offsets == torch.tensor(counts)[:, None] - 1) & last[:, None]
        # Padding stands behind a row's tokens, where they cannot see it, and has the position of a real token.
        positions = torch.where(real.to(device), places, 0)
        effects = [job.effects for job in jobs]
        logits = self.passes.logits(effects, slots, ids.to(device), positions, places, keep.to(device))
        for slot, job, count in zip(slots, jobs, counts, strict=True):
            job.placed += count
            for mark in sorted(mark for mark in job.marks if mark <= job.placed):
                job.marks.discard(mark)
                if not self.prefixes.has(job.effects, job.tokens[:mark]):
                    self.prefixes.add(job.effects, job.tokens[:mark], self._slots, slot)
        ready = [job for job in jobs if not job.left]
        for job in ready:
            self._to_the_writing(job)
        if ready:
            self._take(ready, logits)

    def _group(self, chunk: int) -> tuple[list[Job], int]:
        """Prompts to compute together, and how many positions of each.

        By turns that of the oldest row and that of the row with least to do, with others of similar length: the long
        ones always go on, and the short ones do not wait for them.
        """
        rows = self._rows[self._writing :]
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

    def _to_the_writing(self, job: Job) -> None:
        slot = self._rows.index(job)
        if slot != self._writing:
            other = self._rows[self._writing]
            self._slots.swap(slot, self._writing, max(job.placed, other.placed))
            self._rows[slot], self._rows[self._writing] = other, job
        self._writing += 1

    # Answers.

    def _write(self) -> None:
        jobs = self._rows[: self._writing]
        device = self.base.device
        ids = torch.tensor([[job.written[-1]] for job in jobs], device=device)
        places = torch.tensor([[job.placed] for job in jobs], device=device)
        keep = torch.ones_like(ids, dtype=torch.bool)
        effects = [job.effects for job in jobs]
        logits = self.passes.logits(effects, list(range(len(jobs))), ids, places, places, keep)
        for job in jobs:
            job.placed += 1
        self._take(jobs, logits)

    def _take(self, jobs: list[Job], logits: torch.Tensor) -> None:
        """Each job's next token from its line of ``logits``; jobs that it ends leave."""
        chosen, logprobs = choose(logits, [job.draw for job in jobs])
        nats = [math.nan] * len(jobs) if logprobs is None else logprobs.tolist()
        ended: list[tuple[Job, str]] = []
        for line, (job, token, nat) in enumerate(zip(jobs, chosen.tolist(), nats, strict=True)):
            if job.choices:
                self._answer_with_choice(job, logits[line])
                ended.append((job, "choice"))
                continue
            job.written.append(token)
            job.draw.took(token)
            if job.sampling.logprobs:
                job.logprobs.append(nat)
            if token in job.stop:
                ended.append((job, "stop"))
                continue
            job.text.add(token)
            if job.text.stopped:
                ended.append((job, "stop"))
            elif job.draw.written >= job.sampling.max_new_tokens:
                ended.append((job, "length"))
        for job, reason in ended:
            self._end(self._rows.index(job), reason)

    def _answer_with_choice(self, job: Job, logits: torch.Tensor) -> None:
        """Take the choice that is likeliest as a whole, or sample one by likelihood ** (1 / temperature).

        The choices stand behind the prompt as branches that do not see each other: one pass scores them all.
        """
        past, device = job.placed, self.base.device
        tails = [choice[:-1] for choice in job.choices]
        ids = torch.tensor([[token for tail in tails for token in tail]], device=device)
        branch = torch.tensor([[number for number, tail in enumerate(tails, start=1) for _ in tail]], device=device)
        position = torch.tensor([[past + place for tail in tails for place in range(len(tail))]], device=device)
        places = past + torch.arange(ids.shape[1], device=device)[None]
        mask = self.base.masks(branch, position, past)
        keep = torch.ones_like(ids, dtype=torch.bool)
        slot = self._rows.index(job)
        after = self.passes.logits([job.effects], [slot], ids, position, places, keep, mask)
        first = torch.log_softmax(logits.float(), dim=-1)
        rest = torch.log_softmax(after.float(), dim=-1)
        totals, each, line = [], [], 0
        for choice in job.choices:
            nats = [float(first[choice[0]])]
            nats += [float(rest[line + i, token]) for i, token in enumerate(choice[1:])]
            line += len(choice) - 1
            totals.append(sum(nats))
            each.append(nats)
        best = job.draw.among(totals)
        job.choice_logprobs = totals
        job.written = list(job.choices[best])
        if job.sampling.logprobs:
            job.logprobs = each[best]
        for token in job.written:
            if token not in job.stop:
                job.text.add(token)
