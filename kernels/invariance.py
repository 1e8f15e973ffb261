"""Batch invariance on GPUs: for every number of rows the same kernel with the same tiles.

Which tiles are fastest depends on how many rows there are, and so do the order of additions and the
last bits. Where a process has promised that an answer does not depend on its company, ops choose as
if there were always `ROWS` rows, and a context is never split. In C++ on a CPU it is always so.
"""

ROWS = 64
"""Enough that prompts are not read row by row; a decode step is bound by memory either way."""

_promises: list[str] = []


def promise() -> None:
    """From now on, in this whole process. Steps recorded before are not changed by it."""
    if not _promises:
        _promises.append("batch invariance")


def forget() -> None:
    """Choose by the number of rows again."""
    _promises.clear()


def is_promised() -> bool:
    """Whether ops must choose alike for any number of rows."""
    return bool(_promises)


def rows_to_choose_by(rows: int) -> int:
    """The number of rows that a choice may depend on."""
    return ROWS if _promises else rows
