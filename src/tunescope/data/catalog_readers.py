"""How the members of the catalog's archives become rows: each reader takes a member's text and gives its rows."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from tunescope.errors import DataError

Rows = list[dict[str, Any]]

# Words of an opening, and at least of a story and of a passage.
_OPENING_WORDS, _STORY_WORDS, _PASSAGE_WORDS, _SENTENCES_WORDS = 20, 60, 200, 110
_ASKED = "Continue this story in one or two sentences:"
_CONTINUE = "Continue this story:"
_SNIPPET = "Write a sentence of a review."


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


def sentences(text: str) -> Rows:
    """Read tales in Orange's format as sentences to be gone on with by the next one to three: short rows, of which a
    model learns more in the same time than of long ones.

    Returns:
        Rows with ``prompt``, ``completion`` (less than 110 words), and ``tale``, its number from 1.
    """
    rows = []
    for tale, row in enumerate(orange_columns(text="Content")(text), start=1):
        said = _sentences(row["text"])
        for before, begin in zip(said, range(1, len(said)), strict=False):
            count = 1 + hashlib.sha256(said[begin].encode()).digest()[0] % 3  # drawn, and always the same
            going_on = " ".join(said[begin : begin + count]).strip()
            if before.strip() and going_on and len(going_on.split()) < _SENTENCES_WORDS:
                rows.append({"prompt": f"{_CONTINUE}\n\n{before}", "completion": going_on, "tale": tale})
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
