"""A log that nobody reads holds nobody up."""

from __future__ import annotations

import json
import logging
import os
import threading
import time

from tunescope.serving.log import log_lines


def test_lines_come_in_order_and_go_nowhere_else() -> None:
    logger, (reading, writing) = logging.getLogger("tunescope.test-log"), os.pipe()
    with os.fdopen(writing, "w") as stream, log_lines(logger, stream):
        for number in range(3):
            logger.info(json.dumps({"number": number}))
        logger.debug("not this")
    with os.fdopen(reading) as found:
        assert [json.loads(line) for line in found] == [{"number": number} for number in range(3)]
    assert not logger.handlers and logger.propagate


def test_a_reader_that_stalls_costs_lines_and_no_time() -> None:
    logger, (reading, writing) = logging.getLogger("tunescope.test-stalled"), os.pipe()
    line = "x" * 4000
    found: list[str] = []
    stream = os.fdopen(writing, "w", buffering=1)

    def read() -> None:
        with os.fdopen(reading) as lines:
            for text in lines:
                found.append(text)

    with log_lines(logger, stream, waiting=10):
        begun = time.monotonic()
        for _ in range(100):  # a pipe holds 16 of them
            logger.info(line)
        assert time.monotonic() - begun < 1
        reader = threading.Thread(target=read)
        reader.start()
        until = time.monotonic() + 20
        while len(found) < 12 and time.monotonic() < until:
            time.sleep(0.01)
        logger.info("after")
    stream.close()
    reader.join()
    lost = next(json.loads(text)["lost_lines"] for text in found if text.startswith("{"))
    assert found[-1] == "after\n"
    assert lost + sum(text == line + "\n" for text in found) == 100
