"""PPO, RLOO and GRPO: rounds of samples on one base, checked against exact policies on tiny models."""

from __future__ import annotations

import gc
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import tiny_base

from tunescope import bank
from tunescope.base import Base
from tunescope.data.rows import Row
from tunescope.errors import BankError, DataError, TrainingError, TunescopeError
from tunescope.methods import IA3, Adapter, Customized, Full, LoRA, Method, PromptTuning, PTuning
from tunescope.objectives import GRPO, PPO, RLOO, PolicyObjective, Reward, Rollout
from tunescope.objectives.rollouts import collate_rollouts
from tunescope.training import TrainSettings, train
from tunescope.training.metrics import StepMetrics

ROWS = [{"prompt": f"say {'x' * i}"} for i in range(4)]
PAIRS = [{"prompt": f"say {i}", "chosen": "aaa", "rejected": "zzz"} for i in range(6)]
REWARD = "tests.training.judges_of_tests:early"
METHODS: dict[str, Method] = {
    "ia3": IA3(), "lora": LoRA(rank=4), "adapter": Adapter(), "prompt-tuning": PromptTuning(virtual_tokens=3),
    "p-tuning": PTuning(virtual_tokens=3), "full": Full(),
}  # fmt: skip
KINDS: dict[str, type[PolicyObjective]] = {"ppo": PPO, "rloo": RLOO, "grpo": GRPO}


def objective(kind: str, **changes: Any) -> PolicyObjective:
    values = {"reward": REWARD, "rounds": 2, "prompts": 4, "n": 3, "max_new_tokens": 4, "missing_stop": "keep"}
    if kind == "ppo":
        values["critic_warmup"] = 0
    return KINDS[kind](**(values | changes))


def settings(**changes: Any) -> TrainSettings:
    return TrainSettings(**({"lr": 1e-3, "epochs": 2, "batch_size": 2} | changes))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns_by_every_algorithm(name: str, kind: str, tmp_path: Path) -> None:
    """At the start the policy is its reference, and the engine samples from what the training pass computes."""
    seen: list[StepMetrics] = []
    trained = train(
        tiny_base(), METHODS[name], objective(kind), ROWS, settings=settings(), out=tmp_path / "b/x",
        on_step=seen.append,
    )  # fmt: skip
    assert len(seen) == 2 * 2 * 2  # rounds, epochs, minibatches of two prompts
    first, last = seen[0].measured, seen[-1].measured
    assert first["round"] == 0 and last["round"] == 1
    assert first["engine_gap"] < 1e-4
    assert abs(first["kl"]) < 1e-6 or "tuning" in name  # virtual tokens move the policy from its first step on
    assert first["moved"] < 1e-9 < seen[1].measured["moved"] and first["clip_share"] == 0
    assert ("explained_variance" in first) == (kind == "ppo")
    assert any(metrics.grad_norm > 0 for metrics in seen)
    shown = [json.loads(line) for line in (tmp_path / "b/x/samples.jsonl").read_text().splitlines()]
    assert [each["round"] for each in shown] == [0] * 4 + [1] * 4 and {"prompt", "completion", "reward"} <= set(
        shown[0]
    )
    again = bank.load(tmp_path / "b/x", tiny_base())
    assert set(again.customization.heads) == set() and trained.record.objective == kind


def next_token(customized: Customized, base: Base) -> torch.Tensor:
    """[prompts, tokens] exact log-probabilities of the first token, each prompt in a pass of its own."""
    from tunescope.data.encoding import Encoder

    encoder = Encoder(base.tokenizer, customized.template, base.context_length)
    found = []
    with torch.no_grad(), customized.active() as running:
        for row in ROWS:
            ids = torch.tensor([encoder.prompt(({"role": "user", "content": row["prompt"]},)).ids])
            hidden = running.hidden(ids, torch.ones_like(ids))[0, -1:]
            found.append(running.vocabulary_head(hidden)[0].float().log_softmax(0))
    return torch.stack(found)


@pytest.mark.parametrize("kind", KINDS)
def test_a_bandit_is_solved(kind: str) -> None:
    """One token an answer: the best policy for E[r] - β KL is π_ref exp(r/β) / Z, worth β log Z (Rafailov et al. 2023,
    equation 4). Each algorithm gets at least 95% of what there is to gain. GRPO's distance is another one (see its
    file), so there β is next to nothing.
    """
    beta = 0.01 if kind == "grpo" else 0.2
    gained = gain(objective(kind, max_new_tokens=1, n=64, rounds=35, beta=beta), beta)
    assert gained > 0.95, gained


def test_the_distance_and_the_whitening_of_ppo_matter() -> None:
    """Each left out, the bandit is solved worse in as many rounds. The critic makes no difference that it can show: an
    answer is one token, so whitening takes away what a critic of the prompts would (docs/rlhf.md).
    """
    found = {
        name: gain(objective("ppo", max_new_tokens=1, n=16, rounds=20, **({"beta": 0.2} | changes)), 0.2)
        for name, changes in {"whole": {}, "no distance": {"beta": 0.0}, "no whitening": {"whiten": False}}.items()
    }
    assert found["no distance"] < 0.5 < found["no whitening"] < found["whole"] - 0.02, found


def gain(wanted: PolicyObjective, beta: float, seed: int = 0) -> float:
    """The share of what there is to gain of E[r] - β KL that a policy reaches, exactly, over all tokens."""
    base = tiny_base()
    trained = train(base, Full(), wanted, ROWS, settings=settings(lr=8e-3, batch_size=4, seed=seed))
    start = train(base, Full(), wanted, ROWS, settings=settings(lr=1e-9, max_steps=1, batch_size=4))
    reference = next_token(start.customized, base)
    texts = [base.tokenizer.decode([i], skip_special_tokens=True) for i in range(reference.shape[1])]
    rewards = torch.tensor([float(text[:1] < "n") for text in texts])

    def worth(policy: torch.Tensor) -> float:
        return float((policy.exp() * (rewards - beta * (policy - reference))).sum(dim=1).mean())

    best = float(beta * (reference + rewards / beta).logsumexp(dim=1).mean())
    return (worth(next_token(trained.customized, base)) - worth(reference)) / (best - worth(reference))


def test_without_the_distance_the_policy_moves_further() -> None:
    moved = {}
    for beta in (0.0, 1.0):
        wanted = objective("rloo", max_new_tokens=1, n=16, rounds=12, beta=beta)
        seen: list[StepMetrics] = []
        train(tiny_base(), Full(), wanted, ROWS, settings=settings(lr=3e-3, batch_size=4), on_step=seen.append)
        moved[beta] = seen[-1].measured["kl"]
    assert moved[0.0] > 3 * moved[1.0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_round_s_loss_is_that_of_single_samples(kind: str) -> None:
    """Packed prompts and samples against each sample alone, log-probabilities by all logits."""
    base = tiny_base()
    rollouts = [
        Rollout(
            i, [1, 2, 3 + i], [[5, 6], [7, 8, 9]], [[-1.0, -1.2], [-0.5, -0.6, -0.7]], [[-1.1, -1.0], [-0.4] * 3],
            [[0.5, 0.5], [-1.0] * 3], [True, i == 0],
        )
        for i in range(2)
    ]  # fmt: skip
    wanted = objective(kind, n=2)
    trained = train(base, LoRA(rank=2), wanted, ROWS, settings=settings(max_steps=1))
    customized = trained.customized
    batch = wanted.collate(rollouts)
    with torch.no_grad(), customized.active():
        packed = float(wanted.batch_loss(customized, batch).total)
    slow = 0.0
    for rollout in rollouts:
        for number, ids in enumerate(rollout.completions):
            alone = Rollout(
                rollout.number, rollout.prompt, [ids], [rollout.logprobs[number]], [rollout.reference[number]],
                [rollout.advantages[number]], [rollout.learned[number]],
            )  # fmt: skip
            with torch.no_grad(), customized.active():
                slow += float(wanted.batch_loss(customized, collate_rollouts([alone])).total)
    assert packed == pytest.approx(slow, rel=1e-6, abs=1e-5)
    assert wanted.weight(batch) == (sum((2, 3, 2)) if kind == "ppo" else 3)


@pytest.mark.parametrize("kind", ["ppo", "grpo"])
@pytest.mark.parametrize("killed_after", [1, 4, 5])
def test_a_killed_run_ends_alike(kind: str, killed_after: int, tmp_path: Path) -> None:
    """Killed in a round, at its end, and behind the next one's samples; critic, adapted β and samples go on, too."""
    how = {"settings": settings(checkpoint_every=1), "style": "chat"}
    wanted = {"rounds": 3, "target_kl": 0.01, "beta": 0.1, "normalize_rewards": True}

    def run(out: Path, on_step: Any = lambda metrics: None) -> Any:
        return train(tiny_base(), LoRA(rank=2), objective(kind, **wanted), ROWS, out=out, on_step=on_step, **how)

    def kill(metrics: StepMetrics) -> None:
        if metrics.step == killed_after:
            os.kill(os.getpid(), signal.SIGKILL)

    if (child := os.fork()) == 0:
        torch.set_num_threads(1)
        run(tmp_path / "b/killed", kill)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    torch.set_num_threads(1)
    first: list[int] = []
    run(tmp_path / "b/killed", lambda metrics: first.append(metrics.step))
    run(tmp_path / "b/whole")
    assert first[0] == killed_after + 1
    for name in ("metrics.jsonl", "samples.jsonl"):
        whole, killed = ((tmp_path / "b" / each / name).read_text().splitlines() for each in ("whole", "killed"))
        timed = ("seconds", "tokens_per_s")
        assert [_without(line, timed) for line in whole] == [_without(line, timed) for line in killed]


def _without(line: str, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in json.loads(line).items() if name not in names}


def test_the_base_stands_in_memory_once() -> None:
    """Policy, reference, reward model and critic: all tensors of the base's sizes are the base's own."""
    base = tiny_base()
    rewards = train(base, LoRA(rank=2), Reward(), PAIRS, settings=settings(max_steps=2))
    sizes = {parameter.numel() for parameter in base.model.parameters() if parameter.numel() > 2000}

    def storages() -> set[int]:
        found = (each for each in gc.get_objects() if type(each) in (torch.Tensor, torch.nn.Parameter))
        strided = (each for each in found if each.layout is torch.strided and each.is_leaf)
        return {each.untyped_storage().data_ptr() for each in strided if each.numel() in sizes}

    before, seen = storages(), set[int]()

    def count(_: StepMetrics) -> None:
        seen.update(storages())

    train(base, LoRA(rank=2), objective("ppo"), ROWS, settings=settings(), on_step=count)
    assert rewards.record.objective == "reward" and seen and seen <= before


@pytest.fixture
def entries(tmp_path: Path) -> Iterator[Path]:
    """A bank with a task, a reward model by LoRA and one that moved the base."""
    base = tiny_base()
    few = settings(max_steps=4, lr=1e-2)
    train(base, LoRA(rank=2), data=[{"prompt": "say", "completion": "a"}] * 4, settings=few, out=tmp_path / "b/sft")
    train(base, LoRA(rank=2), Reward(), PAIRS, settings=few, out=tmp_path / "b/reward")
    train(base, Full(), Reward(), PAIRS, settings=few, out=tmp_path / "b/moved")
    train(base, LoRA(rank=2), objective("rloo"), ROWS, settings=settings(max_steps=1), out=tmp_path / "b/policy")
    yield tmp_path / "b"


def test_the_critic_starts_as_the_reward_model(entries: Path) -> None:
    """Its values at a sample's last token are the rewards that the sample gets: no warm-up makes that up."""
    from tunescope.inference import reward_scores
    from tunescope.objectives.ppo import critic_values
    from tunescope.training.policy import services_of
    from tunescope.training.start import find_start

    base = tiny_base()
    wanted = objective("ppo", reward=str(entries / "reward"))
    begin = find_start(base, LoRA(rank=2), str(entries / "sft"), None)
    policy = begin.customize(begin.template(None, "auto"), [], None, 0, {})
    services, beside = services_of(policy, wanted, (), settings(), entries)
    assert beside is not None and services.critic is not None and services.score is not None
    messages = ({"role": "user", "content": "say 1"},)
    model = bank.load(entries / "reward", base)
    expected = reward_scores(model, [messages], ["aaa"])[0]
    assert services.score([Row(messages, None, 1)], ["aaa"]) == {"reward": [pytest.approx(expected, abs=1e-6)]}
    from tunescope.data.encoding import Encoder

    prompt, (ids,) = Encoder(base.tokenizer, model.template, base.context_length).candidates(messages, ["aaa"])
    # The value of what follows is read at the token before it: behind the stop token stands one more.
    values = critic_values(services.critic, [Rollout(1, prompt, [[*ids, 0]], [], [])])[0][0]
    assert values[-1] == pytest.approx(expected, abs=1e-5) and expected != 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_is_the_start(kind: str, entries: Path) -> None:
    seen: list[StepMetrics] = []
    train(
        tiny_base(), IA3(), objective(kind, reward=str(entries / "reward")), ROWS, settings=settings(),
        start=entries / "sft", on_step=seen.append,
    )  # fmt: skip
    assert abs(seen[0].measured["kl"]) < 1e-6 and seen[0].measured["engine_gap"] < 1e-4


def test_the_critic_is_warmed_up_alone(tmp_path: Path) -> None:
    seen: list[StepMetrics] = []
    wanted = objective("ppo", critic_warmup=1)
    train(tiny_base(), LoRA(rank=2), wanted, ROWS, settings=settings(), on_step=seen.append)
    assert [metrics.grad_norm > 0 for metrics in seen] == [False] * 4 + [True] * 4
    assert abs(seen[4].measured["kl"]) < 1e-6  # the policy of the second round still is its reference


def test_a_round_ends_where_the_policy_moved_too_far() -> None:
    seen: list[StepMetrics] = []
    wanted = objective("rloo", stop_kl=1e-7, n=8)
    train(tiny_base(), LoRA(rank=2), wanted, ROWS, settings=settings(lr=1e-1, warmup=0), on_step=seen.append)
    assert [metrics.grad_norm > 0 for metrics in seen] == [True, True, False, False] * 2


def test_a_weighted_reward_shows_its_parts() -> None:
    seen: list[StepMetrics] = []
    wanted = objective("rloo", reward=(f"0.75*{REWARD}", "-0.5*words:3"))
    train(tiny_base(), LoRA(rank=2), wanted, ROWS, settings=settings(), on_step=seen.append)
    for step in seen:
        found = step.measured
        parts = 0.75 * found[f"reward/{REWARD}"] - 0.5 * found["reward/words:3"]
        assert found["reward"] == pytest.approx(parts, abs=1e-6) and found["reward/words:3"] < 0


def test_a_round_is_judged_in_one_call_that_has_the_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.training import judges_of_tests as judges

    monkeypatch.setattr(judges, "CALLS", [])
    rows = [{**row, "completion": answer} for row, answer in zip(ROWS, "abcd", strict=True)]
    wanted = objective("rloo", reward="tests.training.judges_of_tests:together", prompts=3)
    train(tiny_base(), LoRA(rank=2), wanted, rows, settings=settings())
    assert judges.CALLS == [9, 3] * 2  # three samples of three prompts, and those of the reference that are shown


def test_a_reward_model_scores_a_round_as_it_scores_single_samples(
    entries: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And in one set of passes: its prompts are not scored one after the other."""
    from tunescope.inference import reward_scores
    from tunescope.inference import rewards as module

    asked: list[int] = []
    scores = module.head_scores
    monkeypatch.setattr(
        module, "head_scores", lambda c, items, head, **more: asked.append(len(items)) or scores(c, items, head, **more)
    )
    wanted = objective("rloo", reward=str(entries / "reward"), rounds=1, beta=0)
    train(tiny_base(), LoRA(rank=2), wanted, ROWS, settings=settings(), out=entries / "judged")
    assert asked == [4, 4]  # prompts; the second are those of the reference's samples that are shown
    model = bank.load(entries / "reward", tiny_base())
    for line in (entries / "judged/samples.jsonl").read_text().splitlines():
        shown = json.loads(line)
        alone = reward_scores(model, [shown["prompt"]], [shown["completion"]])[0]
        assert shown["reward"] == pytest.approx(alone, abs=1e-5)


def test_samples_that_the_reward_fails_on_are_named_up_to_a_limit() -> None:
    reward = ("tests.training.judges_of_tests:fails_on_long", "words:2")
    how = {"reward": reward, "prompts": 4, "n": 3, "rounds": 1}
    words = r"failed on 3 samples of a round, and 2 may .* The first: line 4, sample 1: .*fails_on_long: the judge rai"
    with pytest.raises(TrainingError, match=words):
        train(tiny_base(), LoRA(rank=2), objective("rloo", **how, skip_unjudged=2), ROWS, settings=settings())
    train(tiny_base(), LoRA(rank=2), objective("rloo", **how, skip_unjudged=3), ROWS, settings=settings())


def test_the_critic_of_a_sum_starts_as_its_reward_model(entries: Path) -> None:
    """Weighted as in the sum, and not at all where two of its parts are reward models."""
    from tunescope.training.policy import services_of
    from tunescope.training.start import find_start

    base, found = tiny_base(), []
    model, other = str(entries / "reward"), str(entries / "moved")
    for reward in ((model,), (f"0.25*{model}", "words:3"), (model, other)):
        begin = find_start(base, LoRA(rank=2), str(entries / "sft"), None)
        policy = begin.customize(begin.template(None, "auto"), [], None, 0, {})
        services, _ = services_of(policy, objective("ppo", reward=reward), (), settings(), entries)
        assert services.critic is not None
        found.append(services.critic.customization.heads["value"].weight)
    assert found[0].abs().max() > 0 and torch.equal(0.25 * found[0], found[1]) and not found[2].any()


def test_what_a_reader_must_know_is_said() -> None:
    wanted = objective("grpo", reward="tests.training.judges_of_tests:constant")
    trained = train(tiny_base(), LoRA(rank=2), wanted, ROWS, settings=settings())
    assert sum("gives all samples of round 1 the same score" in note for note in trained.notes) == 1


@pytest.mark.parametrize(
    ("kind", "changes", "error", "words"),
    [
        ("ppo", {"reward": "tests.training.judges_of_tests:broken"}, TrainingError, "line 1, sample 1: the judge ret"),
        ("ppo", {"reward": "sentimental"}, TunescopeError, "sentiment"),
        ("ppo", {"reward": "regex:(a"}, TunescopeError, "does not compile"),
        ("ppo", {"reward": "nan*exact"}, TunescopeError, "nan is no weight"),
        ("ppo", {"reward": "exact"}, DataError, r"known answer, and 4 rows have none \(lines 1, 2, 3, 4\)"),
        ("ppo", {"reward": "BANK/reward", "base": "qwen2"}, BankError, "reward was made for"),
        ("ppo", {"reward": "tests.training.judges_of_tests:nothing"}, TunescopeError, "cannot be imported"),
        ("ppo", {"reward": "BANK/sft"}, TunescopeError, "gives no rewards"),
        ("ppo", {"critic": "BANK/sft"}, TrainingError, "a critic starts from a reward model"),
        ("ppo", {"critic": "BANK/moved"}, TrainingError, "whose weights a critic cannot share"),
        ("ppo", {"critic": "BANK/none"}, TunescopeError, "Unknown entry of the bank"),
        ("ppo", {"max_new_tokens": 500}, DataError, "leaves no room for 500 more"),
        ("ppo", {"critic": "BANK/policy"}, TrainingError, "was trained for rloo: a critic starts from a reward model"),
        ("rloo", {"prompts": 1}, TrainingError, r"takes 2 prompts .* a round has 1: take --batch-size 1 or less, or r"),
        ("grpo", {"held_out_judge": REWARD}, TrainingError, "is the reward itself"),
        ("grpo", {"held_out_judge": "nobody"}, TunescopeError, "Unknown judge"),
    ],
)  # fmt: skip
def test_bad_input_stops_before_anything_is_sampled(
    kind: str,
    changes: dict[str, Any],
    error: type[TunescopeError],
    words: str,
    entries: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sampled: list[object] = []
    changes = {name: str(value).replace("BANK", str(entries)) if name in ("reward", "critic") else value
               for name, value in changes.items()}  # fmt: skip
    base = tiny_base(changes.pop("base", "llama"))
    if changes.get("reward") != "tests.training.judges_of_tests:broken":  # which is seen only once it is asked
        monkeypatch.setattr("tunescope.training.policy.sample", lambda *_, **__: sampled.append(1))
    with pytest.raises(error, match=words):
        train(base, LoRA(rank=2), objective(kind, **changes), ROWS, settings=settings(), out=entries / "no")
    assert not sampled
    assert not (entries / "no").exists() and not (entries / ".training").exists()


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("rloo", {"n": 1}, "give at least 2"),
        ("grpo", {"n": 1}, "give at least 2"),
        ("ppo", {"beta": -1}, "beta"),
        ("ppo", {"target_kl": 0}, "target_kl"),
        ("ppo", {"lam": 2}, "lam"),
        ("ppo", {"reward": ()}, "reward: names nothing"),
    ],
)
def test_bad_settings(kind: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(TunescopeError, match=words):
        objective(kind, **changes)


def test_rows_that_are_validated_elsewhere() -> None:
    with pytest.raises(TrainingError, match="tunescope eval --judge"):
        train(tiny_base(), LoRA(rank=2), objective("ppo"), ROWS, settings=settings(), validation=ROWS)
