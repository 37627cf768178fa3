"""Log-probabilities under the reference: the untouched base, or the base with the frozen customization that training
starts from. They never change, so they are computed once and kept.

They lie in the cache folder under a sum over everything they depend on: the base's weights, the precision and kind of
device, the customization's tensors and settings, and the token ids of the rows (which hold the data, the template and
every cut).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from tunescope import storage
from tunescope.base import Base
from tunescope.base.device import dtype_name
from tunescope.data.batching import collate_pairs
from tunescope.data.encoding import EncodedPreference
from tunescope.data.template import Template
from tunescope.methods import Customization, Customized, ZeroShot
from tunescope.methods.fingerprint import hash_customization
from tunescope.objectives.forward import in_passes, packed_hidden
from tunescope.objectives.preference import completion_logprobs
from tunescope.team import this_team
from tunescope.tensor_files import read_tensors, write_tensors


def with_reference(
    base: Base, examples: Sequence[EncodedPreference], reference: Customization | None = None
) -> list[EncodedPreference]:
    """The pairs and rankings with their completions' log-probabilities under the reference, each computed once.

    Virtual tokens that the reference does not have are left out of the prompts, since they belong to what is trained;
    the method's own text is not.

    Args:
        base: frozen.
        examples: with prompts whose virtual tokens are the reference's first and then others.
        reference: acts on the base; None for the base itself.

    Raises:
        BaseInUseError: a customization acts on the base already.
    """
    first = 0 if reference is None else -reference.template.virtual_tokens
    plain = [replace(example, prompt=[token for token in example.prompt if token >= first]) for example in examples]
    path = _place(base, plain, reference)
    with base.use.untouched("The reference") if reference is None else reference.applied(base):
        found, team = _kept(path, sum(len(example.completions) for example in plain)), this_team()
        if team.any(found is None):
            found = _computed(base, plain)
            if team.writes:
                write_tensors(path, {"logprobs": found})
    assert found is not None
    each = found.split([len(example.completions) for example in examples])
    return [
        replace(example, reference=tuple(logprobs.tolist())) for example, logprobs in zip(examples, each, strict=True)
    ]


def _place(base: Base, examples: Sequence[EncodedPreference], reference: Customization | None) -> Path:
    digest = hashlib.sha256(f"{base.fingerprint.computing}|{dtype_name(base.dtype)}|{base.device.type}".encode())
    if reference is not None:
        digest.update(hash_customization(reference).encode())
    for example in examples:
        digest.update(json.dumps([example.prompt, *example.completions]).encode())
    return storage.cache_folder() / "references" / f"{digest.hexdigest()}.safetensors"


def _kept(path: Path, count: int) -> torch.Tensor | None:
    """What was kept, [completions]; None where nothing usable was: the cache was deleted, or the checksum differs."""
    try:
        found = read_tensors(path)[0]["logprobs"]
    except (ValueError, KeyError):
        return None
    return found if found.shape == (count,) else None


@torch.no_grad()
def _computed(base: Base, examples: Sequence[EncodedPreference]) -> torch.Tensor:
    def of_pass(indices: Sequence[int]) -> list[list[float]]:
        batch = collate_pairs([examples[i] for i in indices]).to(base.device)
        logprobs = completion_logprobs(base, batch, packed_hidden(base, batch.packed)).cpu()
        return [own.tolist() for own in logprobs.split(batch.sizes)]

    return torch.tensor([value for own in in_passes([len(each) for each in examples], of_pass) for value in own])


def untouched(customized: Customized) -> Customized:
    """The base as it answers without the customization, under the same chat style."""
    kept = customized.template
    template = Template(style=kept.style, stop=kept.stop)
    return Customized(customized.origin, Customization(ZeroShot(), template, {}), customized.origin)
