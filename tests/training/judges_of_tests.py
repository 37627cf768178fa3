"""Rewards that the tests of policy optimization name as ``module:function``."""


def early(prompt: object, completion: str) -> float:
    """1 where the completion begins with an early letter (or with nothing)."""
    return float(completion[:1] < "n")


def constant(prompt: object, completion: str) -> float:
    return 0.5


def broken(prompt: object, completion: str) -> float:
    return float("nan")


def late(prompt: object, completion: str) -> float:
    """The opposite of ``early``."""
    return -early(prompt, completion)
