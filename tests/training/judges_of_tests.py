"""Rewards that the tests of policy optimization name as ``module:function``."""


def early(prompt: object, completion: str) -> float:
    """1 where the completion begins with an early letter (or with nothing)."""
    return float(completion[:1] < "n")


def constant(prompt: object, completion: str) -> float:
    return 0.5


def broken(prompt: object, completion: str) -> float:
    return float("nan")


CALLS: list[int] = []


def together(prompts: list[str], completions: list[str], answers: list[str]) -> list[float]:
    """How much of a completion's beginning is the known answer's; keeps how many it was asked for."""
    CALLS.append(len(completions))
    return [float(text[:1] == answer[:1]) for text, answer in zip(completions, answers, strict=True)]


def fails_on_long(prompts: list[str], completions: list[str]) -> list[float]:
    """Raises where a prompt is a long one."""
    if any(len(prompt) > 6 for prompt in prompts):
        raise ValueError("too long")
    return [float(len(text)) for text in completions]


def late(prompt: object, completion: str) -> float:
    """The opposite of ``early``."""
    return -early(prompt, completion)
