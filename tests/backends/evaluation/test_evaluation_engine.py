"""Models in our own engine: the figures are right, repeat, and are the committed ones."""

import gzip
import json
import math
from collections import Counter
from pathlib import Path

import msgspec
import pytest
import torch

from backends.bundled import BUNDLED_MODELS, bundled_path
from backends.bundled.export import export_model
from backends.evaluation.candidate import CONCURRENT
from backends.evaluation.engine_candidate import EngineCandidate
from backends.evaluation.figures import Evaluation, judge, rates_by, stable
from backends.evaluation.items import Item, SuiteName, Text, read_items, read_texts
from backends.evaluation.outcomes import OUTCOMES, Outcome, read_outcomes
from backends.evaluation.run import measure, read_suites
from kernels.dispatch import forget_choices

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def nano() -> EngineCandidate:
    """The smallest shipped model."""
    return EngineCandidate("nano", "bundled:nano")


def ignore(count: int) -> None:
    """Take no notice of progress."""


def test_answers_are_those_of_transformers_and_their_logprobs_too(
    nano: EngineCandidate, tmp_path: Path
) -> None:
    """Text, mean log-probability and margin of an answer agree with another implementation; with
    int8 weights up to the rounding of activations to 16 bits, which moves them either way."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    export_model(bundled_path("nano"), None, tmp_path / "plain", dtype="float32")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "plain")
    items = read_items("tasks")[:12]
    plain = EngineCandidate("plain", str(tmp_path / "plain")).answer(items, ignore)
    moved = []
    for item, answer, coded in zip(items, plain, nano.answer(items, ignore), strict=True):
        chat = [{"role": "user", "content": item.prompt}]
        ids = tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )["input_ids"]
        with torch.inference_mode():
            written = model.generate(ids, do_sample=False, max_new_tokens=96)
            logprobs = model(written).logits[0, ids.shape[1] - 1 : -1].log_softmax(-1)
        answered = written[0, ids.shape[1] :]
        for ours in (answer, coded):
            assert ours.text == tokenizer.decode(answered, skip_special_tokens=True)
            assert ours.completion_tokens == len(answered)
        chosen = logprobs.gather(1, answered[:, None])[:, 0]
        assert answer.mean_logprob == pytest.approx(chosen.mean().item(), abs=1e-5)
        moved.append(abs(coded.mean_logprob - chosen.mean().item()))
        margins = logprobs.topk(2).values
        least = (margins[:, 0] - margins[:, 1]).min().item()
        assert answer.margin == pytest.approx(least, abs=1e-4)
        text = logprobs[: len(answered) - answer.ended]
        top = text.topk(5).values
        rest = 1 - top.exp().sum(1)
        entropy = -(top.exp() * top).sum(1) - rest * rest.clamp_min(1e-30).log()
        assert answer.certainty is not None
        assert answer.certainty.entropy == pytest.approx(entropy.mean().item(), abs=1e-4)
        mean = chosen[: len(text)].mean().item()
        assert answer.certainty.logprob == pytest.approx(mean, abs=1e-5)
    assert 0 < sum(moved) / len(moved) < 1e-4


def test_bits_per_byte_are_those_of_transformers(nano: EngineCandidate, tmp_path: Path) -> None:
    """The bits of a text are the cross-entropy over its bytes, its first token included."""
    from transformers import AutoModelForCausalLM

    export_model(bundled_path("nano"), None, tmp_path / "plain", dtype="float32")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", dtype=torch.float32).eval()
    texts = [Text(part="p", source="s", text=piece.text) for piece in read_texts()[:3]]
    nats = 0.0
    for text in texts:
        ids = torch.tensor([[2, *nano.tokenizer.encode(text.text)]])  # 2: end of a document
        with torch.inference_mode():
            logprobs = model(ids).logits[0, :-1].log_softmax(-1)
        nats -= logprobs.gather(1, ids[0, 1:, None]).sum().item()
    size = sum(len(text.text.encode()) for text in texts)
    assert nano.text_bits(texts)["p"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)


def test_measuring_twice_gives_the_same_figures(nano: EngineCandidate) -> None:
    """All but the machine time repeats exactly, whatever else was in the batch."""
    suites = read_suites(["lm", "chat"], limit=CONCURRENT + 3)
    first, second = (measure(nano, suites) for _ in range(2))
    assert stable(first.evaluation) == stable(second.evaluation)
    alone = nano.answer([first.asked["chat"][0][0]], ignore)[0]
    assert alone.text == first.asked["chat"][0][1].text


def test_question_that_does_not_fit_fails_alone(nano: EngineCandidate) -> None:
    """A prompt longer than the context is an error of its own and stops nothing."""
    items = [
        Item(id=str(n), prompt=prompt, answers=("x",), part="p", task="t")
        for n, prompt in enumerate(("Hello", "word " * 4000, "Hi there"))
    ]
    answers = nano.answer(items, ignore)
    assert [answer.error is None for answer in answers] == [True, False, True]
    assert answers[0].machine_ns
    assert judge(items, answers) == [False, False, False]


def committed(name: str) -> Evaluation:
    """The shipped figures of one model."""
    return msgspec.json.decode(
        (bundled_path(name) / "evaluation.json").read_bytes(), type=Evaluation
    )


@pytest.mark.parametrize("name", BUNDLED_MODELS)
def test_committed_table_follows_from_the_committed_outcomes(name: str) -> None:
    """The pass rates in a model's folder are those of the outcome rows, task by task."""
    rows = [row for row in read_outcomes() if row.suite == "tasks"]
    found = rates_by((row.task for row in rows), (row.scores[name] == 1.0 for row in rows))
    assert committed(name).by_task == found


def sure_rows(name: str, each: int) -> dict[str, Outcome]:
    """A few committed outcomes of every task function, none of them a near tie."""
    seen: Counter[str] = Counter()
    chosen = {}
    for row in read_outcomes():
        if name not in row.near_tie and seen[row.task] < each:
            seen[row.task] += 1
            chosen[row.id] = row
    return chosen


def answers_again(candidate: EngineCandidate, rows: dict[str, Outcome]) -> None:
    """The questions of these rows get the committed verdicts and lengths."""
    suites: tuple[SuiteName, ...] = ("tasks", "chat", "docs")
    items = [item for suite in suites for item in read_items(suite) if item.id in rows]
    answers = candidate.answer(items, ignore)
    name = candidate.name
    assert judge(items, answers) == [rows[item.id].scores[name] == 1.0 for item in items]
    tokens = [rows[item.id].completion_tokens[name] for item in items]
    assert [answer.completion_tokens for answer in answers] == tokens


@pytest.mark.parametrize("name", BUNDLED_MODELS)
def test_shipped_models_give_the_committed_answers_again(name: str) -> None:
    """A part of every task function, of chat and docs gives the committed verdicts exactly."""
    candidate = EngineCandidate(name, f"bundled:{name}")
    answers_again(candidate, sure_rows(name, 3))
    assert candidate.facts.weights == committed(name).model.weights


def test_committed_answers_do_not_depend_on_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eager torch gives what the C++ kernels gave, wherever an answer is no near tie."""
    monkeypatch.setenv("HEADGATE_KERNELS", "cpu")
    forget_choices()
    try:
        answers_again(EngineCandidate("nano", "bundled:nano"), sure_rows("nano", 2))
    finally:
        monkeypatch.undo()
        forget_choices()


def test_outcomes_cover_every_frozen_question() -> None:
    """One row a question, each with a verdict, tokens and a log-probability for every model."""
    rows = read_outcomes()
    suites: tuple[SuiteName, ...] = ("tasks", "chat", "docs")
    items = {item.id: item for suite in suites for item in read_items(suite)}
    assert [row.id for row in rows] == list(items)
    for row in rows:
        item = items[row.id]
        assert (row.prompt, row.split, row.task) == (item.prompt, item.split, item.task)
        for column in (row.scores, row.logprob, row.completion_tokens, row.machine_ns):
            assert set(column) == set(BUNDLED_MODELS)
    assert json.loads(gzip.decompress(OUTCOMES.read_bytes()).splitlines()[0])["cost_usd"]
