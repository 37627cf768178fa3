"""Several customizations on one base in one pass: the rows of each are as under it alone."""

from __future__ import annotations

import pytest
import torch
from tests.inference.mix import METHODS, customized, methods_of
from tests.tiny import ARCHITECTURES, tiny_base
from torch.nn import functional

from tunescope.base import Base
from tunescope.errors import BaseInUseError
from tunescope.methods import Customization, Customized
from tunescope.methods.acting import Hooks, Share

TRAINED = [name for name in METHODS if customized(name).customization.effects]


def texts(made: Customized, rows: int, length: int) -> torch.Tensor:
    """[rows, virtual tokens + length] token ids, of their own for each size."""
    ids = torch.randint(0, 256, (rows, length), generator=torch.Generator().manual_seed(rows * 100 + length))
    virtual = torch.tensor(made.template.virtual_ids, dtype=torch.long)
    return torch.cat([virtual.expand(rows, -1), ids], dim=1)


def together(
    base: Base, hooks: Hooks, members: list[tuple[Customized, torch.Tensor]]
) -> dict[Customization, torch.Tensor]:
    """Each one's hidden states [rows, length, hidden] from one pass of all."""
    shares: dict[Customization, Share] = {}
    begin, longest = 0, max(ids.shape[1] for _, ids in members)
    for made, ids in members:
        shares[made.customization] = Share(slice(begin, begin + len(ids)), ids.shape[1])
        begin += len(ids)
    joined = torch.cat([functional.pad(ids, (0, longest - ids.shape[1])) for _, ids in members])
    with hooks.together(shares):
        hidden = base.hidden(joined, None)
    return {owner: hidden[share.rows, : share.length] for owner, share in shares.items()}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_rows_are_as_under_their_own_alone(arch: str) -> None:
    base, names = tiny_base(arch), [name for name in methods_of(arch) if name in TRAINED]
    members = []
    for number, name in enumerate(names):
        made = customized(name, arch)
        members.append((made, texts(made, rows=1 + number % 3, length=5 + number % 4)))
    with torch.no_grad(), Hooks(base, [made.customization for made, _ in members]) as hooks:
        found = together(base, hooks, members)
        for made, ids in members:
            with made.active():
                alone = base.hidden(ids, None)
            torch.testing.assert_close(found[made.customization], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", TRAINED)
def test_gradients_stay_with_their_own(name: str) -> None:
    """The loss of one customization gives gradients to it alone, those that it has in a pass of its own."""
    base, made = tiny_base("llama"), customized(name)
    other = customized("lora-all-linear" if name == "lora" else "lora")
    ids = texts(made, 2, 6)
    for each in (made, other):
        each.customization.requires_grad_(True).zero_grad()
    try:
        with Hooks(base, [made.customization, other.customization]) as hooks:
            found = together(base, hooks, [(other, texts(other, 1, 9)), (made, ids)])
            found[made.customization].square().mean().backward()
        assert not any(p.grad is not None and p.grad.any() for p in other.customization.parameters())
        grads = [p.grad for p in made.customization.parameters()]
        made.customization.zero_grad()
        with made.active():
            base.hidden(ids, None).square().mean().backward()
        for own, parameter in zip(grads, made.customization.parameters(), strict=True):
            torch.testing.assert_close(own, parameter.grad, atol=1e-5, rtol=1e-4)
    finally:
        for each in (made, other):
            each.customization.requires_grad_(False)


def test_together_they_hold_the_base() -> None:
    base, one, two = tiny_base("llama"), customized("lora"), customized("ia3")
    shares = {one.customization: Share(slice(0, 1), 4), two.customization: Share(slice(1, 2), 4)}
    with Hooks(base, list(shares)) as hooks, hooks.together(shares):
        with pytest.raises(BaseInUseError, match=r"ia3 customization acts on .* already"), two.active():
            pass
        said = pytest.raises(BaseInUseError, match=r"adapter cannot act on .*, where lora beside ia3 acts")
        with said, customized("adapter").active():
            pass
    with two.active():
        pass
