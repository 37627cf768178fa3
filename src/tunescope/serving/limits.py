"""What a server takes from strangers, and how much of it."""

from __future__ import annotations

from pydantic import Field

from tunescope.settings import Duration, Settings


class Limits(Settings):
    """What a server allows; each is a flag of ``tunescope serve``."""

    max_tokens: int = Field(1024, gt=0)
    """Most new tokens of an answer, and what a request gets that doesn't say; fewer where the context ends."""
    max_samples: int = Field(16, gt=0)
    """Most answers to one request (n, or prompts of one call)."""
    max_inputs: int = Field(256, gt=0)
    """Most inputs of a call of /classify, /score or /pooling."""
    max_body_kb: int = Field(1024, gt=0)
    """Largest body of a request, in 1,000 bytes."""
    max_upload_mb: int = Field(64, gt=0)
    """Largest file of rows that the studio takes, in 1,000,000 bytes."""
    max_waiting: int = Field(256, gt=0)
    """Requests that may wait; one more is answered 429. Half of the places are kept for other customizations."""
    timeout: Duration = 600.0
    """Longest time for a request, waiting included; then it is answered 504."""
    grace: Duration = 30.0
    """How long requests under way may go on when the server is stopped."""
    allow_updates: bool = False
    """Let clients load, replace and unload customizations, from inside the bank only."""
    log_texts: bool = False
    """Write prompts and answers into the log, too."""
