"""Prompt tuning and p-tuning: where they begin, where they stand, and what is kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.tiny import ARCHITECTURES, tiny_base

from tunescope.data.encoding import Encoder
from tunescope.data.reading import Table
from tunescope.data.rows import Row, to_rows
from tunescope.data.template import Template, default_template
from tunescope.errors import DataError, TrainingError, TunescopeError
from tunescope.methods import LoRA, Method, PromptTuning, PTuning, at_rest, customize
from tunescope.methods.p_tuning import EncodedSoftPrompt
from tunescope.methods.prompt_tuning import embed

MARKED = "<|VIRTUAL_PROMPT_0|> {sentence} <|VIRTUAL_PROMPT_1|> sentiment: {label}"


def _rows(method: Method, labels: list[str] | None = None, arch: str = "llama") -> torch.Tensor:
    base = tiny_base(arch)
    template = default_template(base.tokenizer)
    customized = customize(base, method, template, labels=labels, seed=4)
    effect: Any = customized.customization.effects["embedding.prefix"]
    return effect.inputs[0] if isinstance(effect, EncodedSoftPrompt) else effect.embeddings


@pytest.mark.parametrize("arch", ["llama", "gemma2", "opt"])
def test_text_is_repeated_or_cut(arch: str) -> None:
    base = tiny_base(arch)
    ids = base.tokenizer("good", add_special_tokens=False)["input_ids"]
    long = _rows(PromptTuning(virtual_tokens=6, initialize="text", text="good"), arch=arch)
    assert torch.equal(long, embed(base, [*ids, *ids[:2]]))
    short = _rows(PromptTuning(virtual_tokens=2, initialize="text", text="good"), arch=arch)
    assert torch.equal(short, embed(base, ids[:2]))


def test_drawn_words_are_distinct_words_of_the_vocabulary() -> None:
    base = tiny_base("llama")
    rows, words = _rows(PromptTuning(virtual_tokens=40)), embed(base, range(256))
    found = [int((words == row).all(dim=1).nonzero()[0, 0]) for row in rows]
    assert len(set(found)) == 40
    assert not set(found) & set(base.tokenizer.all_special_ids)


def test_labels_come_first_and_drawn_words_after() -> None:
    base = tiny_base("llama")
    rows = _rows(PromptTuning(virtual_tokens=5, initialize="labels"), labels=["yes", "no"])
    for row, label in zip(rows, ("yes", "no"), strict=False):
        ids = base.tokenizer(label, add_special_tokens=False)["input_ids"]
        torch.testing.assert_close(row, embed(base, ids).mean(dim=0))
    assert rows.shape == (5, 32)
    few = _rows(PromptTuning(virtual_tokens=1, initialize="labels"), labels=["yes", "no"])
    assert torch.equal(few, rows[:1])
    with pytest.raises(TrainingError, match="no labels"):
        _rows(PromptTuning(initialize="labels"))


@pytest.mark.parametrize("arch", ["llama", "gemma2"])
def test_random_rows_have_the_embedding_s_scale(arch: str) -> None:
    rows = _rows(PromptTuning(virtual_tokens=200, initialize="random"), arch=arch)
    scale = embed(tiny_base(arch), range(256)).std()
    assert abs(rows.std() / scale - 1) < 0.05


def test_the_encoder_begins_at_the_task_s_name() -> None:
    base = tiny_base("llama")
    rows = _rows(PTuning(virtual_tokens=6, task="spam"))
    ids = base.tokenizer("spam", add_special_tokens=False)["input_ids"]
    assert torch.equal(rows[:4], embed(base, ids))
    assert not torch.equal(rows, _rows(PTuning(virtual_tokens=6, task="topic")))


@pytest.mark.parametrize("encoder", ["mlp", "lstm"])
def test_p_tuning_keeps_the_table_and_drops_the_encoder(encoder: str) -> None:
    base = tiny_base("llama")
    customized = customize(base, PTuning(virtual_tokens=6, encoder=encoder), default_template(base.tokenizer))
    unfinished = customized.customization.tensors()
    assert any(".encoder." in name for name in unfinished)
    predicted = customized.customization.effects["embedding.prefix"].table().detach()
    trained = customized.trainable_parameters
    customized.finish()
    kept = customized.customization.tensors()
    assert list(kept) == ["embedding.prefix.embeddings"]
    torch.testing.assert_close(kept["embedding.prefix.embeddings"], predicted)
    assert customized.trainable_parameters == trained > predicted.numel()
    assert at_rest(base, customized.method, customized.template).trainable_parameters == trained


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_padding_on_either_side_changes_nothing(arch: str) -> None:
    base = tiny_base(arch)
    customized = customize(base, PromptTuning(virtual_tokens=3), default_template(base.tokenizer))
    text = [-1, -2, -3, 10, 20, 30]
    plain = torch.tensor([text])
    with torch.no_grad(), customized.active():
        expected = base.forward(plain, torch.ones_like(plain))[0]
        for before, after in ((0, 4), (4, 0)):
            ids = torch.tensor([[0] * before + text + [0] * after])
            mask = torch.tensor([[0] * before + [1] * len(text) + [0] * after])
            found = base.forward(ids, mask)[0, before : before + len(text)]
            torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"virtual_tokens": 0}, "greater than 0"),
        ({"virtual_tokens": -3}, "greater than 0"),
        ({"splits": (10, 5)}, "add up to virtual_tokens"),
        ({"splits": (20, 0)}, "greater than 0"),
        ({"initialize": "text"}, "belong together"),
        ({"text": "good"}, "belong together"),
        ({"initialize": "words"}, "initialize"),
    ],
)
def test_bad_settings_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(TunescopeError, match=said):
        PromptTuning(**values)


@pytest.mark.parametrize("method", [PromptTuning(virtual_tokens=512), PTuning(virtual_tokens=600)])
def test_more_virtual_tokens_than_the_context_are_refused(method: Method) -> None:
    with pytest.raises(TrainingError, match="leave no room"):
        _rows(method)


# Virtual tokens at several places of a template.


def _split(pattern: str | None = MARKED, *, chat: bool = True, splits: tuple[int, ...] = (2, 3)) -> Encoder:
    base = tiny_base("llama", chat=chat)
    method = PromptTuning(virtual_tokens=sum(splits) or 5, splits=splits)
    customized = customize(base, method, default_template(base.tokenizer, pattern=pattern))
    return Encoder(base.tokenizer, customized.template, base.context_length)


def _row(sentence: str = "a film") -> Row:
    table = Table([{"sentence": sentence, "label": "good"}], [1], "t", "t", "", ("sentence", "label"))
    return to_rows(table, MARKED)[0]


@pytest.mark.parametrize("chat", [True, False])
def test_virtual_tokens_stand_at_their_marks(chat: bool) -> None:
    encoder = _split(chat=chat)
    encoded = encoder.encode(_row())
    assert encoded is not None
    ids, tokenizer = encoded.prompt, encoder.tokenizer
    places = [i for i, token in enumerate(ids) if token < 0]
    assert [ids[i] for i in places] == [-1, -2, -3, -4, -5]
    first, second = places[0], places[2]
    assert tokenizer.decode(ids[first + 2 : second]) == " a film "
    assert tokenizer.decode(ids[second + 3 :]).startswith(" sentiment:")
    assert encoded.extra == 5
    assert encoded.prompt == encoder.prompt(_row().messages).ids


def test_a_long_text_is_cut_between_the_marks() -> None:
    encoder = _split()
    encoder.max_length = 80
    encoded = encoder.encode(_row("word " * 100))
    assert encoded is not None and encoded.dropped > 0
    assert [token for token in encoded.prompt if token < 0] == [-1, -2, -3, -4, -5]
    assert len(encoded) <= 80 + encoded.extra
    assert encoder.tokenizer.decode([t for t in encoded.prompt if t >= 0]).count("sentiment:") == 1


def test_the_model_sees_them_there() -> None:
    base = tiny_base("llama")
    customized = customize(
        base, PromptTuning(virtual_tokens=5, splits=(2, 3)), default_template(base.tokenizer, pattern=MARKED)
    )
    encoded = Encoder(base.tokenizer, customized.template, base.context_length).encode(_row())
    assert encoded is not None
    effect: Any = customized.customization.effects["embedding.prefix"]
    ids = torch.tensor([encoded.prompt])
    embeddings = base.embedding(ids.clamp(min=0)).clone()
    for i, token in enumerate(encoded.prompt):
        if token < 0:
            embeddings[0, i] = effect.embeddings[-1 - token]
    with torch.no_grad():
        expected = base.model(inputs_embeds=embeddings).logits
        with customized.active():
            torch.testing.assert_close(base.forward(ids, torch.ones_like(ids)), expected)


@pytest.mark.parametrize(
    "pattern",
    [
        None,
        "{sentence} sentiment: {label}",
        "<|VIRTUAL_PROMPT_0|> {sentence} sentiment: {label}",
        "<|VIRTUAL_PROMPT_1|> {sentence} <|VIRTUAL_PROMPT_0|> sentiment: {label}",
        "<|VIRTUAL_PROMPT_0|><|VIRTUAL_PROMPT_0|> {sentence} <|VIRTUAL_PROMPT_1|> {label}",
        "<|VIRTUAL_PROMPT_0|> {sentence} <|VIRTUAL_PROMPT_1|> <|VIRTUAL_PROMPT_2|> {label}",
    ],
)
def test_marks_must_be_those_of_the_splits(pattern: str | None) -> None:
    with pytest.raises(DataError, match="splits names 2 places"):
        _split(pattern)


@pytest.mark.parametrize("method", [LoRA(), PromptTuning()])
def test_marks_that_nothing_fills_are_refused(method: Method) -> None:
    base = tiny_base("llama")
    with pytest.raises(DataError, match="nothing would stand there"):
        customize(base, method, default_template(base.tokenizer, pattern=MARKED))


def test_prompts_without_marks_or_with_more_are_refused() -> None:
    encoder = _split()
    for text in (
        "no marks",
        "<|VIRTUAL_PROMPT_0|> a",
        "<|VIRTUAL_PROMPT_0|> <|VIRTUAL_PROMPT_1|> <|VIRTUAL_PROMPT_1|>",
    ):
        with pytest.raises(DataError, match="each once and in this order"):
            encoder.prompt([{"role": "user", "content": text}])
    with pytest.raises(DataError, match="each once and in this order"):
        encoder.encode(_row("a <|VIRTUAL_PROMPT_1|> film"))


def test_marks_in_the_text_of_other_templates_are_text() -> None:
    base = tiny_base("llama")
    encoder = Encoder(base.tokenizer, default_template(base.tokenizer), base.context_length)
    ids = encoder.prompt([{"role": "user", "content": "<|VIRTUAL_PROMPT_0|>"}]).ids
    assert min(ids) >= 0 and "<|VIRTUAL_PROMPT_0|>" in base.tokenizer.decode(ids)
    assert Template(style="plain").marks == ()
