"""A text is tokenized once, whole: whatever the tokenizer does at a border between prompt and completion."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.tiny import CHAT_TEMPLATE, SPECIAL
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tunescope.data.encoding import Encoder
from tunescope.data.pairs import Pair
from tunescope.data.rows import Message, Row
from tunescope.data.template import Shot, default_template
from tunescope.data.tokenizing import TextTokenizer, common_prefix
from tunescope.errors import DataError

# Enough repetitions that words, a line break with indentation, and numbers become tokens.
CORPUS = [
    "the complaint was a delivery question\n    return x\n        y = x + 1\nkind: complaint\nlabel: question 12 345\n",
    "def twice(x):\n    y = x + x\n    return y\n\n\nclass A:\n    pass\n",
    "A: yes. Q: no, it is 7!  Two  spaces, tabs\tand\n\nbreaks. café naïve 日本 😀",
] * 20
KINDS = ["bytes", "prepend", "metaspace", "words"]


@functools.cache
def tokenizer_of(kind: str, chat: bool = True) -> Any:
    """Tokenizers as the common families have them, trained on a few lines.

    ``bytes`` is GPT-2's (SmolLM2, Qwen); ``prepend`` is Llama 2's, Mistral's and Phi-3's, which writes a mark before a
    text and in place of spaces; ``metaspace`` is the same as a pre-tokenizer; ``words`` is BERT's.
    """
    if kind == "words":
        made = Tokenizer(models.WordPiece(unk_token="<unk>"))
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        made.decoder = decoders.WordPiece()
        trainer: Any = trainers.WordPieceTrainer(vocab_size=300, special_tokens=["<unk>", *SPECIAL])
    else:
        made = Tokenizer(models.BPE(byte_fallback=kind != "bytes", unk_token=None if kind == "bytes" else "<unk>"))
        alphabet = pre_tokenizers.ByteLevel.alphabet() if kind == "bytes" else []
        special = ["<unk>", *SPECIAL, *([] if kind == "bytes" else [f"<0x{i:02X}>" for i in range(256)])]
        trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, initial_alphabet=alphabet)
        if kind == "bytes":
            made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            made.decoder = decoders.ByteLevel()
        elif kind == "prepend":
            made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        else:
            made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        if kind != "bytes":
            made.decoder = decoders.Sequence(
                [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
            )
    made.train_from_iterator(CORPUS, trainer)
    if kind == "prepend":  # trained on words, as SentencePiece is, and run over whole texts
        made.pre_tokenizer = None
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token=SPECIAL[0],
        eos_token=SPECIAL[0],
        pad_token=SPECIAL[3],
        additional_special_tokens=list(SPECIAL[1:3]),
    )
    fast.chat_template = CHAT_TEMPLATE if chat else None
    return fast


def encoder(kind: str, style: str, **template: Any) -> Encoder:
    tokenizer = tokenizer_of(kind)
    made = default_template(tokenizer, style=style).model_copy(update=template)
    return Encoder(tokenizer, made, 100_000)


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str, **more: Any) -> Message:
    return {"role": "assistant", "content": text, **more}


def ids_of(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


# Words with the ends that join: spaces, tabs, line breaks, digits, emoji.
pieces = st.sampled_from(
    [" ", "  ", "\t", "\n", "\n\n", "a", "kind", ":", "7", "12", "😀", "é", "日", ".", "x = 1", "(", "    "]
)
texts = st.lists(pieces, min_size=1, max_size=6).map("".join).filter(lambda text: bool(text.strip()))


@pytest.mark.parametrize("kind", KINDS)
def test_the_tokenizers_join_what_they_are_here_to_join(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    joined = {
        "bytes": ("def twice(x):\n", "    y = x"),
        "prepend": ("kind:", " complaint"),
        "metaspace": ("kind: ", "complaint"),
        "words": ("comp", "laint"),
    }
    prompt, completion = joined[kind]
    whole = ids_of(tokenizer, prompt + completion)
    assert whole != ids_of(tokenizer, prompt) + ids_of(tokenizer, completion)


@pytest.mark.parametrize("kind", KINDS)
@given(prompt=texts, completion=texts)
def test_plain_ids_are_those_of_the_whole_text(kind: str, prompt: str, completion: str) -> None:
    made = encoder(kind, "plain")
    found = made.encode(Row((user(prompt),), completion, 1))
    assert found is not None
    text = made._renderer.whole(Row((user(prompt),), completion, 1)).text
    assert text.startswith(prompt.rstrip(" \t"))
    assert found.prompt + found.completion == [*ids_of(made.tokenizer, text), made.template.stop[0]]
    # Nothing of what the prompt alone shares with the whole is learned, and all of the rest is.
    alone = ids_of(made.tokenizer, prompt.rstrip(" \t"))
    assert len(found.prompt) == common_prefix(alone, ids_of(made.tokenizer, text))


@pytest.mark.parametrize("kind", KINDS)
@given(turns=st.lists(texts, min_size=1, max_size=3), completion=texts)
def test_chat_ids_are_those_of_the_chat_template(kind: str, turns: list[str], completion: str) -> None:
    made = encoder(kind, "chat")
    messages = [user(turns[0])]
    for text in turns[1:]:
        messages += [assistant("so " + text), user(text)]
    row = Row(tuple(messages), completion, 1)
    found = made.encode(row)
    assert found is not None
    answer = made._renderer.whole(row).text[len(made._renderer.prompt(messages).text) :].removesuffix(SPECIAL[2])
    whole = made.tokenizer.apply_chat_template([*messages, assistant(answer)], tokenize=True, return_dict=True)
    ids = found.prompt + found.completion
    assert ids == whole["input_ids"][: len(ids)]
    assert made.tokenizer.decode(whole["input_ids"][len(ids) :]).strip() == ""
    # Each earlier turn, with the token that ends it, and nothing else.
    assert len(found.earlier) == len(turns) - 1
    assert all(ids[end - 1] == made.template.stop[0] for _, end in found.earlier)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("style", ["chat", "plain"])
@pytest.mark.parametrize("heal", [False, True])
@given(prompt=texts, completions=st.lists(texts, min_size=1, max_size=3, unique=True))
def test_candidates_are_whole_texts_too(kind: str, style: str, heal: bool, prompt: str, completions: list[str]) -> None:
    made = encoder(kind, style, heal=heal)
    begin, rests = made.candidates([user(prompt)], completions)
    for completion, rest in zip(completions, rests, strict=True):
        found = made.encode(Row((user(prompt),), completion, 1))
        assert found is not None
        assert begin + rest == found.prompt + found.completion


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("style", ["chat", "plain"])
@given(prompt=texts, completion=texts)
def test_what_is_served_begins_every_whole_text(kind: str, style: str, prompt: str, completion: str) -> None:
    """A healed prompt's ids begin the ids of prompt and answer, whatever the answer begins with; what was left out is
    owed, to the character."""
    made = encoder(kind, style, heal=True)
    prompt = f"the {prompt}"  # something is left of it when its end is cut off
    served = made.prompt([user(prompt)])
    whole = made.encode(Row((user(prompt),), completion, 1))
    assert whole is not None
    ids = whole.prompt + whole.completion
    rendered = made._renderer.prompt([user(prompt)])
    assert (rendered.text + rendered.owed).endswith(served.owed)
    if kind != "words":  # which has tokens for any beginning of a word
        assert ids[: len(served.ids)] == served.ids
    kept = rendered.text[: len(rendered.text) + len(rendered.owed) - len(served.owed)]
    assert served.ids == TextTokenizer(made.tokenizer, made.template).ids(kept)


def test_a_line_break_and_indentation_are_one_token() -> None:
    made = encoder("bytes", "plain")
    row = Row((user("def twice(x):\n"),), "    y = x + x\n    return y", 1)
    found = made.encode(row)
    assert found is not None and made.joined == 1
    assert made.tokenizer.decode(found.completion[:-1]) == "\n    y = x + x\n    return y"
    assert any("holds the prompt's last characters" in note for note in made.notes())
    # Served: as it is, until a template says that its rows had such completions.
    assert made.prompt(row.messages).owed == ""
    healed = encoder("bytes", "plain", heal=True).prompt(row.messages)
    assert (healed.ids, healed.owed) == (found.prompt, "\n")


@pytest.mark.parametrize("style", ["chat", "plain"])
@pytest.mark.parametrize("kind", KINDS[:3])
def test_indentation_is_learned(kind: str, style: str) -> None:
    made = encoder(kind, style)
    found = made.encode(Row((user("def f(x):\n"),), "    return x", 1))
    assert found is not None
    said = made.tokenizer.decode(found.prompt + found.completion)
    assert "\n    return x" in said


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("style", ["chat", "plain"])
def test_the_patterns_last_space_is_the_templates(kind: str, style: str) -> None:
    """Typed or not, in training and in service, in chat and in plain style."""
    made = encoder(kind, style, pattern="{text} kind: {label}", shots=(Shot(prompt="b kind: ", completion="no"),))
    with_space, without = (Row((user(f"a delivery kind:{end}"),), "complaint", 1) for end in (" ", ""))
    assert made.encode(with_space) == made.encode(without)
    assert made.prompt(with_space.messages) == made.prompt(without.messages)
    assert made.prompt(without.messages).owed == (" " if style == "plain" else "")


# Conversations


def test_a_turn_of_weight_zero_is_shown_and_not_learned() -> None:
    made = encoder("bytes", "chat")
    messages = (user("a"), assistant("Five.", weight=0), user("b"), assistant("Four.", weight=1), user("c"))
    found = made.encode(Row(messages, "d", 1))
    assert found is not None
    assert [made.tokenizer.decode(found.prompt[a:b]) for a, b in found.earlier] == ["Four.<|im_end|>"]
    plain = tuple({key: value for key, value in message.items() if key != "weight"} for message in messages)
    other = made.encode(Row(plain, "d", 1))
    assert other is not None and other.prompt == found.prompt


CALL = {"type": "function", "function": {"name": "look_up", "arguments": {"word": "cat"}}}
TOOLS = ({"type": "function", "function": {"name": "look_up", "parameters": {}}},)
TOOL_TEMPLATE = (
    "{% if tools %}Tools: {{ tools | tojson }}\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] or '' }}"
    "{% for call in message.tool_calls or [] %}<call>{{ call.function.name }}{{ call.function.arguments | tojson }}"
    "</call>{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_functions_are_rendered_where_the_chat_template_can() -> None:
    tokenizer = tokenizer_of.__wrapped__("bytes")
    tokenizer.chat_template = TOOL_TEMPLATE
    made = Encoder(tokenizer, default_template(tokenizer), 1000)
    found = made.encode(Row((user("what is a cat?"),), "", 1, tool_calls=(CALL,), tools=TOOLS))
    assert found is not None
    assert tokenizer.decode(found.prompt).startswith("Tools: [{")
    assert tokenizer.decode(found.completion) == '<call>look_up{"word": "cat"}</call><|im_end|>'


@pytest.mark.parametrize("style", ["chat", "plain"])
@pytest.mark.parametrize(
    "row",
    [
        Row((user("a"),), "", 1, tool_calls=(CALL,)),
        Row((user("a"),), "b", 1, tools=TOOLS),
        Row((user("a"), assistant("", tool_calls=[CALL]), user("b")), "c", 1),
    ],
)
def test_functions_are_refused_by_name_where_it_cannot(style: str, row: Row) -> None:
    with pytest.raises(DataError, match="tool"):
        encoder("bytes", style).encode(row)


REFUSES_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"


def test_rows_that_the_chat_template_refuses_are_bad_rows() -> None:
    tokenizer = tokenizer_of.__wrapped__("bytes")
    tokenizer.chat_template = REFUSES_SYSTEM + CHAT_TEMPLATE
    rows = [
        Row((user("a"),), "b", 1),
        Row(({"role": "system", "content": "s"}, user("a")), "b", 2),
        Row((user("c"),), "d", 3),
    ]
    template = default_template(tokenizer)
    with pytest.raises(DataError, match=r"line 2: .*System role not supported.*user's turn.*--style plain"):
        Encoder(tokenizer, template, 1000).encode_all(rows)
    made = Encoder(tokenizer, template, 1000, skip_bad=1)
    assert [found.number for found in made.encode_all(rows)] == [1, 3]
    assert "1 row was left out" in made.notes()[0] and "line 2" in made.notes()[0]
    # What the template itself adds is no fault of a row.
    with pytest.raises(DataError, match="refuses") as error:
        Encoder(tokenizer, template.model_copy(update={"system": "s"}), 1000, skip_bad=9).encode_all(rows)
    assert "line" not in str(error.value)


def test_completions_that_a_chat_template_trims_are_counted() -> None:
    tokenizer = tokenizer_of.__wrapped__("bytes")
    tokenizer.chat_template = CHAT_TEMPLATE.replace("{{ message['content'] }}", "{{ message['content'] | trim }}")
    made = Encoder(tokenizer, default_template(tokenizer), 1000)
    made.encode_all([Row((user("a"),), "    return x", 1), Row((user("a"),), "b", 2)])
    assert made.rewritten == 1 and any("trims or changes 1 completion" in note for note in made.notes())


# Pairs


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("style", ["chat", "plain"])
@given(prompt=texts, chosen=texts, rejected=texts)
def test_both_texts_of_a_pair_are_whole(kind: str, style: str, prompt: str, chosen: str, rejected: str) -> None:
    made = encoder(kind, style)
    found = made.encode_pair(Pair((user(prompt),), chosen, rejected, 1))
    assert found is not None
    for text, rest in ((chosen, found.chosen), (rejected, found.rejected)):
        row = made.encode(Row((user(prompt),), text, 1))
        assert row is not None and found.prompt + rest == row.prompt + row.completion


@functools.cache
def special_behind(kind: str) -> Any:
    """A tokenizer whose chat prompts end in a special token: Mistral's [/INST]; Phi-3's eats the line break behind."""
    tokenizer = copy.deepcopy(tokenizer_of("metaspace"))
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.add_tokens([AddedToken("[/INST]", special=True, normalized=False, rstrip=kind == "phi")], True)
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}[/INST]{% else %}"
        "{{ m['content'] }}<|im_end|>{% endif %}{% endfor %}"
    )
    return tokenizer


@pytest.mark.parametrize("kind", ["mistral", "phi"])
@pytest.mark.parametrize("completion", ["complaint", "    return x", "\n\nyes", "12"])
def test_an_answer_right_behind_a_special_token(kind: str, completion: str) -> None:
    tokenizer = special_behind(kind)
    made = Encoder(tokenizer, default_template(tokenizer, style="chat"), 1000)
    begin, (rest,) = made.candidates([user("the delivery")], [completion])
    found = made.encode(Row((user("the delivery"),), completion, 1))
    assert found is not None
    whole = tokenizer.apply_chat_template([user("the delivery"), assistant(completion)], tokenize=True)["input_ids"]
    assert found.prompt + found.completion == begin + rest == whole


def test_what_a_tokenizer_appends_is_no_part_of_a_text() -> None:
    tokenizer = copy.deepcopy(tokenizer_of("words"))
    separator, lead = "<|im_end|>", "<|im_start|>"  # not the end-of-text token: as BERT's separator
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{lead} $A {separator}",
        special_tokens=[(each, tokenizer.convert_tokens_to_ids(each)) for each in (lead, separator)],
    )
    made = Encoder(tokenizer, default_template(tokenizer, style="plain"), 1000)
    found = made.encode(Row((user("the delivery"),), "complaint", 1))
    assert found is not None
    expected = [tokenizer.convert_tokens_to_ids(lead), *ids_of(tokenizer, "the delivery complaint")]
    assert found.prompt + found.completion == [*expected, tokenizer.eos_token_id]


def turns_of(template: str, answers: Sequence[str]) -> list[str]:
    """The learned earlier turns of a conversation, as text."""
    tokenizer = copy.deepcopy(tokenizer_of("bytes"))
    tokenizer.chat_template = template
    made = Encoder(tokenizer, default_template(tokenizer, style="chat"), 1000)
    messages = [user("hi")]
    for answer in answers[:-1]:
        messages += [assistant(answer), user("and 7?")]
    found = made.encode(Row(tuple(messages), answers[-1], 1))
    assert found is not None
    ids = found.prompt + found.completion
    return [tokenizer.decode(ids[begin:end]) for begin, end in [*found.earlier, (len(found.prompt), len(ids))]]


NO_END = "{% for m in messages %}{{ m.role }}:\n{{ m.content }}\n\n{% endfor %}"
NO_END += "{% if add_generation_prompt %}assistant:\n{% endif %}"
# Qwen3's: an empty reasoning before the last turn, none before the earlier ones.
REASONING = """{% for m in messages %}<|im_start|>{{ m.role }}
{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif -%}
{{ m.content.split('</think>')[-1] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


@pytest.mark.parametrize(
    ("template", "answers", "learned"),
    [
        # A chat template that writes no end-of-turn token: turns are learned without one, the last one with it.
        (NO_END, ["so.", "x = 1", "bye"], ["so.", "x = 1", "bye<|endoftext|>"]),
        (
            NO_END + "{% if not add_generation_prompt %}<|endoftext|>{% endif %}",
            ["a", "b"],
            ["a", "b\n\n<|endoftext|>"],
        ),
        # A turn that speaks of the token that ends turns.
        (CHAT_TEMPLATE, ["ends in <|im_end|> here", "bye"], ["ends in <|im_end|> here<|im_end|>", "bye<|im_end|>"]),
        (REASONING, ["so.", "bye"], ["so.<|im_end|>", "<think>\n\n</think>\n\nbye<|im_end|>"]),
        (REASONING, ["<think>hm</think>so.", "bye"], ["so.<|im_end|>", "<think>\n\n</think>\n\nbye<|im_end|>"]),
    ],
)
def test_where_turns_end(template: str, answers: list[str], learned: list[str]) -> None:
    assert turns_of(template, answers) == learned


@pytest.mark.parametrize("kind", KINDS[:3])
def test_a_cut_leaves_words_apart(kind: str) -> None:
    """What is left behind the cut keeps the space before its first word."""
    made = encoder(kind, "plain")
    text = "the complaint was a delivery question " * 20 + "kind:"
    for limit in range(30, 50):
        made.max_length = limit
        found = made.encode(Row((user(text),), "complaint", 1))
        assert found is not None and found.dropped
        shown = made.tokenizer.decode(found.prompt)
        begin = common_prefix(shown, text)
        assert text.endswith(shown[begin:]) or text.endswith(shown[begin - 1 :])
        assert len(found) >= limit - 3
