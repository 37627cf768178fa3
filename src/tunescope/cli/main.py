"""Where a command begins and how it ends: exit code 0, 2 for what the user can mend, 130 after Ctrl-C."""

from __future__ import annotations

import errno
import os
import sys

import click

from tunescope.errors import TunescopeError


def main(arguments: list[str] | None = None) -> None:
    """Run one command and exit."""
    arguments = sys.argv[1:] if arguments is None else arguments
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        from tunescope.cli.app import build_app

        sys.exit(build_app().main(args=arguments, prog_name="tunescope", standalone_mode=False) or 0)
    except click.ClickException as error:  # what was typed is no command, or not all of one
        error.show()
        sys.exit(error.exit_code)
    except TunescopeError as error:
        from tunescope.errors import Interrupted

        _say(str(error))
        sys.exit(130 if isinstance(error, Interrupted) else 2)
    except (KeyboardInterrupt, click.Abort):
        _say("Stopped.")
        sys.exit(130)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        _say("There is not enough memory for this. Ask for less (a smaller base, rank, batch or length, or bfloat16).")
        sys.exit(2)
    except BrokenPipeError:  # the reader of our output went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            _say(f"The disk is full ({error.filename or 'while writing'}). Free some space and run the command again.")
        elif error.filename and error.strerror:  # a path that the system refuses: too long, under a file, protected
            _say(f"{_shortened(str(error.filename))}: {error.strerror}. Check the path and who may use it.")
        else:
            raise
        sys.exit(2)


# Libraries that talk: their warnings and bars are not about what the user asked for.
_QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed; torch has an error of its own for accelerators only."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or "can't allocate memory" in str(error)


def _say(message: str) -> None:
    from rich.text import Text

    from tunescope.cli.output import SafeConsole
    from tunescope.commands.show import visible

    SafeConsole(stderr=True).print(Text("Error: ", style="bold red") + Text(visible(message)), soft_wrap=True)


def _shortened(path: str, most: int = 200) -> str:
    return path if len(path) <= most else f"{path[:most]}… ({len(path)} characters)"
