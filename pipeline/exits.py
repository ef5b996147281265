"""Exit codes of `lyapsweep`, and what a fault says to whoever typed the command.

0 done; 2 bad usage or configuration, nothing was started; 1 something failed; 130 interrupted,
`lyapsweep resume` goes on. A fault of ours or of the system is one line each on standard error;
any other exception is a bug and keeps its traceback.
"""

import os
import sys
from collections.abc import Callable
from typing import NoReturn

import typer

# typer brings its own copy of click; this is the base of what it raises for bad usage.
_ClickException: type[Exception] = typer.BadParameter.__mro__[2]

OK, FAILED, BAD_USAGE, INTERRUPTED = 0, 1, 2, 130

# Faults of what the user asked for, by class name so that nothing heavy is imported for them.
_BAD_USAGE = {
    "ConfigError",
    "UnknownNameError",
    "UnsuitableError",
    "MissingDataError",
    "CorruptDataError",
    "TableError",
    "TransferError",
    "NameInUseError",
    "NoSuchSweepError",
    "BadNameError",
}
_OURS = ("pipeline.", "tasks.", "analysis.")


def finish(command: Callable[[], object]) -> NoReturn:
    """Runs a command and leaves Python with the code that it ended with."""
    try:
        code = command()
        sys.exit(code if isinstance(code, int) else OK)
    except typer.Abort:
        sys.exit(INTERRUPTED)
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        sys.exit(INTERRUPTED)
    except _ClickException as error:
        error.show()  # type: ignore[attr-defined]
        sys.exit(BAD_USAGE)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)
    except Exception as error:
        code = _exit_code(error)
        if code is None:
            raise
        for line in _message(error).splitlines():
            typer.echo(f"lyapsweep: {line}", err=True)
        sys.exit(code)


def _exit_code(error: Exception) -> int | None:
    """The code for an error of ours or of the system; None for what can only be a bug."""
    kind = type(error)
    if kind.__name__ in _BAD_USAGE:
        return BAD_USAGE
    if kind.__module__.startswith(_OURS) or isinstance(error, OSError):
        return FAILED
    return None


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or ''}: {error.strerror}".lstrip(": ")
    return str(error)
