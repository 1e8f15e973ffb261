"""Text in CSV cells: data, whatever a spreadsheet makes of it."""

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def safe_cell(value: str | None) -> str:
    """A text as a CSV cell that no spreadsheet takes for a formula."""
    if value is None:
        return ""
    return f"'{value}" if value.startswith(_FORMULA) else value
