"""A repeated body costs a look-up, and nothing stale is ever used."""

import pytest

from backends.wire import ChatCompletionRequest, Message
from gateway import repeats
from gateway.repeats import Asked, Repeats


def _asked(text: str = "hi") -> Asked:
    request = ChatCompletionRequest(model="auto", messages=[Message(role="user", content=text)])
    return Asked(request, {}, [])


def test_result_is_recalled_for_equal_inputs_only() -> None:
    """What was computed from other inputs is never used; the newest result replaces the last."""
    asked = _asked()
    cards = {"small": 1}
    assert asked.recall("routed", (cards, 0.5)) is None
    assert asked.remember("routed", (cards, 0.5), "small") == "small"
    assert asked.recall("routed", ({"small": 1}, 0.5)) == "small", "equal, though not the same"
    assert asked.recall("routed", (cards, 0.6)) is None
    assert asked.recall("key", (cards, 0.5)) is None
    asked.remember("routed", (cards, 0.6), "base")
    assert asked.recall("routed", (cards, 0.5)) is None
    assert asked.recall("routed", (cards, 0.6)) == "base"


def test_body_is_known_by_endpoint_and_bytes() -> None:
    """The same bytes on another path are another request."""
    known, asked = Repeats(), _asked()
    known.put("chat/completions", b"{}", asked)
    assert known.get("chat/completions", b"{}") is asked
    assert known.get("completions", b"{}") is None
    assert known.get("chat/completions", b"{ }") is None


def test_memory_is_bounded_and_the_longest_unasked_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither many bodies nor a long one fill the memory; what is asked again stays."""
    monkeypatch.setattr(repeats, "MAX_BODIES", 3)
    known = Repeats()
    for name in (b"a", b"b", b"c"):
        known.put("chat/completions", name, _asked())
    assert known.get("chat/completions", b"a") is not None
    known.put("chat/completions", b"d", _asked())
    found = [n for n in (b"a", b"b", b"c", b"d") if known.get("chat/completions", n)]
    assert found == [b"a", b"c", b"d"]
    long = b"x" * (repeats.MAX_BODY_BYTES + 1)
    known.put("chat/completions", long, _asked())
    assert known.get("chat/completions", long) is None
