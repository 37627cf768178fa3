"""Losses over pairs as pure functions, a number a pair; the mean belongs to whoever knows the count of the whole step.
One is over a whole ranking: ``plackett_luce_loss``.

What a *score* of a completion y of a prompt x is depends on the objective: log π(y|x) - log π_ref(y|x) where there is a
reference, log π(y|x) / |y| where there is none, the head's output for a reward model. Most losses see only the
*difference*, the score of the chosen completion minus that of the rejected one. All shapes are [pairs], in float32,
where nothing else is said.
"""

from __future__ import annotations

import torch
from torch.nn import functional

# A mean log-probability this near to 0 is a probability of one in float32, and its odds would be infinite.
_CERTAIN = -1e-6


def sigmoid_loss(difference: torch.Tensor, beta: float, label_smoothing: float = 0.0) -> torch.Tensor:
    """DPO: -log σ(β d) (Rafailov et al. 2023, arXiv:2305.18290, eq. 7).

    With ``label_smoothing`` ε the conservative form for labels of which a share ε is wrong (Mitchell 2023, "A note on
    DPO with noisy preferences"): -(1 - ε) log σ(β d) - ε log σ(-β d).
    """
    kept, flipped = functional.logsigmoid(beta * difference), functional.logsigmoid(-beta * difference)
    return -(1 - label_smoothing) * kept - label_smoothing * flipped


def robust_loss(difference: torch.Tensor, beta: float, label_smoothing: float) -> torch.Tensor:
    """[-(1 - ε) log σ(β d) + ε log σ(-β d)] / (1 - 2ε): unbiased where a share ε < 1/2 of the labels is flipped
    (Chowdhury et al. 2024, arXiv:2403.00409).
    """
    kept, flipped = functional.logsigmoid(beta * difference), functional.logsigmoid(-beta * difference)
    return (-(1 - label_smoothing) * kept + label_smoothing * flipped) / (1 - 2 * label_smoothing)


def hinge_loss(difference: torch.Tensor, beta: float) -> torch.Tensor:
    """max(0, 1 - β d): SLiC's rank loss (Zhao et al. 2023, arXiv:2305.10425) on log-ratios (Liu et al. 2024,
    arXiv:2309.06657).
    """
    return functional.relu(1 - beta * difference)


def ipo_loss(difference: torch.Tensor, beta: float) -> torch.Tensor:
    """(d - 1/(2β))² (Azar et al. 2023, arXiv:2310.12036, eq. 17, where β is τ)."""
    return (difference - 1 / (2 * beta)).square()


def rpo_loss(difference: torch.Tensor, margins: torch.Tensor, beta: float, reward_scale: float) -> torch.Tensor:
    """Reward-aware preference optimization: the given margin m is not only a sign but how far apart the two should be.

    D(β d ‖ η m), with D(a ‖ b) = σ(b) log(σ(b)/σ(a)) + σ(-b) log(σ(-b)/σ(-a)), the distance between the two Bernoulli
    distributions, zero where β d = η m (Nemotron-4 340B technical report, arXiv:2406.11704, section 3.3.2; NeMo-Aligner
    calls it ``rpo_bwd_kl`` and η ``gt_reward_scale``).
    """
    given, implied = reward_scale * margins, beta * difference
    likely, unlikely = functional.logsigmoid(given), functional.logsigmoid(-given)
    return likely.exp() * (likely - functional.logsigmoid(implied)) + unlikely.exp() * (
        unlikely - functional.logsigmoid(-implied)
    )


def simpo_loss(difference: torch.Tensor, beta: float, gamma: float) -> torch.Tensor:
    """-log σ(β d - γ) on mean log-probabilities a token (Meng et al. 2024, arXiv:2405.14734, eq. 6)."""
    return -functional.logsigmoid(beta * difference - gamma)


def odds_ratio_loss(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
    """ORPO's -log σ(log odds(y_w) - log odds(y_l)) with odds = P / (1 - P) (Hong et al. 2024, arXiv:2403.07691, eq. 7).

    Args:
        chosen: [pairs], mean log-probability a token; P is its exponential.
        rejected: [pairs], the same of the rejected completion.
    """
    return -functional.logsigmoid(_log_odds(chosen) - _log_odds(rejected))


def bradley_terry_loss(difference: torch.Tensor, margins: torch.Tensor | float = 0.0) -> torch.Tensor:
    """-log σ(d - m): the chosen completion should win, by m where a margin is given (Bradley and Terry 1952; Ouyang et
    al. 2022, arXiv:2203.02155, eq. 1; with margins Touvron et al. 2023, arXiv:2307.09288, eq. 2).
    """
    return -functional.logsigmoid(difference - margins)


def scaled_bradley_terry_loss(difference: torch.Tensor, margins: torch.Tensor) -> torch.Tensor:
    """-m log σ(d): a pair counts as much as it is clear (Wang et al. 2024, HelpSteer2-Preference, arXiv:2410.01257)."""
    return -margins * functional.logsigmoid(difference)


def plackett_luce_loss(scores: torch.Tensor, ranks: torch.Tensor) -> torch.Tensor:
    """-Σ_i log( exp(s_i) / Σ_j exp(s_j) ), j over all of rank_i and worse: the ranking drawn from the best on, each by
    a softmax over what is left (Plackett 1975; as a loss ListMLE: Xia et al. 2008). A scalar.

    Of two completions it is ``bradley_terry_loss``. It is Cox's partial likelihood with ranks for times, and ties are
    treated as Breslow (1974, Biometrics 30) does there: each of the tied is drawn from all of them and what is worse.
    That is least where their scores are equal: a tie says that they are equally good.

    Args:
        scores: [completions] of one prompt.
        ranks: [completions], 1 is the best.
    """
    left = ranks[None, :] >= ranks[:, None]
    return (scores.expand_as(left).masked_fill(~left, -torch.inf).logsumexp(dim=1) - scores).sum()


def centering_loss(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
    """(r_w + r_l)²: differences leave the rewards' level open; this keeps it near zero (Eisenstein et al. 2023,
    arXiv:2312.09244).
    """
    return (chosen + rejected).square()


def _log_odds(logprob: torch.Tensor) -> torch.Tensor:
    logprob = logprob.clamp(max=_CERTAIN)
    return logprob - torch.log(-torch.expm1(logprob))
