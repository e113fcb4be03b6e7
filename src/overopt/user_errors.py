"""How every command and script ends: errors of the user on one line, a stop as a stop."""

import os
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn


@contextmanager
def one_line_errors() -> Iterator[None]:
    """User errors end with exit code 2 and one last line that says what is wrong; ours keep their traceback."""
    # A terminated run is a stopped run: it must close its tracking, as on Ctrl-C.
    signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        if not _reader_has_gone():
            raise
        sys.exit(141)  # as a shell has it
    except KeyboardInterrupt:
        print("interrupted: start the same command again to go on", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if os.environ.get("OVEROPT_TRACEBACK") or not is_user_error(error):
            raise
        fail(error)


def _reader_has_gone() -> bool:
    """Whether it was our output that nobody takes any more, as in ``overopt advise | head -3``."""
    output = sys.stdout.fileno()
    poll = select.poll()
    poll.register(output, select.POLLERR)
    gone = bool(poll.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), output)  # or Python tries once more at exit
    return gone


def is_user_error(error: BaseException) -> bool:
    """Whether an error is the user's to mend; ours keep their traceback."""
    if isinstance(error, (ValueError, FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)):
        return True
    return type(error).__name__ in ("ArgumentError", "MisconfigurationException")


def fail(error: BaseException) -> NoReturn:
    """End with exit code 2; the message is the last line, on one line."""
    reason: BaseException | None = error
    # Of an option that may be absent, jsonargparse tells all that it has tried; what went wrong lies beneath.
    while reason is not None and "any of the Union subtypes" in str(reason):
        reason = reason.__cause__ or reason.__context__
    lines = [line.strip() for line in str(reason or error).splitlines() if line.strip()]
    print("error: " + " ".join(lines), file=sys.stderr)
    sys.exit(2)


def _terminate(*_: object) -> NoReturn:
    sys.exit(143)
