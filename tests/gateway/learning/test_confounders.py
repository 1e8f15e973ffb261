"""Disguises: what anybody can put around a prompt."""

from gateway.learning.confounders import WORDS, dressed

PROMPTS = [f"What is {number} plus 3?" for number in range(200)]


def test_a_dressed_prompt_still_asks_its_question_and_differs_by_seed() -> None:
    """Every prompt stands whole in its disguise; another seed gives others, the same the same."""
    found = dressed(PROMPTS, seed=1)
    assert all(p in d and p != d for p, d in zip(PROMPTS, found, strict=True))
    assert found == dressed(PROMPTS, seed=1)
    assert found != dressed(PROMPTS, seed=2)


def test_words_of_the_gate_are_never_fitted_with() -> None:
    """Else the gate would measure memory."""
    kept = [word for words in WORDS.values() for word in words[1::2] if word.strip(" \n.-=\t")]
    assert kept
    assert not any(word.strip() in text for word in kept for text in dressed(PROMPTS, seed=3))
