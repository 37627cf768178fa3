"""The studio in a real browser."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.serving.conftest import BASE, LABELS, Server, serving
from tests.tiny import tiny_model, tiny_tokenizer

from tunescope.serving.jobs import Jobs
from tunescope.serving.keys import Key, Keys
from tunescope.serving.limits import Limits

BROWSER = next((found for name in ("chromium", "google-chrome") if (found := shutil.which(name))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine"),
]
KEY = "a key of sixteen characters"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page of a phone's width, in which any error of the script, and any request elsewhere, is the test's failure."""
    made, wrong = browser.new_page(viewport={"width": 390, "height": 800}), []
    made.on("pageerror", lambda error: wrong.append(str(error)))
    made.on(
        "console",
        lambda said: wrong.append(said.text) if said.type == "error" and "status of 40" not in said.text else None,
    )
    made.on("request", lambda asked: wrong.append(asked.url) if "127.0.0.1" not in asked.url else None)
    yield made
    made.close()
    assert not wrong


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for name in ("first", "second"):
        (folder / name).mkdir()
        (folder / name / "report.html").write_text(
            f"<!doctype html><title>x</title><p id=said>no</p><script>said.textContent = 'report {name}'</script>"
        )
    return folder


@pytest.fixture(scope="module")
def studio(bank_folder: Path, runs: Path) -> Iterator[Server]:
    with serving(bank_folder, reports=runs, limits=Limits(max_tokens=400)) as running:
        yield running


def ask(page: Any, url: str, prompt: str, *names: str) -> None:
    page.goto(url)
    page.wait_for_selector("#models input")
    for box in page.query_selector_all("#models input"):
        box.set_checked(box.get_attribute("value") in names)
    page.fill("#prompt", prompt)


def test_customizations_answer_side_by_side(page: Any, studio: Server) -> None:
    ask(page, studio.url, "say 3", BASE, "lora", "prompt")
    page.fill("#tokens", "8")
    page.select_option("#judge", "reward")
    page.press("#prompt", "Control+Enter")
    page.locator(".card", has_text="reward:").nth(2).wait_for()
    for card in page.query_selector_all(".card"):
        name = card.query_selector("h2").inner_text()
        wanted = studio.chat(name)["choices"][0]["message"]["content"]
        found = card.query_selector(".text").text_content()
        assert found.replace("\u0120", " ") and len(found) >= min(len(wanted), 1)
        tokens = card.query_selector_all(".text .p")
        assert tokens and all("%" in token.get_attribute("title") for token in tokens)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_sliders_steer(page: Any, studio: Server) -> None:
    ask(page, studio.url, "say 3", "steered", "ia3")
    page.fill("#tokens", "6")
    page.click("#answer")
    page.wait_for_selector(".sliders")
    sent: list[Any] = []
    page.on("request", lambda asked: sent.append(asked.post_data_json) if asked.method == "POST" else None)
    dial = page.get_by_label("quality of steered")
    dial.focus()
    dial.press("Home")
    dial.blur()
    page.wait_for_timeout(300)
    assert sent[-1]["model"] == "steered" and sent[-1]["steer"]["quality"] == 0
    dial = page.get_by_label("scale of ia3")
    dial.focus()
    dial.press("Home")
    dial.blur()
    page.wait_for_timeout(300)
    assert sent[-1]["model"] == "ia3" and sent[-1]["customization_scale"] == 0


def test_an_answer_can_be_stopped(page: Any, studio: Server) -> None:
    ask(page, studio.url, "say 3", "lora")
    page.fill("#tokens", "400")
    page.fill("#temperature", "1")
    page.click("#answer")
    page.wait_for_selector(".text .p")
    page.click("#stop")
    page.locator(".card", has_text="stopped").wait_for()
    for _ in range(100):
        if studio.app.state.service.engine.load_now.running == 0:
            return
        page.wait_for_timeout(50)
    raise AssertionError("the row goes on")


def test_the_bank_and_the_reports(page: Any, studio: Server) -> None:
    page.goto(f"{studio.url}/#bank")
    page.wait_for_selector("#entries tr")
    rows = {row.query_selector("td").inner_text(): row for row in page.query_selector_all("#entries tr")}
    assert {BASE, "lora", "tasks:a", "reward"} <= set(rows)
    assert "warm, wet" in rows["labels"].inner_text()
    page.focus("#tab-bank")
    page.keyboard.press("ArrowRight")
    assert page.is_visible("#reports")
    page.select_option("#report", label="second")
    page.frame_locator("#report-page").get_by_text("report second").wait_for()


def test_a_prompt_and_what_was_chosen_stay_after_a_reload(page: Any, studio: Server) -> None:
    ask(page, studio.url, "kept", "ia3")
    page.reload()
    page.wait_for_selector("#models input")
    assert page.input_value("#prompt") == "kept"
    assert [box.get_attribute("value") for box in page.query_selector_all("#models input:checked")] == ["ia3"]


def test_it_asks_for_a_key_where_one_is_needed(page: Any, bank_folder: Path, runs: Path) -> None:
    with serving(bank_folder, keys=Keys([Key(name="me", key=KEY)]), reports=runs) as server:
        page.goto(server.url)
        page.wait_for_selector("#key", state="visible")
        assert "key" in page.inner_text("#notice")
        page.fill("#key", KEY)
        page.press("#key", "Tab")
        page.wait_for_selector("#models input")
        page.click("#tab-reports")
        page.frame_locator("#report-page").get_by_text("report first").wait_for()
        assert server.get("/reports/first").status_code == 404


def test_texts_are_texts(page: Any, studio: Server) -> None:
    """What a model, a name or an error says is shown, never read as HTML."""
    ask(page, studio.url, "<img src=x onerror=alert(1)>", BASE)
    page.fill("#tokens", "9999")
    page.evaluate("document.querySelector('#tokens').max = 99999")
    page.click("#answer")
    page.locator(".card", has_text="at most 400").wait_for()
    assert page.query_selector("#answers img") is None


def test_an_entry_is_trained_from_the_page(page: Any, bank_folder: Path, tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    rows = tmp_path / "kinds.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in LABELS))
    (tmp_path / "bank").mkdir()
    jobs = Jobs(tmp_path / "work", tmp_path / "bank", str(tmp_path / "base"))
    with serving(tmp_path / "bank", jobs=jobs) as server:
        page.goto(f"{server.url}/#jobs")
        page.click("#tab-jobs")
        page.set_input_files("#rows", str(rows))
        page.fill("#template", "{text} topic: {label}")
        page.click("#job button[type=submit]")
        page.locator(".card", has_text="done").locator("pre", has_text="warm").first.wait_for()
        page.select_option("#command", "train")
        page.fill("#entry", "kinds")
        page.fill("#steps", "600")
        page.click("#job button[type=submit]")
        page.locator(".curve").wait_for()
        page.reload()  # it goes on, and is shown again
        page.locator(".card", has_text="train kinds").locator(".curve").wait_for()
        page.get_by_role("button", name="Stop", exact=True).locator("visible=true").click()
        page.get_by_role("button", name="Go on").locator("visible=true").click()
        page.locator(".card", has_text="train kinds").get_by_text("done").wait_for(timeout=60_000)
        page.click("#tab-ask")
        page.get_by_label("kinds lora").wait_for()
