"""Whole texts: transcripts such as ``Human: … Assistant: …``, and where two texts with a common prefix part."""

from __future__ import annotations

import re

from tunescope.data.messages import Message

_SPEAKERS = {"system": "system", "human": "user", "user": "user", "assistant": "assistant"}
_NAMES = "System|Human|User|Assistant"
_BLANK_LINE = re.compile(rf"(?:\A\s*|\n[ \t]*\n\s*)({_NAMES}):", re.ASCII)
_LINE = re.compile(rf"(?:\A\s*|\n\s*)({_NAMES}):", re.ASCII)
# What a text may be cut behind: a line end, a sentence's end, a speaker's name at the start of either.
_BORDER = re.compile(r"\n|[.!?…][\"'”’)\]]*[ \t]|(?:\A|(?<=\n)|(?<=[.!?…][ \t]))[A-Z][\w ]{0,30}:[ \t]|(?<=[。！？])")


def transcript(text: str) -> list[Message] | None:
    """The turns of a transcript; None for a text that is none.

    A transcript begins with a speaker (Human, User, Assistant or System, and a colon). The other turns begin with one
    after a blank line; where no turn does, on a line of its own. The last turn may be empty: a prompt that ends in
    ``Assistant:``.
    """
    starts = list(_BLANK_LINE.finditer(text))
    if len(starts) < 2:
        starts = list(_LINE.finditer(text))
    if len(starts) < 2 or starts[0].start() > 0:
        return None
    ends = [*(start.start() for start in starts[1:]), len(text)]
    return [
        {"role": _SPEAKERS[start[1].lower()], "content": text[start.end() : end].strip()}
        for start, end in zip(starts, ends, strict=True)
    ]


def common_border(one: str, other: str) -> int:
    """How many characters two texts have in common, back to the last end of a line, a sentence or a speaker's name; 0
    where they share none.

    Not to any space: a prompt that ended in the middle of a sentence would be half a sentence in a chat turn, and its
    answer the other half.
    """
    shared = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    ends = [match.end() for match in _BORDER.finditer(one[:shared])]
    return ends[-1] if ends else 0
