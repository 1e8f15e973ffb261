"""Server-sent events out of arbitrary pieces of bytes."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.client.sse_reader import SSEReader

EVENTS = ["{}", '{"text": "héllo 你好 🎉"}', "[DONE]", '{"a":\n1}']


@given(
    events=st.lists(st.sampled_from(EVENTS)),
    newline=st.sampled_from(["\n", "\r\n", "\r"]),
    space=st.sampled_from(["", " "]),
    noise=st.sampled_from(["", ": ping", "event: message", "id: 7", ": ping\n\n"]),
    cuts=st.lists(st.integers(0, 10_000)),
)
def test_events_are_the_same_wherever_the_bytes_are_cut(
    events: list[str], newline: str, space: str, noise: str, cuts: list[int]
) -> None:
    """Line ends, comments, several data lines and chunk borders do not change the events."""
    text = "\ufeff"
    for event in events:
        text += f"{noise}\n" if noise else ""
        text += "".join(f"data:{space}{line}\n" for line in event.split("\n")) + "\n"
    # A last line after a lone CR only ends when another byte shows that no LF follows.
    data = (text.replace("\n", newline) + ": end").encode()
    borders = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    reader = SSEReader()
    found = [
        event
        for start, end in itertools.pairwise(borders)
        for event in reader.feed(data[start:end])
    ]
    assert [event.decode() for event in found] == events


def test_endless_line_is_refused() -> None:
    """A server that never ends a line cannot fill the memory."""
    reader = SSEReader()
    reader.feed(b"data: " + b"x" * 10_000_000)
    with pytest.raises(ValueError, match="16 MiB"):
        reader.feed(b"x" * 10_000_000)
