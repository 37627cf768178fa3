"""Rows as tokens: what is trained, what is cut, and that service sees what training saw."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.tiny import CONTEXT, tiny_tokenizer

from tunescope.data.encoding import Encoded, Encoder
from tunescope.data.rows import Message, Row
from tunescope.data.template import Shot, Template, default_template
from tunescope.errors import DataError, TunescopeError, UnknownNameError
from tunescope.settings import Settings

END, TURN_BEGIN, TURN_END, PAD = 256, 257, 258, 259  # the tiny tokenizer's special tokens

tokenizer_of = functools.cache(tiny_tokenizer)


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def system(text: str) -> Message:
    return {"role": "system", "content": text}


def row(prompt: str, completion: str | None = "yes", number: int = 1) -> Row:
    return Row((user(prompt),), completion, number)


def encoder(
    *,
    style: str = "chat",
    context: int = CONTEXT,
    max_length: int | None = None,
    tokenizer: Any = None,
    **template: Any,
) -> Encoder:
    tokenizer = tokenizer or tokenizer_of(chat=style == "chat")
    made = default_template(tokenizer, style=style).model_copy(update=template)
    return Encoder(tokenizer, made, context, max_length)


def encode(made: Encoder, row: Row) -> Encoded:
    found = made.encode(row)
    assert found is not None
    return found


def text(made: Encoder, tokens: list[int]) -> str:
    return made.tokenizer.decode([token for token in tokens if token >= 0])


# Styles and stop tokens


def test_chat_is_the_default_of_tokenizers_that_have_a_template() -> None:
    assert default_template(tokenizer_of()).style == "chat"
    assert default_template(tokenizer_of(chat=False)).style == "plain"
    assert default_template(tokenizer_of(), style="plain").style == "plain"
    with pytest.raises(DataError, match="no chat template: use --style plain"):
        default_template(tokenizer_of(chat=False), style="chat")


def test_unknown_style_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown style 'chatt'\. Did you mean chat"):
        default_template(tokenizer_of(), style="chatt")


def test_stop_tokens() -> None:
    """The end of the turn is trained; the end of the text stops too."""
    assert default_template(tokenizer_of()).stop == (TURN_END, END)
    assert default_template(tokenizer_of(), style="plain").stop == (END,)


def test_a_tokenizer_without_any_stop_is_refused() -> None:
    tokenizer = tiny_tokenizer(chat=False)
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="no end-of-text token"):
        default_template(tokenizer)


def test_a_broken_chat_template_is_an_error_of_the_base() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for message in %}"
    with pytest.raises(DataError, match="chat template is broken"):
        default_template(tokenizer)


def test_what_a_chat_template_refuses() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        + tokenizer.chat_template
    )
    made = encoder(tokenizer=tokenizer, system="Be brief.")
    with pytest.raises(DataError, match=r"refuses these messages: System role not supported"):
        made.encode(row("a"))


@pytest.mark.parametrize("style", ["chat", "plain"])
def test_the_completion_ends_in_the_stop_token(style: str) -> None:
    made = encoder(style=style)
    found = encode(made, row("a"))
    assert found.completion[-1] == made.template.stop[0]
    assert text(made, found.completion[:-1]).strip() == "yes"
    assert len(found) == len(found.prompt) + len(found.completion)


def test_chat_tokens() -> None:
    made = encoder()
    found = encode(made, row("hi"))
    assert text(made, found.prompt) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert text(made, found.completion) == "yes<|im_end|>"
    assert (found.extra, found.dropped, found.number, found.earlier) == (0, 0, 1, ())


@pytest.mark.parametrize(
    ("prompt", "whole"),
    [
        ("Q: hi\nA:", "Q: hi\nA: yes<|endoftext|>"),
        ("Q: hi\nA: ", "Q: hi\nA: yes<|endoftext|>"),
        ("Q: hi\nA:\n", "Q: hi\nA:\nyes<|endoftext|>"),
    ],
)
def test_plain_text_has_one_space_or_a_line_before_the_completion(prompt: str, whole: str) -> None:
    """And the space belongs to the completion: byte-pair tokenizers have tokens for " yes"."""
    made = encoder(style="plain")
    for completion in ("yes", " yes ", "yes\t"):
        found = encode(made, row(prompt, completion))
        assert text(made, found.prompt + found.completion) == whole
        assert not text(made, found.prompt).endswith(" ")


@pytest.mark.parametrize("style", ["chat", "plain"])
def test_served_as_trained(style: str) -> None:
    """At inference the prompt is tokenized alone, by ``prompt``; those are the tokens that were trained after."""
    made = encoder(style=style, system="Be brief.", shots=(Shot(prompt="1", completion="one"),))
    one = row("Some text: ")
    assert encode(made, one).prompt == made.prompt(one.messages).ids
    assert encode(made, Row(one.messages, None, 1)) == Encoded(
        made.prompt(one.messages).ids, [], encode(made, one).extra, 0, 1
    )
    assert encode(made, one).completion == made.candidates(one.messages, ["yes"])[1][0]


# Conversations


def test_every_assistant_turn_is_trained_with_its_stop() -> None:
    made = encoder()
    found = encode(made, Row((system("s"), user("a"), assistant("b"), user("c"), assistant("dd"), user("e")), "f", 1))
    assert text(made, found.prompt) == (
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
        "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\ndd<|im_end|>\n"
        "<|im_start|>user\ne<|im_end|>\n<|im_start|>assistant\n"
    )
    assert [text(made, found.prompt[a:b]) for a, b in found.earlier] == ["b<|im_end|>", "dd<|im_end|>"]
    assert text(made, found.completion) == "f<|im_end|>"


def test_each_turn_is_trained_after_what_precedes_it_in_service() -> None:
    made = encoder(system="Be brief.", shots=(Shot(prompt="1", completion="one"),))
    messages = (user("a"), assistant("b"), user("c"), assistant("d"), user("e"))
    found = encode(made, Row(messages, "f", 1))
    for (begin, end), place in zip(found.earlier, (1, 3), strict=True):
        assert found.prompt[:begin] == made.prompt(messages[:place]).ids
        assert found.prompt[begin:end] == made.candidates(messages[:place], [messages[place]["content"]])[1][0]


def test_shots_are_not_trained() -> None:
    found = encode(encoder(shots=(Shot(prompt="1", completion="one"),)), row("a"))
    assert found.earlier == ()


def test_plain_conversations_train_the_last_turn() -> None:
    made = encoder(style="plain")
    found = encode(made, Row((user("a:"), assistant(" b"), user("c:")), "d", 1))
    assert text(made, found.prompt + found.completion) == "a: b\n\nc: d<|endoftext|>"
    assert found.earlier == ()


def test_a_turn_that_the_template_rewrites_is_not_trained() -> None:
    """Qwen3 leaves the reasoning of earlier turns out, so they do not stand there as the model would write them."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
        "{% if message['role'] == 'user' and not loop.last %}(older) {% endif %}{{ message['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    made = encoder(tokenizer=tokenizer)
    messages = (user("a"), assistant("b"), user("c"))
    found = encode(made, Row(messages, "d", 1))
    assert found.earlier == ()
    assert found.prompt == made.prompt(messages).ids


def test_only_the_turns_that_are_rewritten_are_left_out() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
        "{{ message['content'].split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    made = encoder(tokenizer=tokenizer)
    found = encode(made, Row((user("a"), assistant("hm</think>b"), user("c"), assistant("d"), user("e")), "f", 1))
    # What stands in the conversation is trained, not what was cut from it.
    assert [text(made, found.prompt[a:b]) for a, b in found.earlier] == ["b<|im_end|>", "d<|im_end|>"]


# What the template adds


def test_system_and_shots_frame_a_chat() -> None:
    made = encoder(system="Be brief.", shots=(Shot(prompt="1", completion="one"), Shot(prompt="2", completion="two")))
    found = encode(made, Row((system("Own."), user("3")), "three", 1))
    assert text(made, found.prompt) == (
        "<|im_start|>system\nBe brief.\n\nOwn.<|im_end|>\n"
        "<|im_start|>user\n1<|im_end|>\n<|im_start|>assistant\none<|im_end|>\n"
        "<|im_start|>user\n2<|im_end|>\n<|im_start|>assistant\ntwo<|im_end|>\n"
        "<|im_start|>user\n3<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(("end", "glue"), [(":", ": "), (": ", ": "), (":\n", ":\n")])
def test_a_plain_shot_reads_as_the_row_does(end: str, glue: str) -> None:
    made = encoder(style="plain", system="Name it.", shots=(Shot(prompt=f"1{end}", completion=" one"),))
    found = encode(made, row(f"2{end}", "two"))
    assert text(made, found.prompt + found.completion) == f"Name it.\n\n1{glue}one\n\n2{glue}two<|endoftext|>"


@pytest.mark.parametrize("style", ["chat", "plain"])
def test_extra_tokens(style: str) -> None:
    bare = encode(encoder(style=style), row("abc:"))
    shots = (Shot(prompt="1:", completion="one"),)
    made = encoder(style=style, system="Be brief.", shots=shots, virtual_tokens=3)
    found = encode(made, row("abc:"))
    assert found.extra == len(found.prompt) - len(bare.prompt) > 3
    assert bare.extra == 0
    # A system message that the row brings itself is not extra.
    assert encode(encoder(style=style), Row((system("s"), user("a")), "b", 1)).extra == 0


@pytest.mark.parametrize("style", ["chat", "plain"])
def test_virtual_tokens_are_negative_and_come_first(style: str) -> None:
    found = encode(encoder(style=style, virtual_tokens=3), row("abc"))
    assert found.prompt == [-1, -2, -3, *encode(encoder(style=style), row("abc")).prompt]
    assert found.extra == 3
    assert all(token >= 0 for token in found.completion)


def test_virtual_tokens_before_a_conversation() -> None:
    messages = (user("a"), assistant("b"), user("c"))
    found = encode(encoder(virtual_tokens=2), Row(messages, "d", 1))
    bare = encode(encoder(), Row(messages, "d", 1))
    assert found.prompt == [-1, -2, *bare.prompt]
    assert found.earlier == tuple((a + 2, b + 2) for a, b in bare.earlier)


# The beginning of the text


class _Marked:
    """The tiny tokenizer as one that begins texts with a token, and may end them with one, as Llama's and T5's do."""

    def __init__(self, begin: list[int], end: list[int], **kind: Any) -> None:
        self._inner, self._begin, self._end = tiny_tokenizer(**kind), begin, end

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        ids = self._inner(text, add_special_tokens=False)["input_ids"]
        return {"input_ids": [*self._begin, *ids, *self._end] if add_special_tokens else ids}


@pytest.mark.parametrize("end", [[], [END]])
def test_plain_text_begins_as_the_tokenizer_begins_texts(end: list[int]) -> None:
    made = encoder(style="plain", tokenizer=_Marked([PAD], end, chat=False))
    found = encode(made, row("ab:"))
    assert found.prompt[0] == PAD and found.prompt.count(PAD) == 1
    assert END not in found.prompt
    assert found.completion.count(END) == 1 and PAD not in found.completion
    assert encode(
        encoder(style="plain", virtual_tokens=2, tokenizer=_Marked([PAD], end, chat=False)), row("ab:")
    ).prompt[:3] == [-1, -2, PAD]


def test_chat_templates_write_their_own_beginning() -> None:
    made = encoder(tokenizer=_Marked([PAD], []))
    assert PAD not in encode(made, row("ab")).prompt
    assert PAD not in encode(made, Row((user("a"), assistant("b"), user("c")), "d", 1)).prompt


# Cutting


def overhead(made: Encoder) -> int:
    return len(made.prompt([user("")]).ids)


def test_the_middle_is_cut() -> None:
    made = encoder(context=overhead(encoder()) + 30 + 4)  # "yes" and the stop are four tokens
    letters = "".join(chr(33 + i) for i in range(90))
    found = encode(made, row(letters))
    assert text(made, found.prompt) == (
        f"<|im_start|>user\n{letters[:20]}{letters[-10:]}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert len(found) == made.context
    assert found.dropped == 60
    assert made.truncated == 1
    assert made.notes() == [f"1 prompt was cut to fit {made.context} tokens (the middle of the text)."]


def test_what_fits_exactly_is_not_cut() -> None:
    made = encoder(context=overhead(encoder()) + 30 + 4)
    assert encode(made, row("x" * 30)).dropped == 0
    assert made.truncated == 0 and made.notes() == []
    assert encode(made, row("x" * 31)).dropped == 1


def test_a_cut_conversation_keeps_its_earlier_turns_whole() -> None:
    messages = (user("a" * 40), assistant("b" * 40), user("c" * 100))
    made = encoder(max_length=220)
    found = encode(made, Row(messages, "d", 1))
    assert len(found) == 220
    assert text(made, found.prompt).count("a" * 40) == text(made, found.prompt).count("b" * 40) == 1
    assert [text(made, found.prompt[a:b]) for a, b in found.earlier] == ["b" * 40 + "<|im_end|>"]


def test_rows_without_room_are_dropped_and_counted() -> None:
    made = encoder(max_length=40)
    found = made.encode_all([row("x", "y" * 60, 3), row("x", "y", 4), row("x", "y" * 50, 9)])
    assert [encoded.number for encoded in found] == [4]
    assert made.dropped_rows == [3, 9]
    assert made.notes() == [
        "2 rows were dropped: the completion and what must stand before it do not fit 40 tokens (lines 3, 9)."
    ]


def test_many_dropped_rows_are_not_all_listed() -> None:
    made = encoder(max_length=2)
    assert made.encode_all([row("x", number=i) for i in range(1, 13)]) == []
    assert (
        made.notes()[0].startswith("12 rows were dropped")
        and "(lines 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 …)" in made.notes()[0]
    )


@given(
    prompt=st.text(st.characters(blacklist_categories=("Cs",)), min_size=1, max_size=120),
    completion=st.integers(1, 40),
    context=st.integers(1, 160),
    max_length=st.none() | st.integers(2, 160),
    style=st.sampled_from(["chat", "plain"]),
    framed=st.booleans(),
    virtual=st.integers(0, 4),
)
def test_limits_hold_for_any_length(
    prompt: str, completion: int, context: int, max_length: int | None, style: str, framed: bool, virtual: int
) -> None:
    """Within context and max-length (which what the template adds does not count against); never cut: the rest."""
    adds: dict[str, Any] = {"virtual_tokens": virtual}
    if framed:
        adds |= {"system": "Be brief.", "shots": (Shot(prompt="one:", completion="1"),)}
    made = encoder(style=style, context=context, max_length=max_length, **adds)
    one = row(prompt, "y" * completion)
    whole = encode(encoder(style=style, context=100_000, **adds), one)
    limit = min(context, (max_length or context) + whole.extra)
    found = made.encode(one)
    if found is None:
        assert made.dropped_rows == [1] and len(whole) > limit
        return
    assert made.dropped_rows == []
    assert len(found) <= limit
    assert found.completion == whole.completion
    assert found.extra == whole.extra
    assert found.dropped == len(whole.prompt) - len(found.prompt)
    if len(whole) <= limit:
        assert found == whole and made.truncated == 0
        return
    assert made.truncated == 1
    # What is kept is a beginning and an end of the whole; a letter cut through costs at most its few bytes.
    common = next(
        (i for i, (a, b) in enumerate(zip(found.prompt, whole.prompt, strict=False)) if a != b), len(found.prompt)
    )
    tail = found.prompt[common:]
    assert tail == whole.prompt[len(whole.prompt) - len(tail) :]
    assert len(found) >= limit - 12
    empty = encode(encoder(style=style, context=100_000, **adds), row("", "y" * completion)).prompt
    lead = next(i for i, (a, b) in enumerate(zip([*empty, None], [*whole.prompt, ""], strict=False)) if a != b)
    assert found.prompt[:lead] == whole.prompt[:lead]


def test_letters_of_several_tokens_are_not_cut_through() -> None:
    for room in range(20, 40):
        made = encoder(context=overhead(encoder()) + room)
        assert "\ufffd" not in text(made, encode(made, row("日本語の文章はどこで切れるか" * 3)).prompt)


# Settings


@pytest.mark.parametrize(
    ("kind", "values", "said"),
    [
        (Template, {"style": "chat", "sistem": "x"}, r"Unknown setting of Template 'sistem'\. Did you mean system"),
        (Template, {"style": "chats"}, r"Template\.style: Input should be 'chat' or 'plain', got 'chats'"),
        (Template, {}, r"Template\.style: is missing"),
        (Template, {"style": "chat", "virtual_tokens": "many"}, r"Template\.virtual_tokens: .* got 'many'"),
        (Shot, {"prompt": "a", "completions": "b"}, r"Shot\.completion: is missing|Unknown setting of Shot"),
    ],
)
def test_settings_say_what_is_wrong(kind: type[Settings], values: dict[str, Any], said: str) -> None:
    with pytest.raises(TunescopeError, match=said):
        kind.parse(values)


def test_settings_do_not_change() -> None:
    template = default_template(tokenizer_of())
    with pytest.raises(ValueError, match="frozen"):
        template.system = "x"  # type: ignore[misc]


def test_a_template_survives_json() -> None:
    template = Template(
        style="chat", system="s", shots=(Shot(prompt="a", completion="b"),), stop=(1, 2), pattern="{a} {b}"
    )
    assert Template.parse(template.model_dump(mode="json")) == template


# The real tokenizer


@pytest.fixture(scope="module")
def smollm2(smollm2_folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm2_folder)


@pytest.mark.smollm2
def test_smollm2_stops_at_the_end_of_a_turn(smollm2: Any) -> None:
    template = default_template(smollm2)
    assert template.style == "chat"
    assert smollm2.decode([template.stop[0]]) == "<|im_end|>"


@pytest.mark.smollm2
@pytest.mark.parametrize("adds", [{}, {"system": "Be brief.", "shots": (Shot(prompt="1 + 1?", completion="2"),)}])
def test_smollm2_sees_what_its_chat_template_writes(smollm2: Any, adds: dict[str, Any]) -> None:
    """Prompt and completion are the tokens of the whole conversation."""
    made = encoder(tokenizer=smollm2, **adds)
    messages = (user("What is 12 times 3?"), assistant("36, I think."), user("Say it in words, 1 line."))
    found = encode(made, Row(messages, "Thirty-six.", 1))
    whole = smollm2.apply_chat_template(
        [*made._renderer._framed(messages), assistant("Thirty-six.")], tokenize=True, return_dict=True
    )["input_ids"]
    newline = smollm2("\n", add_special_tokens=False)["input_ids"]
    assert found.prompt + found.completion + newline == whole
    assert [smollm2.decode(found.prompt[a:b]) for a, b in found.earlier] == ["36, I think.<|im_end|>"]
    assert found.prompt == made.prompt(messages).ids


@pytest.mark.smollm2
def test_smollm2_plain_text(smollm2: Any) -> None:
    """The space before the completion is in its first token, as in running text."""
    made = encoder(style="plain", tokenizer=smollm2)
    found = encode(made, row("Review: a delight.\nSentiment:", "positive"))
    running = smollm2("Review: a delight.\nSentiment: positive", add_special_tokens=False)["input_ids"]
    assert found.prompt + found.completion == [*running, smollm2.eos_token_id]


@pytest.mark.smollm2
@pytest.mark.parametrize("room", [60, 61, 77, 100, 143])
def test_smollm2_cuts_to_the_limit(smollm2: Any, room: int) -> None:
    made = encoder(tokenizer=smollm2, max_length=room)
    story = "Crude oil rose 12.5 pct — the café's owner said „naïve“ 日本 markets\n\n fell again. " * 8
    found = encode(made, row(f"BEGIN {story} END?", "crude"))
    assert room - 6 <= len(found) <= room
    said = smollm2.decode(found.prompt)
    assert "BEGIN" in said and "END?" in said and "\ufffd" not in said
    assert said.endswith("<|im_start|>assistant\n")
