"""The one training loop: every method, every objective, one learner or several over one base."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from tunescope import peak_memory
from tunescope.base import Base
from tunescope.data.batching import Batch
from tunescope.data.packing import PASS_TOKENS, join
from tunescope.errors import Interrupted, TrainingError
from tunescope.methods.acting import Hooks, Share
from tunescope.objectives.forward import packed_hidden
from tunescope.training.learner import Learner
from tunescope.training.metrics import METRICS, METRICS_BESIDE, MetricsLog, StepMetrics
from tunescope.training.recompute import recomputed

# The kinds of device on which torch can sum a tensor's bits.
_SUMS_BITS = ("cpu", "cuda")
# Learners share a pass while padding to the longest makes it at most this much larger than their own passes together.
_MOST_PADDING = 1.1

OnStep = Callable[[Learner, StepMetrics], object]
_Part = tuple[Learner, Batch]


def train_loop(
    learners: Sequence[Learner], *, on_step: OnStep = lambda learner, metrics: None, until: int | None = None
) -> None:
    """Train learners over one base, each until its own steps are done, going on from their checkpoints.

    Each computes what it would compute alone: they share passes of the frozen base and nothing else. One whose loss or
    gradient is not finite stops, with its ``error``, and the others go on.

    Args:
        learners: at their start, or at a checkpoint; their results grow.
        on_step: called after each step of each learner, while nothing acts on the base: an engine may serve rows of it.
            Where it returns True, that learner ends there.
        until: a step of the first learner after which all pause: they save a checkpoint and still run.

    Raises:
        TrainingError: several learners of which one moves the base's weights, or which have bases of their own; a
            frozen base that moved.
        BaseInUseError: another customization acts on the base at a step.
        Interrupted: after Ctrl-C, once everything is saved.
    """
    bases, team = _bases(learners), learners[0].team
    device = learners[0].base.device
    peak_memory.reset_peak(device)
    frozen = {base: _checksum(base.model) for base, own in bases.items() if not own[0].customized.moves_base}
    with contextlib.ExitStack() as opened:
        logs = {learner: opened.enter_context(log) for learner in learners if (log := _log(learner)) is not None}
        hooks = {
            base: opened.enter_context(Hooks(base, [learner.customized.customization for learner in own]))
            for base, own in bases.items()
        }
        stopped = opened.enter_context(_interruptible())
        while running := [learner for learner in learners if learner.runs]:
            if until is not None and learners[0].step >= until:
                for learner in running:
                    if not learner.owned:
                        _save(learner, logs)
                break
            for learner in running:
                learner.begin_round()
            found = step(running, hooks)
            for learner, metrics in found:
                if learner in logs:
                    logs[learner].append(metrics)
            for learner, metrics in found:
                if learner.checkpoint_is_due():
                    _save(learner, logs)
                if learner.team.any(on_step(learner, metrics) is True):
                    learner.stop()
            if team.any(stopped()) and (unfinished := [each for each in learners if each.runs and not each.owned]):
                for learner in unfinished:
                    _save(learner, logs)
                raise Interrupted(_interrupted(unfinished))
    if any(_checksum(base.model) != before for base, before in frozen.items()):
        raise TrainingError("The frozen base's weights changed while training: nothing was saved.")
    for learner in learners:
        learner.result.peak_memory_mb = max(learner.result.peak_memory_mb, peak_memory.peak_mb(device))


def _log(learner: Learner) -> MetricsLog | None:
    if not learner.team.writes:
        return None
    return MetricsLog(learner.folder, learner.step, METRICS_BESIDE if learner.owned else METRICS)


def _save(learner: Learner, logs: Mapping[Learner, MetricsLog]) -> None:
    for each in (learner, learner.beside):
        if each is not None and each in logs:
            logs[each].sync()
    learner.save()


def step(learners: Sequence[Learner], hooks: Mapping[Base, Hooks]) -> list[tuple[Learner, StepMetrics]]:
    """One optimizer step of each learner, in as few passes as pay; returns what was measured of those that took it."""
    started = time.perf_counter()
    parts = {learner: learner.next_parts() for learner in learners}
    tokens = {learner: sum(part.packed.computed for part in own) for learner, own in parts.items()}
    for number in range(max(map(len, parts.values()), default=0)):  # none where this process of a team has no share
        members = [(learner, own[number]) for learner, own in parts.items() if number < len(own)]
        for together in _passes(members):
            with contextlib.ExitStack() as training:
                for learner, _ in together:
                    training.enter_context(learner.training())
                _backward(together, hooks[together[0][0].base])
    seconds = time.perf_counter() - started
    found = []
    for learner in learners:
        learner.spend(seconds * tokens[learner] / max(sum(tokens.values()), 1))
        metrics = learner.finish_step()
        if metrics is not None:
            found.append((learner, metrics))
    return found


def _passes(members: Sequence[_Part]) -> Iterator[list[_Part]]:
    """Parts of one step that are computed together: of one base and of similar length, no more than fill the cores."""
    together: list[_Part] = []
    for member in sorted(members, key=lambda member: member[1].packed.input_ids.shape[1]):
        joined = [batch.packed for _, batch in (*together, member)]
        computed = sum(len(each.input_ids) for each in joined) * joined[-1].input_ids.shape[1]
        fits = computed <= min(PASS_TOKENS, _MOST_PADDING * sum(each.computed for each in joined))
        if together and not (fits and together[0][0].base is member[0].base):
            yield together
            together = []
        together.append(member)
    yield together


def _backward(members: Sequence[_Part], hooks: Hooks) -> None:
    """A forward and backward pass of these parts: the gradients stay in the learners' parameters."""
    base = members[0][0].base
    acting = [learner.customized.customization for learner, _ in members]
    again = any(learner.settings.recompute for learner, _ in members)
    saving = recomputed(base, acting) if again else contextlib.nullcontext()
    if len(members) == 1:
        learner, part = members[0]
        with hooks.alone(acting[0]), saving:
            learner.loss(part, packed_hidden(base, part.packed)).backward()
        return
    joined = join([part.packed for _, part in members])
    shares, begin = {}, 0
    for learner, part in members:
        rows, length = part.packed.input_ids.shape
        shares[learner.customized.customization] = Share(slice(begin, begin + rows), length)
        begin += rows
    with hooks.together(shares), saving:
        hidden = packed_hidden(base, joined).view(*joined.input_ids.shape, -1)
        own = [hidden[share.rows, : share.length].flatten(0, 1) for share in shares.values()]
        losses = [learner.loss(part, each) for (learner, part), each in zip(members, own, strict=True)]
        torch.stack(losses).sum().backward()


def _bases(learners: Sequence[Learner]) -> dict[Base, list[Learner]]:
    """The learners by the base they run on: one for all, and one of its own for who moves it beside a critic."""
    bases: dict[Base, list[Learner]] = {}
    for learner in learners:
        bases.setdefault(learner.base, []).append(learner)
    moving = [learner for learner in learners if learner.customized.moves_base]
    apart = {learner.base for learner in moving if learner.beside is not None and len(bases[learner.base]) == 1}
    if [learner for learner in moving if learner.base not in apart] and len(learners) > 1:
        raise TrainingError(f"{moving[0].customized.method.name} moves the base's own weights, so it trains alone.")
    if len(bases) - len(apart) > 1:
        raise TrainingError("Learners that train together need one base: load it once and customize that.")
    return bases


def _interrupted(learners: Sequence[Learner]) -> str:
    after = ", ".join(dict.fromkeys(f"step {learner.step} of {learner.steps}" for learner in learners))
    return f"Stopped after {after}; everything is saved. Run the same command again to go on."


def _checksum(model: torch.nn.Module) -> list[int]:
    """A fast sum of each tensor's bits, computed where the tensor lies if torch can sum there."""
    sums = []
    for each in (*model.parameters(), *model.buffers()):  # quantized weights are buffers
        tensor = each.detach() if each.device.type in _SUMS_BITS else each.detach().cpu()
        sums.append(int(torch.hash_tensor(tensor).view(torch.int64)))
    return sums


@contextlib.contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a wish to stop after the step; the second one stops at once."""
    asked = False

    def on_interrupt(_signal: int, _frame: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    try:
        previous = signal.signal(signal.SIGINT, on_interrupt)
    except ValueError:  # not the main thread: whoever owns it handles Ctrl-C
        yield lambda: False
        return
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, previous)
