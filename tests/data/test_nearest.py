"""Worked examples chosen anew for each prompt: those whose texts are nearest to its own."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.data.test_template import encode, encoder, row, text
from tests.tiny import tiny_base

import tunescope as ts
from tunescope import bank
from tunescope.data.nearest import Nearest
from tunescope.data.template import Shot
from tunescope.inference import Engine, Request, Sampling
from tunescope.methods import FewShot

POOL = tuple(
    Shot(prompt=f"the {what} of day {number}", completion=kind)
    for number, (what, kind) in enumerate(
        [("sun", "warm"), ("rain", "wet"), ("sun and wind", "warm"), ("snow", "cold")]
    )
)
words = st.lists(st.sampled_from(["sun", "rain", "snow", "day", "day!", "wind"]), min_size=1, max_size=6).map(" ".join)


def _similarity(pool: list[str], text: str) -> list[float]:
    """The slow, obvious version: cosine of (1 + log count) · (1 + log((1 + texts) / (1 + texts with the word)))."""

    def split(each: str) -> Counter[str]:
        return Counter(each.lower().replace("!", " ! ").split())

    known = [split(each) for each in pool]
    idf = {
        word: 1 + math.log((1 + len(pool)) / (1 + sum(word in each for each in known))) for word in set().union(*known)
    }

    def vector(counted: Counter[str]) -> dict[str, float]:
        found = {word: (1 + math.log(count)) * idf[word] for word, count in counted.items() if word in idf}
        size = math.sqrt(sum(value**2 for value in found.values())) or 1.0
        return {word: value / size for word, value in found.items()}

    own = vector(split(text))
    return [sum(own.get(word, 0.0) * value for word, value in vector(each).items()) for each in known]


@given(st.lists(words, min_size=1, max_size=8, unique=True), words, st.integers(1, 8))
def test_the_nearest_come_last_and_its_own_text_never(pool: list[str], text: str, count: int) -> None:
    near = _similarity(pool, text)
    found = Nearest([Shot(prompt=each, completion=str(i)) for i, each in enumerate(pool)]).of(text, count)
    places = [int(shot.completion) for shot in found]
    others = [i for i in range(len(pool)) if pool[i] != text]
    assert len(places) == min(count, len(others)) and set(places) <= set(others)
    chosen = [near[i] for i in reversed(places)]
    assert chosen == pytest.approx(sorted((near[i] for i in others), reverse=True)[:count])


@pytest.mark.parametrize("prompts", [[], [" "], ["", "\n"]])
def test_a_pool_without_a_word_is_no_error(prompts: list[str]) -> None:
    pool = [Shot(prompt=each, completion="yes") for each in prompts]
    assert Nearest(pool).of("a text", 1) == pool[:1]
    assert Nearest([*pool, POOL[0]]).of("the sun", 9)[-1] == POOL[0]


def test_each_prompt_is_shown_its_own_examples() -> None:
    made = encoder(style="plain", shots=POOL, nearest=2)
    shown = text(made, encode(made, row("the snow of day 9")).prompt)
    assert shown.endswith("the snow of day 3 cold\n\nthe snow of day 9") and shown.count("\n\n") == 2
    assert "the sun and wind of day 2 warm" in text(made, encode(made, row("wind of day 7")).prompt)
    assert "the snow of day 3 cold" not in text(made, encode(made, row("the snow of day 3")).prompt)
    assert text(encoder(style="plain", shots=POOL), encode(encoder(style="plain", shots=POOL), row("x")).prompt).count(
        "\n\n"
    ) == len(POOL)


@pytest.mark.parametrize("style", ["plain", "chat"])
def test_a_text_that_is_cut_is_shown_what_is_near_the_whole(style: str) -> None:
    long = "the sun " + "day " * 40 + "snow " * 4 + "day " * 40 + "end"
    pool = (*POOL, Shot(prompt="day day end " * 9, completion="longer"))
    whole = encoder(style=style, shots=pool, nearest=1)
    assert "the snow of day 3" in text(whole, encode(whole, row(long)).prompt)
    made = encoder(style=style, shots=pool, nearest=1, max_length=60)
    found = encode(made, row(long))
    assert found.dropped and made.truncated == 1 and not made.dropped_rows
    assert len(found.prompt) + len(found.completion) <= 60 + found.extra
    shown = text(made, found.prompt)
    assert "the snow of day 3" in shown and "snow snow" not in shown
    assert made.candidates(found.messages, ["yes"])[0] == found.prompt
    assert "question" not in shown


@pytest.mark.parametrize("style", ["plain", "chat"])
def test_what_is_served_is_what_is_measured(style: str, tmp_path: Path) -> None:
    rows = [{"text": f"the {('sun', 'rain')[i % 2]} of day {i}", "label": ("warm", "wet")[i % 2]} for i in range(12)]
    made = ts.train(
        tiny_base(), FewShot(shots=2, choice="nearest", pool=6), data=rows, pattern="{text} kind: {label}", style=style,
        out=tmp_path / "bank" / "near",
    ).customized  # fmt: skip
    assert (len(made.template.shots), made.template.nearest) == (6, 2)
    kept = bank.load(tmp_path / "bank" / "near", tiny_base())
    assert kept.template == made.template
    engine = Engine(tiny_base())
    engine.load("near", kept)
    for asked in ("the rain of day 40", "the sun of day 41", "0", "~"):
        alone = engine.generate([Request(asked, "near", Sampling(max_new_tokens=4))])[0]
        tokens = ts.data.encoding.Encoder(kept.base.tokenizer, kept.template, 512).prompt(
            [{"role": "user", "content": asked}]
        )
        assert alone.prompt_tokens == len(tokens.ids)
    both = engine.generate([Request(each, "near", Sampling(max_new_tokens=4)) for each in ("the rain of day 40", "~")])
    assert (
        both[0].tokens == engine.generate([Request("the rain of day 40", "near", Sampling(max_new_tokens=4))])[0].tokens
    )


def test_what_a_prompt_costs_is_said() -> None:
    assert FewShot(shots=4, choice="balanced").rows_read == 1
    assert FewShot(shots=4).rows_read == 5
