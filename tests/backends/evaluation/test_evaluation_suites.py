"""The frozen suites: small, whole, as their builder writes them, and never trained on."""

import gzip
import os
import shutil
from collections import Counter
from hashlib import sha256
from pathlib import Path

import pytest

from backends.bundled import facts
from backends.bundled.corpus import TEXT_FILES, read_chat, read_tasks, read_texts
from backends.bundled.lessons import make_lessons
from backends.bundled.shelves import allowed
from backends.bundled.synthetic import make_tasks
from backends.evaluation import build
from backends.evaluation.errors import EvaluationError, UsageError
from backends.evaluation.frozen import (
    ROUTER_TEST_SHARE,
    SUITES_FOLDER,
    is_frozen,
    is_router_test,
    prompt_hash,
)
from backends.evaluation.items import Item, SuiteName, read_item_file, read_items, read_manifest
from backends.evaluation.items import read_texts as read_pieces
from backends.evaluation.unseen import FUNCTIONS

QUESTIONS: tuple[SuiteName, ...] = ("tasks", "chat", "docs")


@pytest.fixture(scope="module")
def corpus() -> Path:
    """The real corpus: HEADGATE_CORPUS, or beside the checkout."""
    beside = Path(__file__).parents[4] / "shared" / "corpus"
    folder = Path(os.environ.get("HEADGATE_CORPUS") or beside)
    if not (folder / "make_synthetic.py").is_file():
        pytest.skip("no corpus here")
    return folder


def frozen_items() -> list[Item]:
    """Every question of every suite."""
    return [item for name in QUESTIONS for item in read_items(name)]


def test_suites_are_small_whole_and_carry_their_licences() -> None:
    """All files together stay under 2 MB, hold what the manifest says, and bring a notice."""
    assert sum(file.stat().st_size for file in SUITES_FOLDER.iterdir()) <= 2_000_000
    manifest = read_manifest()
    for name in QUESTIONS:
        assert len(read_items(name)) == manifest[name].rows
    assert len(read_pieces()) == manifest["lm"].rows
    notice = (SUITES_FOLDER / "NOTICE.md").read_text()
    parts = {item.part for item in frozen_items()} | {text.part for text in read_pieces()}
    assert [part for part in parts if part not in notice] == []


def test_every_question_can_be_told_apart_and_judged() -> None:
    """Ids and prompts are unique, and each question but the fluent ones has an answer."""
    items = frozen_items()
    assert max(Counter(item.id for item in items).values()) == 1
    assert max(Counter(prompt_hash(item.prompt) for item in items).values()) == 1
    assert [item.id for item in items if not item.answers and item.match != "fluent"] == []


def test_every_question_passes_with_its_own_answer() -> None:
    """The scoring accepts what the suite itself calls right."""
    from backends.evaluation.scoring import passes

    said = {"fluent": "It is about {}."}
    failing = [
        i.id
        for i in frozen_items()
        for a in i.answers
        if not passes(i, said.get(i.match, "{}").replace("{}", a))
    ]
    assert failing == []


def test_suites_are_what_the_builder_writes(corpus: Path, tmp_path: Path) -> None:
    """Building again gives the same rows, hashes and manifest."""
    build.build(corpus, tmp_path)
    assert read_manifest(tmp_path) == read_manifest()
    assert (tmp_path / "frozen.txt").read_bytes() == (SUITES_FOLDER / "frozen.txt").read_bytes()
    for name in QUESTIONS:
        assert read_items(name, tmp_path) == read_items(name)


def test_no_frozen_prompt_is_in_the_lessons(corpus: Path) -> None:
    """Hash against hash: the corpus's training side, fresh tasks of any seed, our own facts."""
    frozen = {sha256(item.prompt.encode()).digest() for item in frozen_items()}
    lessons = [turn.prompt for turn in read_chat(corpus, "train")]
    lessons += [task.prompt for split in ("train", "valid") for task in read_tasks(corpus, split)]
    for seed in (1, 2):
        made = make_tasks(corpus, count=20_000, split="train", seed=seed)
        lessons += [task.prompt for task in made]
        lessons += [prompt for prompt, _ in facts.make_facts(seed=seed, split="train")]
        own = make_lessons(seed=seed, split="train")
        lessons += [prompt for pairs in own.values() for prompt, _ in pairs]
    assert not frozen & {sha256(prompt.encode()).digest() for prompt in lessons}


def test_lessons_leave_out_frozen_prompts_whoever_wrote_them() -> None:
    """A frozen prompt that some generator asks, in whatever case, is not put on a shelf."""
    item = frozen_items()[0]
    assert allowed([[(item.prompt.upper(), "x")], [("Is this new?", "Yes.")]]) == [
        [("Is this new?", "Yes.")]
    ]


def test_no_held_out_text_is_in_the_lessons(corpus: Path) -> None:
    """No whole paragraph of the `lm` suite stands in a text that training reads."""
    lessons = {
        paragraph
        for name in TEXT_FILES
        for text in read_texts(corpus, name, held_out=False)
        for paragraph in text.split("\n")
    }
    long = [
        paragraph
        for piece in read_pieces()
        for paragraph in piece.text.split("\n")[1:-1]
        if len(paragraph) > 100
    ]
    assert len(long) > 200
    assert [paragraph for paragraph in long if paragraph in lessons] == []


def test_frozen_prompts_are_known_in_any_case_and_spacing() -> None:
    """The committed hashes are those of the suites, and a prompt cannot hide from them."""
    items = frozen_items()
    assert all(is_frozen(item.prompt) for item in items)
    assert is_frozen(f"  {items[0].prompt.upper()} ")
    assert not is_frozen("What is 1 + 1, and why do you ask?")
    assert len((SUITES_FOLDER / "frozen.txt").read_text().split()) == len(items)


def test_routers_have_a_frozen_part_of_their_own() -> None:
    """About two in five prompts are marked so that no router is fitted on them."""
    items = frozen_items()
    test = [item for item in items if item.split == "test"]
    assert all(is_router_test(item.prompt) == (item.split == "test") for item in items)
    assert abs(len(test) / len(items) - ROUTER_TEST_SHARE) < 0.03


def test_at_least_four_task_functions_are_unseen() -> None:
    """The tasks suite has functions of its own that no generator of lessons shares."""
    unseen = {item.task for item in read_items("tasks") if item.part == "unseen"}
    others = {item.task for item in read_items("tasks") if item.part != "unseen"}
    assert unseen == {function.__name__ for function in FUNCTIONS}
    assert len(unseen) >= 4
    assert not unseen & others


def test_routing_prompts_are_neither_lessons_nor_frozen(corpus: Path) -> None:
    """The prompts for the request classifier come from the validation side alone."""
    prompts = {item.prompt for item in build.routing_items(corpus)}
    assert len(prompts) > 5000
    made = {task.prompt for task in make_tasks(corpus, count=8000, split="train", seed=1)}
    assert not prompts & made
    assert not any(map(is_frozen, prompts))


def test_damaged_suite_is_named(tmp_path: Path) -> None:
    """A cut file and a changed one are refused with the file's name."""
    folder = tmp_path / "suites"
    shutil.copytree(SUITES_FOLDER, folder)
    file = folder / "tasks.jsonl.gz"
    whole = file.read_bytes()
    file.write_bytes(whole[:-200])
    with pytest.raises(EvaluationError, match=r"tasks\.jsonl\.gz.*cut or damaged"):
        read_items("tasks", folder)
    file.write_bytes(gzip.compress(gzip.decompress(whole).replace(b"782", b"783")))
    with pytest.raises(EvaluationError, match="not the one that was packaged"):
        read_items("tasks", folder)
    file.unlink()
    with pytest.raises(EvaluationError, match="missing"):
        read_items("tasks", folder)


def test_own_questions_are_read_and_their_mistakes_named(tmp_path: Path) -> None:
    """A user's file needs prompt and answer; a bad line is named by its number."""
    file = tmp_path / "mine.jsonl"
    file.write_text('{"prompt": "Capital of France?", "answer": "Paris", "match": "phrase"}\n\n')
    (item,) = read_item_file(file)
    assert (item.id, item.task, item.answers, item.match) == (
        "mine-1",
        "mine",
        ("Paris",),
        "phrase",
    )
    for line, complaint in (
        ('{"prompt": "x"}', "line 1 .* has no answer"),
        ('{"prompt": 3, "answer": "x"}', "line 1"),
        ('{"prompt": "x", "answer": "y", "colour": 1}', "line 1 .*colour"),
        ("not json", "line 1"),
        ("", "there are none"),
    ):
        file.write_text(line + "\n")
        with pytest.raises(UsageError, match=complaint):
            read_item_file(file)
    with pytest.raises(UsageError, match="cannot be read"):
        read_item_file(tmp_path / "none.jsonl")
