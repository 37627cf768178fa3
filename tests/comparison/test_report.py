"""The report: self-contained, escaped, complete, and written wholly or not at all."""

from __future__ import annotations

import csv
import io
import json
import re
from html.parser import HTMLParser

import pytest

from tunescope.comparison.candidate import Candidate, Rung
from tunescope.comparison.report import by_method
from tunescope.comparison.report import figures as plots
from tunescope.comparison.report.contested import answered
from tunescope.comparison.report.figures import figures
from tunescope.comparison.report.page import render_report
from tunescope.comparison.report.scatter import Plot, linear
from tunescope.comparison.report.tables import as_csv, as_markdown
from tunescope.comparison.report.tried import tried
from tunescope.comparison.results import Comparison, RowText

from .fixtures import make_comparison, make_row, realistic_rows

EVIL = '</script><script>alert(1)</script><img src=x onerror="alert(2)">&amp;'


class Elements(HTMLParser):
    """All start tags with their attributes, and the text of each script by id."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str | None, str] = {}
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script":
            key = self.tags[-1][1].get("id")
            self.scripts[key] = self.scripts.get(key, "") + data


def without_plotly(page: str) -> str:
    from plotly.offline import get_plotlyjs

    return page.replace(get_plotlyjs(), "")


def test_the_page_asks_for_nothing_outside_itself() -> None:
    page = render_report(make_comparison())
    elements = Elements(without_plotly(page))
    assert not [tag for tag, attributes in elements.tags if "src" in attributes or "href" in attributes]
    assert not re.search(r"https?://|url\(|@import", without_plotly(page))
    policy = next(a["content"] for tag, a in elements.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy
    assert page.count("plotly.js v") == 1


def test_the_embedded_json_is_the_comparison() -> None:
    comparison = make_comparison()
    elements = Elements(without_plotly(render_report(comparison)))
    assert Comparison.from_json(elements.scripts["comparison"]) == comparison


def test_everything_from_outside_is_escaped() -> None:
    rows = [
        make_row("zero-shot", 0.5, name=f"a{EVIL}"),
        make_row("lora", 0.9, name=f"b{EVIL}", trainable_parameters=9, note=EVIL),
        make_row("full", name=f"c{EVIL}", note=EVIL),
    ]
    plain = make_comparison()
    data = plain.data.model_copy(update={"name": EVIL, "labels": [EVIL], "notes": [EVIL], "template": EVIL})
    base = plain.base.model_copy(update={"name": EVIL})
    comparison = make_comparison(rows, data=data, base=base)
    page = without_plotly(render_report(comparison))
    elements = Elements(page)
    assert "alert(1)</script>" not in page
    assert not [tag for tag, _ in elements.tags if tag == "img"]
    assert len([tag for tag, _ in elements.tags if tag == "script"]) == 4
    assert Comparison.from_json(elements.scripts["comparison"]) == comparison
    drawn = json.loads(elements.scripts["figures"])
    assert "<img" not in json.dumps([[figure["labels"], figure.get("values")] for figure in drawn])
    assert "<img" not in json.dumps([trace.get("hovertext") for figure in drawn for trace in figure["traces"]])
    assert not [trace["y"] for trace in drawn[0]["traces"] if "<" in str(trace["y"])]


def test_the_table_has_all_rows_and_marks_the_recommended_one() -> None:
    comparison = make_comparison()
    page = without_plotly(render_report(comparison))
    body = page.split('<table class="methods">')[1].split("</table>")[0]
    assert body.count("<tr") == 1 + len(comparison.rows)
    marked = re.findall(r'<tr class="chosen[^"]*">\s*<th[^>]*data-key="([^"]+)"', body)
    assert marked == [comparison.advice.recommended]
    assert "89.8 to 94.9" in body
    for reason in comparison.advice.reasons:
        assert reason in page


def test_every_plot_is_there_with_a_word_on_how_to_read_it() -> None:
    made = figures(make_comparison())
    assert [figure["id"] for figure in made] == [
        "scores", "parameters", "time", "ttft", "speed", "forgetting", "curves", "probe0", "probe1", "probe2",
    ]  # fmt: skip
    assert all(len(figure["how"]) > 40 for figure in made)
    labels = {label["text"] for label in next(f for f in made if f["id"] == "parameters")["labels"]}
    assert labels == {row.name for row in make_comparison().rows}


def test_a_plot_is_one_entry_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    added = Plot(
        "size",
        "Score against size",
        "What the bank keeps of each method.",
        "size at rest (MB)",
        lambda row: row.artifact_mb,
        lambda value: f"{value} MB",
        linear,
    )
    monkeypatch.setattr(plots, "PLOTS", (*plots.PLOTS, added))
    comparison = make_comparison()
    plot = next(figure for figure in figures(comparison) if figure["id"] == "size")
    (trace,) = plot["traces"]
    assert trace["x"] == [row.artifact_mb for row in comparison.rows]
    assert trace["y"] == [100 * (row.score or 0) for row in comparison.rows]
    assert all(f"{row.artifact_mb} MB" in text for row, text in zip(comparison.rows, trace["hovertext"], strict=True))
    assert '<div class="plot" id="plot-size"' in render_report(comparison)


def test_zero_has_a_place_of_its_own_left_of_the_decades() -> None:
    plot = next(figure for figure in figures(make_comparison()) if figure["id"] == "parameters")
    axis = plot["layout"]["xaxis"]
    zero, first = axis["tickvals"][:2]
    assert axis["ticktext"][:2] == ["0", "10k"]
    assert zero < plot["layout"]["shapes"][0]["x0"] < first
    assert plot["traces"][0]["x"][0] == zero


def test_what_was_not_measured_leaves_its_plot_out() -> None:
    prompting = figures(make_comparison(realistic_rows()[:3]))
    assert not {"parameters", "time", "curves"} & {figure["id"] for figure in prompting}
    assert figures(make_comparison([make_row("lora", note="interrupted")])) == []


@pytest.mark.parametrize("metric", ["accuracy", "chrf"])
def test_failed_rows_single_rows_and_other_metrics_make_a_page(metric: str) -> None:
    failed = make_row("full", note="skipped: needs 3.1 GB")
    for rows in ([failed], [realistic_rows()[0], failed], realistic_rows()[:1]):
        page = without_plotly(render_report(make_comparison(rows, metric=metric, budget_seconds=None)))
        assert "How this was measured" in page
        assert failed not in rows or "skipped: needs 3.1 GB" in page
        assert "inf" not in re.findall(r'data-key="([^"]*)"', page)


def test_the_table_as_markdown_and_csv() -> None:
    comparison = make_comparison()
    lines = as_markdown(comparison).splitlines()
    assert len({line.count("|") for line in lines[: 2 + len(comparison.rows)]}) == 1
    assert any(line.startswith("| **") for line in lines)
    assert f"> {comparison.advice.headline}" in lines
    read = list(csv.DictReader(io.StringIO(as_csv(comparison))))
    assert [row["name"] for row in read] == [row.name for row in comparison.rows]
    for row, found in zip(comparison.rows, read, strict=True):
        assert found["score"] == ("" if row.score is None else str(row.score))
        assert json.loads(found["settings"]) == row.settings


def test_names_with_bars_do_not_break_the_table() -> None:
    rows = [make_row("lora", 0.9, name="a|b"), make_row("full", note="failed|here\nand there")]
    table = as_markdown(make_comparison(rows)).splitlines()[:4]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1


def test_a_search_is_drawn_and_listed() -> None:
    rung = Rung(steps=5, trained_tokens=500, seconds=5.0, rows=64, score=0.5, loss=1.0)
    low = Candidate(method="lora", number=0, settings={}, lr=1e-3, seed=0, steps=15, rungs=[rung])
    best = rung.model_copy(update={"steps": 15, "trained_tokens": 1500, "score": 0.75})
    high = low.model_copy(update={"number": 2, "lr": 3e-3, "rungs": [rung, best]})
    failed = low.model_copy(update={"number": 3, "lr": 1e-2, "rungs": [], "error": "The loss is not finite."})
    row = make_row("lora", 0.9, search=[low, high, failed], settings={"lr": 3e-3}, validation_score=0.75)
    listed = tried(row, "accuracy")
    assert listed[0] == ("lr 0.003", "step 15 of 15", "75.0%", True)
    assert [(words, taken) for words, _, _, taken in listed[1:]] == [("lr 0.001", False), ("lr 0.01", False)]
    assert "not finite" in listed[2][2]
    comparison = make_comparison([row])
    drawn = {figure["id"]: figure for figure in figures(comparison)}
    assert [trace["x"] for trace in drawn["effort"]["traces"]] == [[500], [500, 1500]]
    assert drawn["rates"]["traces"][0]["x"] == [1e-3, 3e-3]
    page = render_report(comparison)
    assert "What was tried" in page and "lr 0.003" in page


def test_what_the_recommended_method_answers() -> None:
    counts = {"acq": {"acq": 30, "earn": 10}, "earn": {"earn": 60}}
    comparison = make_comparison([make_row("lora", 0.9, confusion=counts)])
    (drawn,) = [figure for figure in figures(comparison) if figure["id"] == "confusion"]
    (trace,) = drawn["traces"]
    assert (trace["y"], trace["x"]) == (["earn", "acq"], ["acq", "earn"])
    assert trace["z"] == [[0, 100], [75, 25]]


def answering(*answers: str, expected: str = "yes", text: str = "a text") -> Comparison:
    """A comparison of one test row, to which each method gave one of ``answers``."""
    given = zip(("zero-shot", "ia3", "lora"), answers, strict=True)
    rows = [
        make_row(method, float(answer == expected), rows=1, row_keys=["k"], answers={"k": answer})
        for method, answer in given
    ]
    return make_comparison(rows, tested=[RowText(key="k", prompt=text, expected=expected)])


def test_rows_on_which_methods_differ_are_listed_with_who_says_what() -> None:
    found = answered(answering("no", "no", "yes"))
    assert found is not None and found.counts == (0, 1, 0)
    (only,) = found.contested
    assert [(answer.text, answer.right, answer.methods) for answer in only.answers] == [
        ("no", False, ["zero-shot", "ia3"]),
        ("yes", True, ["lora"]),
    ]
    assert answered(answering("yes", "yes", "yes")).counts == (1, 0, 0)  # type: ignore[union-attr]
    none_right = answered(answering("no", "no", "maybe"))
    assert none_right is not None and none_right.counts == (0, 0, 1) and len(none_right.all_wrong) == 1


def test_the_most_contested_rows_stand_first() -> None:
    tested = [RowText(key=str(i), prompt=f"row {i}", expected="yes") for i in range(3)]
    said = (("yes", "no", "no"), ("yes", "yes", "no"), ("yes", "yes", "yes"), ("yes", "yes", "yes"))
    rows = [
        make_row(f"m{number}", rows=3, row_keys=["0", "1", "2"], per_row=[float(a == "yes") for a in own],
                 score=0.5, answers=dict(zip("012", own, strict=True)))
        for number, own in enumerate(said)
    ]  # fmt: skip
    found = answered(make_comparison(rows, tested=tested))
    assert found is not None and [each.row.prompt for each in found.contested] == ["row 2", "row 1"]
    assert answered(make_comparison(rows[:1], tested=tested)) is None
    assert answered(make_comparison(rows, tested=tested, split="validation")) is None


def test_a_row_is_shown_by_what_is_its_own() -> None:
    tested = [
        RowText(key=key, prompt=f"Name the topic of this: {text}", expected="yes")
        for key, text in (("a", "rain in spain"), ("b", "rails in spain"))
    ]
    rows = [
        make_row(name, rows=2, row_keys=["a", "b"], per_row=[0.0, 0.0], score=0.0, answers={"a": said, "b": said})
        for name, said in (("lora", "no"), ("zero-shot", "never"))
    ]
    found = answered(make_comparison(rows, tested=tested))
    assert found is not None and [each.own for each in found.all_wrong] == ["rain in spain", "rails in spain"]
    same = [tested[0], tested[0].model_copy(update={"key": "b"})]
    alike = answered(make_comparison(rows, tested=same))
    assert alike is not None and alike.all_wrong[0].own == tested[0].prompt, "what all have is all there is"


def test_texts_are_contested_where_their_scores_are_far_apart() -> None:
    tested = [RowText(key="a", prompt="one", expected="x"), RowText(key="b", prompt="two", expected="x")]
    rows = [
        make_row(name, rows=2, row_keys=["a", "b"], per_row=list(scores), score=sum(scores) / 2, answers=written)
        for name, scores, written in (
            ("lora", (80.0, 50.0), {"a": "good", "b": "fair"}),
            ("zero-shot", (10.0, 45.0), {"a": "bad", "b": "so so"}),
        )
    ]
    found = answered(make_comparison(rows, tested=tested, metric="chrf"))
    assert found is not None and found.counts == () and [each.row.prompt for each in found.contested] == ["one"]
    assert [(a.text, a.score, a.right) for a in found.contested[0].answers] == [
        ("good", "80.0", None),
        ("bad", "10.0", None),
    ]


def test_contested_rows_on_the_page_are_escaped() -> None:
    page = without_plotly(render_report(answering(EVIL, "no", "yes", text=EVIL)))
    assert "Where methods disagree" in page and "<img" not in page and "alert(1)</script>" not in page


def test_a_judges_scores_may_be_negative() -> None:
    """Bars begin at zero whatever the sign, and all of them are seen."""
    comparison = make_comparison()
    rows = [
        row.model_copy(update={"score": -0.5 - i / 10, "score_low": -0.7 - i / 10, "score_high": -0.4 - i / 10})
        for i, row in enumerate(row for row in comparison.rows if row.score is not None)
    ]
    judged = comparison.model_copy(update={"rows": rows, "metric": "judge"})
    low, high = by_method.scores(rows, judged)["layout"]["xaxis"]["range"]
    assert high == 0.0 and low <= min(row.score_low for row in rows if row.score_low is not None)
