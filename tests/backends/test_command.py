"""How commands that are processes of their own end."""

import pytest

from backends.command import exit_with


def interrupted() -> int:
    raise KeyboardInterrupt


def test_interrupted_command_ends_in_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C is no traceback, its code that of shells; else the command's code counts."""
    for main, code in ((interrupted, 130), (lambda: 3, 3)):
        with pytest.raises(SystemExit) as left:
            exit_with(main)
        assert left.value.code == code
    assert capsys.readouterr().err == "headgate: interrupted\n"
