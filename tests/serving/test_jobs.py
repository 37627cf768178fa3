"""Jobs on uploaded rows: started, followed, stopped, gone on with, and kept over a restart."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from tests.serving.conftest import LABELS, Server, serving
from tests.tiny import tiny_model, tiny_tokenizer

from tunescope.serving.jobs import Jobs
from tunescope.serving.keys import Key, Keys
from tunescope.serving.limits import Limits

ROWS = "".join(json.dumps(row) + "\n" for row in LABELS).encode()
TEMPLATE = "{text} topic: {label}"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("jobs")
    tiny_model().save_pretrained(made / "base")
    tiny_tokenizer().save_pretrained(made / "base")
    return made


@pytest.fixture(scope="module")
def server(place: Path) -> Iterator[Server]:
    (place / "bank").mkdir()
    with serving(place / "bank", jobs=Jobs(place / "work", place / "bank", str(place / "base"))) as running:
        upload(running)
        yield running


def upload(server: Server, name: str = "rows.jsonl", content: bytes = ROWS) -> requests.Response:
    return requests.put(f"{server.url}/v1/rows/{name}", data=content, timeout=60)


def start(server: Server, **body: Any) -> dict[str, Any]:
    answer = server.post("/v1/jobs", {"rows": "rows.jsonl", "template": TEMPLATE, **body})
    assert answer.status_code == 201, answer.text
    return answer.json()


def wait(server: Server, id: str, *states: str) -> dict[str, Any]:
    for _ in range(600):
        job = server.get(f"/v1/jobs/{id}").json()
        if job["state"] in states:
            return job
        assert job["state"] in ("waiting", "running"), job
        time.sleep(0.1)
    raise AssertionError(job)


def test_a_job_trains_an_entry_that_is_served_at_once(server: Server) -> None:
    looked = start(server, command="look")
    trained = start(server, command="train", method="lora", name="mine", max_steps=4)
    assert trained["state"] == "waiting"  # one after the other
    assert "warm" in wait(server, looked["id"], "done")["output"]
    job = wait(server, trained["id"], "done")
    assert [step for step, _ in job["losses"]] == [1, 2, 3, 4] and job["log"]
    answer = server.post("/classify", {"model": "mine", "input": "the sun"}).json()
    assert answer["data"][0]["label"] in ("warm", "wet")
    assert server.get("/v1/jobs").json()["data"][0]["id"] == trained["id"]


def test_a_job_compares(server: Server) -> None:
    job = start(server, command="compare", name="kinds", methods=["zero-shot", "lora"], budget="20s", max_length=64)
    job = wait(server, job["id"], "done")
    assert {row["name"] for row in job["rows"]} == {"zero-shot", "lora"}
    (report,) = server.get("/reports").json()["data"]
    assert report["name"] == "kinds" and server.get(report["href"]).status_code == 200


def test_a_job_that_is_stopped_goes_on(server: Server) -> None:
    job = start(server, command="train", method="ia3", name="long", max_steps=3000)
    waiting = start(server, command="look")
    for _ in range(300):
        if len(server.get(f"/v1/jobs/{job['id']}").json()["losses"]) > 5:
            break
        time.sleep(0.1)
    assert server.post(f"/v1/jobs/{waiting['id']}/stop", {}).json()["state"] == "stopped"
    server.post(f"/v1/jobs/{job['id']}/stop", {})
    stopped = wait(server, job["id"], "stopped")
    assert 5 < stopped["losses"][-1][0] < 3000
    assert server.post(f"/v1/jobs/{job['id']}/stop", {}).status_code == 409
    server.post(f"/v1/jobs/{job['id']}/resume", {})
    again = wait(server, job["id"], "running", "done")
    server.post(f"/v1/jobs/{again['id']}/stop", {})
    assert wait(server, job["id"], "stopped", "done")["losses"][-1][0] >= stopped["losses"][-1][0]


def test_a_job_that_fails_says_why(server: Server) -> None:
    upload(server, "bad.jsonl", b'{"text": "a"}\n')
    job = server.post("/v1/jobs", {"command": "look", "rows": "bad.jsonl", "template": TEMPLATE}).json()
    failed = wait(server, job["id"], "failed")
    assert failed["code"] == 2 and "label" in failed["log"]


@pytest.mark.parametrize(
    ("body", "status", "why"),
    [
        ({"command": "eval"}, 400, "command"),
        ({"command": "look", "rows": "../base/config.json"}, 400, "uploaded"),
        ({"command": "look", "rows": "none.csv"}, 400, "uploaded"),
        ({"command": "look", "method": "lora"}, 400, "method is no setting of look"),
        ({"command": "look", "judge": "os:system"}, 400, "judge"),
        ({"command": "train", "method": "lora"}, 400, "name"),
        ({"command": "train", "method": "lora", "name": "../x"}, 400, "name"),
        ({"command": "train", "method": "lora", "name": "taken"}, 409, "taken"),
    ],
)
def test_what_no_job_can_be(server: Server, place: Path, body: dict[str, Any], status: int, why: str) -> None:
    (place / "bank" / "taken").mkdir(exist_ok=True)
    answer = server.post("/v1/jobs", {"rows": "rows.jsonl", **body})
    assert answer.status_code == status and why in answer.json()["error"]["message"]


@pytest.mark.parametrize("name", ["rows.txt", "..%2Frows.jsonl", ".jsonl", "a%00.jsonl"])
def test_files_that_are_no_rows_are_not_kept(server: Server, place: Path, name: str) -> None:
    before = sorted((place / "work").rglob("*"))
    assert upload(server, name).status_code in (400, 404)
    assert sorted((place / "work").rglob("*")) == before


def test_uploads_have_a_limit_of_their_own_and_need_the_right(place: Path, tmp_path: Path) -> None:
    keys = Keys([Key(name="reader", key="a key that reads"), Key(name="maker", key="a key that makes", updates=True)])
    jobs = Jobs(tmp_path / "work", place / "bank", str(place / "base"))
    with serving(place / "bank", jobs=jobs, keys=keys, limits=Limits(max_body_kb=1, max_upload_mb=1)) as server:
        reader, maker = ({"Authorization": f"Bearer a key that {does}"} for does in ("reads", "makes"))
        put = f"{server.url}/v1/rows/rows.jsonl"
        assert requests.put(put, data=b"x" * 2000, headers=reader, timeout=60).status_code == 403
        assert requests.put(put, data=b"x" * 2000, headers=maker, timeout=60).status_code == 201
        assert requests.put(put, data=b"x" * 1_000_001, headers=maker, timeout=60).status_code == 413
        assert server.get("/v1/jobs", headers=reader).status_code == 403


def test_jobs_are_there_after_a_restart(server: Server, place: Path, tmp_path: Path) -> None:
    wait(server, start(server, command="look")["id"], "done")
    shutil.copytree(place / "work" / "jobs", tmp_path / "work" / "jobs")
    newest = sorted((tmp_path / "work" / "jobs").iterdir())[-1] / "job.json"
    newest.write_text(json.dumps(json.loads(newest.read_text()) | {"state": "running"}))
    again = Jobs(tmp_path / "work", place / "bank", str(place / "base"))
    assert again.shown(again.ids[0])["state"] == "interrupted"


def test_without_a_folder_for_them_there_are_no_jobs(place: Path) -> None:
    with serving(place / "bank") as server:
        assert server.get("/v1/jobs").status_code == 404
        assert upload(server).status_code in (404, 405)
