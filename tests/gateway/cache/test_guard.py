"""The guard tells paraphrases from look-alikes."""

import pytest

from gateway.cache.guard import difference


@pytest.mark.parametrize(
    ("asked", "stored"),
    [
        ("What is the capital of France?", "Tell me the capital of France."),
        ("What is the capital of france", "Which city is the capital of France?"),
        ("How do I reset my password?", "how can i reset my password"),
        ("What year was Einstein born?", "When was Einstein born?"),
        ("Who wrote Hamlet?", "Who is the writer that wrote Hamlet?"),
        ("What is 2 + 3?", "Please tell me what 2 + 3 is"),
    ],
)
def test_guard_accepts_paraphrases(asked: str, stored: str) -> None:
    """Other words around the same content are the same question."""
    assert difference(asked, stored) is None


@pytest.mark.parametrize(
    ("asked", "stored"),
    [
        ("Turn on the kitchen light", "Turn off the kitchen light"),
        ("How do I enable dark mode?", "How do I disable dark mode?"),
        ("What is 2 + 3?", "What is 2 + 4?"),
        ("What is 12 - 5?", "What is 5 - 12?"),
        ("What is five times two?", "What is five times three?"),
        ("Can I eat before surgery?", "Can I not eat before surgery?"),
        ("Should I take it with food?", "Shouldn't I take it with food?"),
        ("What is the capital of France?", "What is the capital of Spain?"),
        ("capital of france?", "capital of spain?"),
        ("Is Anna taller than Ben?", "Is Ben taller than Anna?"),
        ("convert 5 miles to km", "convert 5 miles to feet"),
        ("When was Einstein born?", "Where was Einstein born?"),
        ("Who is the oldest president?", "Who is the youngest president?"),
        ("Translate dog to German", "Translate dog to French"),
        ("Hello world", "What is 1+1?"),
    ],
)
def test_guard_refuses_look_alikes(asked: str, stored: str) -> None:
    """Numbers, negation, antonyms, names, order and an exchanged word each change the question."""
    assert difference(asked, stored) is not None
    assert difference(stored, asked) is not None
