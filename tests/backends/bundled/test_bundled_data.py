"""The data: what is asked in a test is never trained on."""

from pathlib import Path

from backends.bundled import facts
from backends.bundled.corpus import TEXT_FILES, read_tasks, read_texts
from backends.bundled.synthetic import make_tasks


def test_training_tasks_share_no_prompt_with_the_test(corpus: Path) -> None:
    """Fresh training rows of any seed avoid the corpus's test and validation questions."""
    kept = {task.prompt for split in ("valid", "test") for task in read_tasks(corpus, split)}
    assert kept
    for seed in (1, 2):
        made = {task.prompt for task in make_tasks(corpus, count=8000, split="train", seed=seed)}
        assert made
        assert not made & kept


def test_make_tasks_repeats_itself_for_a_seed(corpus: Path) -> None:
    """The same seed makes the same tasks, another seed others."""
    one, same, other = (make_tasks(corpus, count=50, split="train", seed=s) for s in (7, 7, 8))
    assert one == same
    assert one != other


def test_held_out_texts_are_kept_apart(tiny_corpus: Path) -> None:
    """No held-out text is in the training part, and none is lost."""
    for name in TEXT_FILES:
        train = read_texts(tiny_corpus, name, held_out=False)
        held_out = read_texts(tiny_corpus, name, held_out=True)
        assert not set(train) & set(held_out)
        assert len(train) + len(held_out) == 200


def test_facts_share_no_question_between_the_sides() -> None:
    """A question of the facts' test is not trained on, and both sides have many."""
    train = {prompt.lower() for prompt, _ in facts.make_facts(seed=1, split="train")}
    test = {prompt.lower() for prompt, _ in facts.make_facts(seed=1, split="test")}
    assert not train & test
    assert len(train) > 1500
    assert len(test) > 100


def test_facts_have_no_blank_left_open() -> None:
    """Every template is filled: no braces remain in questions, answers or dialogues."""
    pairs = facts.make_facts(seed=1, split="train")
    pairs += [
        turn for dialogue in facts.make_dialogues(pairs, count=200, seed=1) for turn in dialogue
    ]
    assert not [pair for pair in pairs if "{" in "".join(pair) or "}" in "".join(pair)]
