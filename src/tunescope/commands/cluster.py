"""Helpers of a comparison as tasks of a ray cluster (the extra ``ray``): each joins it, as ``compare --join`` does.

The lead runs where the command was given. A helper whose process or machine dies is started again elsewhere, and the
candidate that it was at goes on from its last checkpoint in whoever takes it first. All need the folder of ``--out``.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tunescope.errors import TunescopeError

if TYPE_CHECKING:
    from tunescope.commands.compare import CompareRequest

_STARTS_AGAIN = 3  # times that a helper is started anew after its process died; the lead does not need any
_PATIENCE = 60.0  # seconds that helpers have to find that the search is done


def check_ray() -> None:
    """See that ray is installed.

    Raises:
        TunescopeError: it is not.
    """
    if find_spec("ray") is None:
        raise TunescopeError("--ray needs ray: pip install 'tunescope[ray]'. --join needs nothing.")


@contextmanager
def helpers_on_ray(request: CompareRequest, device: torch.device, note: Callable[[str], Any]) -> Iterator[None]:
    """Helpers while this lasts, on the cluster that ``RAY_ADDRESS`` names or that runs here, or on a new one here.

    A helper takes as many CPUs as this process has threads, since figures are equal among equals only, and a GPU where
    the base lies on one.

    Args:
        request: the leading process's call; ``ray`` says how many.
        device: of its base.
        note: called with what a user should know: helpers that ended early, or have no place.

    Raises:
        TunescopeError: the cluster has no place for a single one.
    """
    import ray

    began = not ray.is_initialized()
    if began:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    running: list[Any] = []
    try:
        needs = {"CPU": torch.get_num_threads(), "GPU": 1 if device.type == "cuda" else 0}
        _check_room(ray.cluster_resources(), needs, request.ray, note)
        task = ray.remote(num_cpus=needs["CPU"], num_gpus=needs["GPU"], max_retries=_STARTS_AGAIN)(_help)
        helper = request.model_copy(update={"join": True, "ray": 0})
        running = [task.remote(helper, str(Path.cwd())) for _ in range(request.ray)]
        for each in running:
            each.future().add_done_callback(lambda ended: _say(ended, note) if running else None)
        yield
        ray.wait(running, num_returns=len(running), timeout=_PATIENCE)
    finally:
        left, running = running, []  # what ends from here on was told to
        for each in left:
            ray.cancel(each, force=True)
        if began:
            ray.shutdown()


def _help(request: CompareRequest, folder: str) -> str | None:
    """What a helper does, in the folder where the command was given; returns why it cannot."""
    try:
        os.chdir(folder)
        request.run()
    except (TunescopeError, OSError) as error:
        return str(error)
    return None


def _check_room(there: dict[str, float], needs: dict[str, int], count: int, note: Callable[[str], Any]) -> None:
    for kind, each in needs.items():
        places = int(there.get(kind, 0) // each) if each else count
        if not places:
            raise TunescopeError(
                f"The ray cluster has {there.get(kind, 0):g} {kind}s, and a helper takes {each}, as this process does. "
                f"Set OMP_NUM_THREADS to fewer threads, or leave --ray out."
            )
        if places < count:
            note(f"The ray cluster has {kind}s for {places} of the {count} helpers at a time.")


def _say(ended: Future[str | None], note: Callable[[str], Any]) -> None:
    error = ended.exception()
    reason = ended.result() if error is None else str(error)
    if reason is not None:
        note(f"A helper ended early, and the comparison goes on without it: {reason.splitlines()[0]}")
