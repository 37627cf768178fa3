"""Work on what strangers wrote, in a process of its own that is ended when it takes too long or too much memory."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from tunescope.errors import TunescopeError

_MEMORY = 1 << 30  # bytes of addresses, several times what Python and a template engine need
_CHILD = f"""
import contextlib, importlib, json, resource, sys
with contextlib.suppress(ValueError, OSError):  # some systems know no such limit
    resource.setrlimit(resource.RLIMIT_AS, ({_MEMORY}, {_MEMORY}))
job = json.load(sys.stdin)
sys.path[:] = job["path"]
function = getattr(importlib.import_module(job["module"]), job["function"])
json.dump(function(*job["arguments"]), sys.stdout)
"""


class TooMuch(TunescopeError):
    """The work was ended before it was done."""


def call(function: Callable[..., Any], *arguments: Any, seconds: float = 10.0) -> Any:
    """What ``function(*arguments)`` returns, computed in another process; it takes about 0.1 s to start.

    Args:
        function: of a module's top level. Its arguments and what it returns are values that JSON can write.
        arguments: for it.
        seconds: after which the process is killed. It is also ended at 1 GB of memory.

    Raises:
        TooMuch: it took too long, or ended in an exception.
    """
    job = {"path": sys.path, "module": function.__module__, "function": function.__name__, "arguments": arguments}
    command, given = [sys.executable, "-I", "-c", _CHILD], json.dumps(job, default=str)
    try:
        ended = subprocess.run(command, input=given, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise TooMuch(f"did not end within {seconds:g} s") from None
    if ended.returncode:
        last = (ended.stderr.strip().splitlines() or [f"it was ended by the system ({ended.returncode})"])[-1]
        raise TooMuch(f"failed: {last}")
    return json.loads(ended.stdout)


def matches(patterns: list[str], texts: list[str], whole: bool) -> list[dict[str, str]]:
    """For each regular expression: the texts that it matches from their first character on (to their last one where
    ``whole``), with what its last group holds.
    """
    found = []
    for pattern in map(re.compile, patterns):
        tried = {text: pattern.fullmatch(text) if whole else pattern.match(text) for text in texts}
        found.append({text: match[pattern.groups] or "" for text, match in tried.items() if match})
    return found
