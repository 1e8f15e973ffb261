"""The data: what is asked in a test is never trained on."""

import json
import re
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest

from backends.bundled import facts
from backends.bundled.corpus import TEXT_FILES, read_tasks, read_texts
from backends.bundled.lessons import make_lessons
from backends.bundled.reading import MOST_CHARACTERS, make_readings
from backends.bundled.synthetic import LESSONS, load_generator, make_tasks
from backends.bundled.vocabulary import Vocabulary, read_vocabulary
from backends.evaluation.frozen import is_frozen


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


def test_lessons_share_no_question_between_the_sides() -> None:
    """Of each kind of lesson both sides have questions, and none is on both."""
    train, test = (make_lessons(seed=1, split=side) for side in ("train", "test"))
    assert train.keys() == test.keys() == {"science", "docs", "extraction", "summaries"}
    for kind in train:
        learned = {prompt.lower() for prompt, _ in train[kind]}
        asked = {prompt.lower() for prompt, _ in test[kind]}
        assert not learned & asked
        assert len(learned) > 1000
        assert len(asked) > 50


def test_lessons_stay_clear_of_the_frozen_questions() -> None:
    """Hardly a lesson asks what the evaluation asks; the library leaves those few out."""
    prompts = [p for pairs in make_lessons(seed=1, split="train").values() for p, _ in pairs]
    assert sum(map(is_frozen, prompts)) < 0.001 * len(prompts)


def test_extraction_lessons_answer_in_json_out_of_the_text() -> None:
    """Every answer parses, has the keys asked for, in their order, and values of the text."""
    for prompt, answer in make_lessons(seed=2, split="test")["extraction"]:
        found = json.loads(answer)
        assert len(found) > 1
        for key, value in found.items():
            assert key in prompt
            assert str(value) in prompt


def test_summary_lessons_are_one_sentence_about_the_text() -> None:
    """A summary names who, where and when, and is much shorter than what it sums up."""
    for prompt, answer in make_lessons(seed=2, split="test")["summaries"]:
        names = [word.strip(".") for word in answer.split() if word[0].isupper() and word != "On"]
        assert len(names) >= 2
        assert all(name in prompt for name in names)
        assert answer.count(".") == 1
        assert len(answer) < len(prompt) / 2


def test_tasks_follow_the_shares_asked_for(corpus: Path) -> None:
    """A share changes how often a function is drawn, and only that."""
    made = make_tasks(corpus, count=400, split="train", seed=3, shares={"add": 10_000})
    functions = Counter(task.task.split(":")[0] for task in made)
    assert functions["add"] > 300
    assert all(share > 0 for share in LESSONS.values())


def test_readings_ask_at_the_end_of_a_text_and_fit_a_row() -> None:
    """Every kind of reading ends with a known answer, or one that its text holds."""
    texts = ["The old mill stood by the river and turned all day. " * 200, "A short note."]
    questions = [("What is 2 + 3?", "5"), ("Capital of France?", "Paris")]
    readings = make_readings(texts, questions, count=400, seed=1)
    assert readings == make_readings(texts, questions, count=400, seed=1)
    for reading in readings:
        prompt, answer = reading[-1]
        known = any(prompt.endswith(asked) and answer == told for asked, told in questions)
        assert known or answer.removeprefix("It is ") in prompt
        assert sum(len(p) + len(a) for p, a in reading) < MOST_CHARACTERS * 1.2
    longest = max(len(reading[0][0]) for reading in readings)
    assert longest > MOST_CHARACTERS / 2
    assert max(map(len, readings)) > 20


def test_docs_lessons_ask_from_both_ends() -> None:
    """What a command does leads to the command, in words that are conjugated."""
    docs = dict(make_lessons(seed=1, split="train")["docs"])
    finds = [prompt for prompt in docs if prompt.startswith(("Which ", "Name the "))]
    assert len(finds) > 200
    assert "`headgate report costs`" in docs["Name the command that shows the costs."]
    assert any("tries a policy" in prompt for prompt in finds)


def test_vocabulary_widens_tasks_and_keeps_the_split(corpus: Path) -> None:
    """Words and names of the texts, about half of the time; no test question among the tasks."""
    vocabulary = read_vocabulary(corpus)
    if len(vocabulary.words) < 1000:
        pytest.skip("the tiny corpus has too few words")
    assert len(vocabulary.names) == 300
    assert "the" in vocabulary.words
    kept = {task.prompt for split in ("valid", "test") for task in read_tasks(corpus, split)}
    made = make_tasks(
        corpus, count=8000, split="train", seed=1, shares=LESSONS, vocabulary=vocabulary
    )
    assert not {task.prompt for task in made} & kept
    own = load_generator(corpus)
    spelled = [t.prompt.lower().split() for t in made if t.task == "string1:spell"]
    known = [any(word.strip('".,:') in own.WORDS for word in words) for words in spelled]
    assert 0.3 < sum(known) / len(known) < 0.7


def test_degrees_are_computed_exactly(corpus: Path) -> None:
    """Also where they are no multiple of five, which the generator never asks for."""
    vocabulary = Vocabulary(["stone"], ["Ada"])
    made = make_tasks(
        corpus, count=60, split="train", seed=2, shares={"temp": 10**6}, vocabulary=vocabulary
    )
    asked = {
        Fraction(re.findall(r"-?\d+", task.prompt)[0]): task.answer
        for task in made
        if task.task == "temp:c2f"
    }
    for celsius, answer in asked.items():
        assert Fraction(answer.split()[0]) == celsius * 9 / 5 + 32
    if asked:
        assert any(celsius % 5 for celsius in asked)
