"""How the commands of this package that run as processes of their own end."""

import sys
from collections.abc import Callable
from typing import NoReturn


def exit_with(main: Callable[[], int]) -> NoReturn:
    """Exit with the command's code; Ctrl-C ends it in a word, with the code that shells expect."""
    try:
        code = main()
    except KeyboardInterrupt:
        print("headgate: interrupted", file=sys.stderr)
        code = 130
    sys.exit(code)
