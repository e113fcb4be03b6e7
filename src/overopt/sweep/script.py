"""How the scripts in ``sweeps/`` end: one line for a user's error, no traceback."""

import os
import sys
from collections.abc import Callable


def end(main: Callable[[], object]) -> None:
    """Run a script's main function; a ValueError is the user's, and its message all that is said."""
    try:
        main()
    except ValueError as error:
        if os.environ.get("OVEROPT_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
