"""Text comes out as early as it is certain, and ends at the first stop string."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from backends.engine.answer_text import AnswerText


class Pieces:
    """A detokenizer whose token i is the i-th of some pieces of text."""

    def __init__(self, pieces: Sequence[str], rest: str = "") -> None:
        self.pieces = pieces
        self.rest = rest

    def push(self, token_ids: Sequence[int]) -> str:
        """The pieces, joined."""
        return "".join(self.pieces[i] for i in token_ids)

    def flush(self) -> str:
        """What an incomplete character becomes."""
        return self.rest


def test_answer_text_stop_string_is_found_across_token_borders() -> None:
    """The part in an earlier token is held back, and never shown."""
    text = AnswerText(Pieces(["say EN", "D now"]), ("END",))
    assert text.push((0,)) == ("say ", 1, None)
    assert text.push((1,)) == ("", 1, "END")


def test_answer_text_held_back_text_is_released_when_it_is_no_stop() -> None:
    """A false alarm only delays."""
    text = AnswerText(Pieces(["E", "N", "X"]), ("END",))
    assert [text.push((i,))[0] for i in range(3)] == ["", "", "ENX"]


def test_answer_text_earliest_stop_wins() -> None:
    """Of several stops in one token the first in the text ends it."""
    text = AnswerText(Pieces(["a\nb;c"]), (";", "\n"))
    assert text.push((0,)) == ("a", 1, "\n")


def test_answer_text_tokens_after_a_stop_are_not_counted() -> None:
    """Of several tokens at once those after the stop string do not belong to the answer."""
    text = AnswerText(Pieces(["a", "b", "c", "d"]), ("bc",))
    assert text.push((0, 1, 2, 3)) == ("a", 3, "bc")


def test_answer_text_unchecked_tokens_cannot_stop() -> None:
    """Before min_tokens a stop string is plain text."""
    text = AnswerText(Pieces(["ab", "x", "ab"]), ("ab",))
    assert text.push((0, 1, 2), unchecked=2) == ("abx", 3, "ab")


def test_answer_text_flush_gives_what_was_held() -> None:
    """An answer that ends with the beginning of a stop string keeps it."""
    text = AnswerText(Pieces(["so EN"], rest="\ufffd"), ("END",))
    assert text.push((0,))[0] == "so "
    assert text.flush() == ("EN\ufffd", None)


@given(
    pieces=st.lists(st.text("ab", min_size=0, max_size=3), max_size=12),
    stops=st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
    groups=st.lists(st.integers(1, 3), min_size=12, max_size=12),
)
def test_answer_text_is_the_text_before_the_first_stop(
    pieces: list[str], stops: list[str], groups: list[int]
) -> None:
    """However tokens are cut and grouped: what comes out is the text up to the first stop string,
    nothing comes out that must be taken back, and nothing certain is held."""
    text = AnswerText(Pieces(pieces), tuple(stops))
    shown, stop, used, place = "", None, 0, 0
    for size in groups:
        tokens = tuple(range(place, min(place + size, len(pieces))))
        place += len(tokens)
        new, count, stop = text.push(tokens)
        shown, used = shown + new, used + count
        if stop is not None:
            break
    if stop is None:
        rest, stop = text.flush()
        shown += rest
    # The model of it: the shortest beginning, in whole tokens, that contains a stop string.
    for count in range(1, len(pieces) + 1):
        whole = "".join(pieces[:count])
        found = [whole.index(s) for s in stops if s in whole]
        if found:
            assert (shown, used) == (whole[: min(found)], count)
            assert stop is not None
            return
    assert (shown, stop) == ("".join(pieces), None)
