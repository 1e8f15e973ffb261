"""Prompt lookup finds what followed the same tokens before."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.contract import SamplingParams
from backends.engine.request import Request
from backends.speculation.ngram import NgramProposer


def request_for(tokens: list[int]) -> Request:
    """A sequence that has reached these tokens."""
    return Request(request_id="r", prompt_token_ids=tokens, params=SamplingParams(), max_tokens=100)


def guess(tokens: list[int], limit: int = 4) -> list[int]:
    """One guess of a fresh proposer."""
    return NgramProposer().propose([request_for(tokens)], [limit])[0]


def test_ngram_proposes_what_followed_before() -> None:
    """The last two tokens occurred once before: what followed there is proposed."""
    assert guess([1, 2, 3, 4, 5, 6, 9, 1, 2]) == [3, 4, 5, 6]
    assert guess([1, 2, 3, 4, 5, 6, 9, 1, 2], limit=2) == [3, 4]


def test_ngram_has_nothing_to_say_about_new_tokens() -> None:
    """Without an earlier occurrence of two tokens there is no guess."""
    assert guess([1, 2, 3, 4, 5]) == []
    assert guess([1]) == []


def test_ngram_longest_match_wins_over_the_newest() -> None:
    """Four tokens in agreement say more than two, however long ago."""
    assert guess([1, 2, 3, 4, 7, 9, 3, 4, 8, 1, 2, 3, 4], limit=1) == [7]


def test_ngram_newest_of_equally_long_matches_wins() -> None:
    """Of two occurrences the later one is followed."""
    assert guess([1, 2, 7, 5, 1, 2, 8, 6, 1, 2], limit=1) == [8]


def test_ngram_a_loop_is_continued_around() -> None:
    """A match that overlaps the end is repeated up to the limit."""
    assert guess([9, 1, 2, 1, 2, 1, 2], limit=6) == [1, 2, 1, 2, 1, 2]


def test_ngram_sizes_must_make_sense() -> None:
    """A shortest n-gram above the longest is refused."""
    with pytest.raises(ValueError, match="3 to 2"):
        NgramProposer(longest=2, shortest=3)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(1, 8), st.data())
def test_ngram_incremental_index_is_as_a_search_from_scratch(
    tokens: list[int], limit: int, data: st.DataObject
) -> None:
    """Growing by any steps, the guess is what a plain backward search finds."""
    cuts = data.draw(st.lists(st.integers(1, len(tokens)), max_size=6).map(sorted))
    request = request_for([])
    proposer = NgramProposer()
    for end in [*cuts, len(tokens)]:
        request.token_ids = tokens[:end]
        found = proposer.propose([request], [limit])[0]
        assert found == _search(tokens[:end], limit)


def _search(tokens: list[int], limit: int) -> list[int]:
    for size in (4, 3, 2):
        for end in range(len(tokens) - 1, size - 1, -1):
            if tokens[end - size : end] == tokens[-size:]:
                period = len(tokens) - end
                return [tokens[end + i % period] for i in range(limit)]
    return []
