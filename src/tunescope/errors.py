"""The errors a user can cause and mend.

Every one carries a message that names the file, row, field or option and says what to do next. The command line
prints that message without a traceback and exits with code 2; from Python they are ordinary exceptions.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TunescopeError(Exception):
    """A problem in what was asked or given, with its remedy in the message."""


class UnknownNameError(TunescopeError):
    """A name that is not among the known ones.

    Args:
        kind: what was named, for example ``"method"``.
        name: what the user wrote.
        known: every valid name; the closest ones are suggested.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        known = sorted(known)
        close = difflib.get_close_matches(name, known, n=2, cutoff=0.5)
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        super().__init__(f"Unknown {kind} {name!r}.{hint} Known: {', '.join(known) or 'none'}.")


class SettingError(TunescopeError):
    """A setting with a bad value, or one that has no meaning where it was given.

    Args:
        owner: the class of settings, or the command.
        field: the setting's name. A caller that knows it by another one (a flag, a key of a file) says so with
            ``named``.
        reason: what is wrong, as a sentence without its full stop.
    """

    def __init__(self, owner: str, field: str, reason: str) -> None:
        self.field, self.reason = field, reason
        super().__init__(f"{owner}.{field}: {reason}.")

    def named(self, name: str) -> TunescopeError:
        """The same error about a setting of this name."""
        return TunescopeError(f"{name}: {self.reason}.")


class DataError(TunescopeError):
    """Rows or files that cannot be used as they are."""


class BaseModelError(TunescopeError):
    """A base model that is missing, broken, or of an architecture tunescope does not know."""


class BaseInUseError(TunescopeError):
    """A base that is asked to compute as two things at once: two customizations, or one and the base itself."""


class BankError(TunescopeError):
    """A customization at rest that does not fit: another base, missing or unexpected tensors, another template."""


class TrainingError(TunescopeError):
    """A run that cannot start or cannot go on."""


class TeamError(TrainingError):
    """A run of several processes of which one ended, or that do not do the same."""


class Interrupted(TunescopeError):
    """The user stopped the work; it was saved and can go on."""


class BusyError(TunescopeError):
    """Another process or thread writes there."""


class EngineError(TunescopeError):
    """A request that the engine cannot serve; the others go on."""


class QueueFullError(EngineError):
    """A request that the engine could serve later."""
