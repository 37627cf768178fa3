"""What a command prints can do nothing to a terminal, and is what was meant."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text
from tests.cli.conftest import Ended, Place

from tunescope.cli.output import Output, SafeConsole
from tunescope.commands.show import print_facts

# It would set the terminal's title, and is markup, an emoji's name and 200 characters to rich.
TEXT = "\x1b]0;title\x07 [bold]x[/nothing] :heart:" + " long" * 40
SHOWN = TEXT.replace("\x1b", "\\x1b").replace("\x07", "\\x07")


def test_a_model_s_text_is_escaped_and_otherwise_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    Output(False).write(TEXT)
    assert capsys.readouterr().out == SHOWN


def test_nothing_that_a_console_prints_acts_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    console, table = SafeConsole(), Table(TEXT, box=None, padding=0)
    console.width = 400
    table.add_row(TEXT)
    console.print(table)
    console.print(TEXT)
    console.print(Text(TEXT))  # rich leaves the bell out
    print_facts(console, {"value": TEXT})
    out = capsys.readouterr().out
    assert out.count(SHOWN) == 4 and not {"\x1b", "\x07", "\u2764"} & set(out)


def test_a_record_s_texts_are_shown_as_they_are(cli: Callable[..., Ended], place: Place, tmp_path: Path) -> None:
    made = cli("train", "zero-shot", "--base", place.base, "--data", place.data, "--template", "{text} {label}",
               "--out", "bank/a", "--json")  # fmt: skip
    assert made.code == 0, made.err
    path = tmp_path / "bank" / "a" / "customization.json"
    record = json.loads(path.read_text())
    record["base"]["name"] = "\x1b[31m[/x]"
    path.write_text(json.dumps(record))
    for shown in (cli("bank", "list", "bank"), cli("bank", "show", "bank/a")):
        assert shown.code == 0 and "\\x1b[31m[/x]" in shown.out and "\x1b" not in shown.out


def test_stages_of_long_work_are_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with Output(as_json=True).working("measuring") as on_stage:
        on_stage("latency")
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "measuring: latency\n")
