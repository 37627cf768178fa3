"""SteerLM 2: its weights and loss by hand, and that a policy comes to follow an attribute model."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from tests.objectives.pairs import PAIRS
from tests.tiny import tiny_base

from tunescope import bank
from tunescope.data.encoding import Encoder
from tunescope.data.messages import Message
from tunescope.data.rows import Row
from tunescope.errors import BankError, DataError, TrainingError
from tunescope.evaluation import evaluate_attributes
from tunescope.inference.rewards import outputs_that_fit
from tunescope.judging import load_judge
from tunescope.methods import IA3, Adapter, Customized, LoRA, Method, PromptTuning, PTuning, customize
from tunescope.objectives import SFT, Attributes, Reward, SteerLM2
from tunescope.objectives.policy_losses import target_weight_loss
from tunescope.training import StepMetrics, TrainSettings, train

RATED = [
    Row(({"role": "user", "content": f"say {i % 3}"},), "ab!?"[i % 4] * (1 + i % 3), i).with_attributes(
        {"early": 4 if i % 4 < 2 else 0}
    )
    for i in range(24)
]
METHODS: dict[str, Method] = {
    "lora": LoRA(rank=4), "ia3": IA3(), "adapter": Adapter(), "prompt-tuning": PromptTuning(virtual_tokens=3),
    "p-tuning": PTuning(virtual_tokens=3),
}  # fmt: skip
SETTINGS = TrainSettings(max_steps=60, batch_size=8, lr=1e-2)


def of(folder: Path, **changes: object) -> SteerLM2:
    values = {"reward": str(folder / "raters"), "rounds": 2, "prompts": 4, "n": 4, "max_new_tokens": 3}
    return SteerLM2(**{"missing_stop": "keep", "steer_columns": ("early",), **values, **changes})


PROMPTS = [{"prompt": f"say {i}", "early": 4 * (i % 2)} for i in range(4)]


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An attribute model that was measured, and a policy that was trained on attributes a little."""
    folder = tmp_path_factory.mktemp("bank")
    objective = Attributes(columns=("early",))
    made = train(tiny_base(), LoRA(rank=4), objective, RATED, settings=SETTINGS, out=folder / "raters")
    card = evaluate_attributes(made.customized, objective, RATED)
    card["attributes"]["early"]["rmse"] = 1.0  # as on rows that it has not seen
    bank.write_card(folder / "raters", card, bank.read_record(folder / "raters"))
    few = SETTINGS.model_copy(update={"max_steps": 20})
    train(tiny_base(), LoRA(rank=4), SFT(steer_columns=("early",)), RATED, settings=few, out=folder / "steered")
    train(tiny_base(), LoRA(rank=4), SFT(), RATED, settings=few, out=folder / "plain")
    return folder


def test_the_loss_and_its_gradient_by_hand() -> None:
    """Equation 6: -Σ (w_i - b_i) ∇ log Q(y_i), with b the normalized exp(log Q - log Q')."""
    weights = torch.tensor([[0.7, 0.2, 0.1], [1.0, 0.0, 0.0]])
    moved = torch.tensor([[0.5, -1.0, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    learned = torch.tensor([[True, True, True], [True, False, True]])
    found = target_weight_loss(weights, moved, learned)
    e = [math.exp(0.5), math.exp(-1), 1.0]
    b = torch.tensor([value / sum(e) for value in e])
    by_hand = sum(w * math.log(w / float(q)) for w, q in zip((0.7, 0.2, 0.1), b, strict=True))
    assert found.tolist() == pytest.approx([by_hand, math.log(2)])
    found.sum().backward()
    assert moved.grad is not None
    assert moved.grad[0].tolist() == pytest.approx((b - weights[0]).tolist())
    assert moved.grad[1].tolist() == pytest.approx([-0.5, 0.0, 0.5])
    none = target_weight_loss(torch.zeros(1, 3), torch.zeros(1, 3), torch.zeros(1, 3, dtype=torch.bool))
    assert none.tolist() == [0]


def test_the_likelihood_is_a_gaussian_of_the_held_out_error(entries: Path) -> None:
    judge = load_judge(str(entries / "raters"), tiny_base())
    card = bank.read_record(entries / "raters").card
    assert card is not None
    sigma = card["attributes"]["early"]["rmse"]
    row = RATED[0].with_attributes({"early": 4})
    (found,) = judge([row], ["aa"])
    (outputs,) = outputs_that_fit(
        bank.load(entries / "raters", tiny_base()), [Row(row.messages, "aa", 0)], "attributes"
    )
    assert outputs is not None
    normal = torch.distributions.Normal(outputs[0], sigma)
    assert found == pytest.approx(float(normal.log_prob(torch.tensor(4.0))), abs=1e-4)
    bare = Row(({"role": "user", "content": "x"},), None, 1)
    assert judge([bare], ["a"]) == ["its prompt asks for no attributes"]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns_and_goes_on(name: str, entries: Path, tmp_path: Path) -> None:
    method = METHODS[name]
    settings = TrainSettings(lr=method.learning_rate, batch_size=2, epochs=2, checkpoint_every=1)
    start = entries / "steered"
    whole = train(tiny_base(), method, of(entries), PROMPTS, settings=settings, start=start, out=tmp_path / "whole")

    def stop(metrics: StepMetrics) -> None:
        if metrics.step == 5:
            raise KeyError

    with pytest.raises(KeyError):
        train(tiny_base(), method, of(entries), PROMPTS, settings=settings, start=start, out=tmp_path / "again",
              on_step=stop)  # fmt: skip
    again = train(tiny_base(), method, of(entries), PROMPTS, settings=settings, start=start, out=tmp_path / "again")
    assert again.result.losses == whole.result.losses and all(loss >= 0 for loss in whole.result.losses)
    lines = [json.loads(line) for line in (tmp_path / "again/metrics.jsonl").read_text().splitlines()]
    assert 1 <= lines[-1]["effective_samples"] <= 4
    bank.verify(tmp_path / "again", tiny_base())


def next_token(customized: Customized, messages: tuple[Message, ...]) -> torch.Tensor:
    """[tokens] exact log-probabilities of an answer's first token; the customization acts."""
    encoder = Encoder(customized.base.tokenizer, customized.template, 512)
    ids = torch.tensor([encoder.prompt(messages).ids])
    hidden = customized.base.hidden(ids, torch.ones_like(ids))[0, -1:]
    return customized.base.vocabulary_head(hidden)[0].float().log_softmax(0)


def test_a_policy_comes_near_to_bayes_rule(entries: Path) -> None:
    """Answers of one token, so that P(y | a, x) is known exactly: likelihood times prior over all tokens."""
    base = tiny_base()
    judge, prior = load_judge(str(entries / "raters"), base), bank.load(entries / "plain", base)
    rows = [Row(({"role": "user", "content": p["prompt"], "attributes": {"early": p["early"]}},), None, i)
            for i, p in enumerate(PROMPTS)]  # fmt: skip
    texts = [base.tokenizer.decode([i], skip_special_tokens=True) for i in range(base.embedding.num_embeddings)]
    scores = [torch.tensor([float(score) for score in judge([row] * len(texts), texts)]) for row in rows]
    with torch.no_grad(), prior.active():
        best = [(own + next_token(prior, row.messages)).log_softmax(0) for own, row in zip(scores, rows, strict=True)]

    def distance(policy: Customized) -> torch.Tensor:
        """Mean KL(best ‖ policy), in nats."""
        each = [(b.exp() * (b - next_token(policy, row.messages))).sum() for b, row in zip(best, rows, strict=True)]
        return torch.stack(each).mean()

    def exact(policy: Customized) -> float:
        with torch.no_grad(), policy.active():
            return float(distance(policy))

    method, steered = LoRA(rank=8, targets=("all-linear",)), bank.load(entries / "steered", base)
    wanted = of(entries, rounds=30, n=64, max_new_tokens=1, prior=str(entries / "plain"))
    settings = TrainSettings(lr=1e-2, batch_size=4, epochs=2)
    trained = train(base, method, wanted, PROMPTS, settings=settings, start=entries / "steered").customized
    # As near as the method can come: the same LoRA by the exact gradient of that distance.
    nearest = customize(base, method, steered.template, seed=0, start=steered.customization)
    optimizer = torch.optim.Adam(nearest.customization.parameters(), lr=1e-2)
    for _ in range(60):
        with nearest.active():
            optimizer.zero_grad()
            distance(nearest).backward()
            optimizer.step()
    floor = exact(nearest)
    assert exact(trained) - floor < 0.2 * (exact(steered) - floor), (exact(steered), exact(trained), floor)


def test_what_cannot_be_trained_so_is_refused(entries: Path, tmp_path: Path) -> None:
    small = TrainSettings(batch_size=4)
    with pytest.raises(TrainingError, match="--steer-columns"):
        train(tiny_base(), LoRA(), of(entries), PROMPTS)
    with pytest.raises(DataError, match="Unknown attribute 'tone'"):
        train(tiny_base(), LoRA(), of(entries, steer_columns=("tone",)), [{"prompt": "a", "tone": 1}],
              start=entries / "steered")  # fmt: skip
    train(tiny_base(), LoRA(), Attributes(columns=("early",)), RATED, out=tmp_path / "new",
          settings=TrainSettings(max_steps=1))  # fmt: skip
    with pytest.raises(BankError, match="was never measured"):
        train(tiny_base(), LoRA(), of(tmp_path, reward=str(tmp_path / "new")), PROMPTS, start=entries / "steered",
              settings=small)  # fmt: skip
    train(tiny_base(), LoRA(), Reward(), PAIRS, out=tmp_path / "liked", settings=TrainSettings(max_steps=1))
    with pytest.raises(TrainingError, match="a prior answers without them"):
        train(tiny_base(), LoRA(), of(entries, prior=str(entries / "steered")), PROMPTS, start=entries / "steered",
              settings=small)  # fmt: skip
    wide = SFT(steer_columns=("early",), steer_high=9)
    train(tiny_base(), LoRA(), wide, RATED, settings=TrainSettings(max_steps=1), out=tmp_path / "wide")
    with pytest.raises(TrainingError, match="from 0 to 4, and the policy from 0 to 9"):
        train(tiny_base(), LoRA(), of(entries), PROMPTS, start=tmp_path / "wide", settings=small)
    liked = of(entries, reward=str(tmp_path / "liked"))
    with pytest.raises(TrainingError, match="attribute model"):
        train(tiny_base(), LoRA(), liked, PROMPTS, start=entries / "steered", settings=small)
