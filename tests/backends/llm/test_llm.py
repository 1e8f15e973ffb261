"""`LLM.generate`: exact against transformers; the same in any batch, guessing or not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_tokenizers import save_folder

from backends import LLM, SamplingParams
from backends.errors import ContextLengthError, InvalidRequestError, ModelLoadError

PROMPTS = [
    "the quick brown fox",
    "numbers 1 2 3 4 and numbers 1 2 3 4 and",
    "héllo",
    "the cat sat on the mat and the dog sat on the log and the cat sat on the",
]
GREEDY = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True)


@pytest.fixture(scope="module")
def folder(make_checkpoint: Callable[..., Path]) -> Path:
    """Return a random Llama with a byte-level tokenizer."""
    return save_folder(make_checkpoint(seed=3))


@pytest.fixture(scope="module")
def draft_folder(make_checkpoint: Callable[..., Path]) -> Path:
    """Return a smaller random Llama with the same tokenizer."""
    return save_folder(make_checkpoint(seed=4, num_hidden_layers=1, hidden_size=32, head_dim=16))


def _llm(folder: Path, **options: Any) -> LLM:
    options.setdefault("speculation", {"method": "off"})
    return LLM(str(folder), dtype="float32", threads=1, **options)


def _tokens(llm: LLM, params: SamplingParams | list[SamplingParams] = GREEDY) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in llm.generate(PROMPTS, params)]


@pytest.fixture(scope="module")
def plain(folder: Path) -> list[list[int]]:
    """Return the greedy answers of one prompt after another, without speculation."""
    llm = _llm(folder)
    return [llm.generate(prompt, GREEDY)[0].outputs[0].token_ids for prompt in PROMPTS]


def test_models_own_defaults_hold_without_params(
    make_checkpoint: Callable[..., Path], plain: list[list[int]]
) -> None:
    """generation_config.json decides how a bare `generate` samples, unless told otherwise."""
    folder = save_folder(make_checkpoint(seed=3))
    config = json.loads((folder / "generation_config.json").read_text())
    own = {**config, "temperature": 0.0, "max_new_tokens": 9}
    (folder / "generation_config.json").write_text(json.dumps(own))
    llm = _llm(folder)
    assert llm.get_default_sampling_params() == SamplingParams(temperature=0.0, max_tokens=9)
    answer = llm.generate(PROMPTS[0])[0].outputs[0].token_ids
    assert answer == plain[0][: len(answer)]
    assert 1 <= len(answer) <= 9
    assert _llm(folder, generation_config="vllm").get_default_sampling_params() == SamplingParams()


def test_greedy_answers_equal_those_of_transformers(folder: Path, plain: list[list[int]]) -> None:
    """Token by token, for every prompt."""
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    encode = _llm(folder).tokenizer.encode
    for prompt, answer in zip(PROMPTS, plain, strict=True):
        ids = torch.tensor([encode(prompt, add_special_tokens=True)])
        theirs = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=40,
            min_new_tokens=40,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert theirs[0, ids.shape[1] :].tolist() == answer


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_num_seqs": 2},
        {"max_num_seqs": 4, "max_num_batched_tokens": 7},
        {"num_blocks": 12, "block_size": 8, "max_model_len": 96},
        {"enable_prefix_caching": False, "block_size": 3},
        {"speculation": {"method": "ngram", "num_tokens": 3}},
        {"speculation": {"method": "auto", "num_tokens": 5}, "max_num_batched_tokens": 64},
    ],
    ids=str,
)
def test_answers_do_not_depend_on_how_they_are_scheduled(
    options: dict[str, Any], folder: Path, plain: list[list[int]]
) -> None:
    """Batched, queued, chunked, preempted or speculated: the tokens of one prompt at a time."""
    assert _tokens(_llm(folder, **options)) == plain


@pytest.mark.parametrize("method", ["draft", "auto"])
def test_a_draft_model_changes_no_greedy_answer(
    method: str, folder: Path, draft_folder: Path, plain: list[list[int]]
) -> None:
    """A stranger's guesses, right or wrong, leave the answer alone."""
    speculation = {"method": method, "draft_model": str(draft_folder), "num_tokens": 3}
    assert _tokens(_llm(folder, speculation=speculation)) == plain


def test_a_perfect_draft_model_is_believed(folder: Path, plain: list[list[int]]) -> None:
    """The model as its own draft: the same answers, all guesses right, far fewer steps."""
    speculation = {"method": "draft", "draft_model": str(folder), "num_tokens": 4}
    llm = _llm(folder, speculation=speculation)
    assert _tokens(llm) == plain
    stats = llm.engine.stats()
    assert stats.draft_accepted == stats.draft_tokens > 100
    assert stats.steps < 15


def test_a_draft_model_without_room_guesses_nothing(
    folder: Path, make_checkpoint: Callable[..., Path], plain: list[list[int]]
) -> None:
    """Sequences longer than the draft model's context are answered without guesses."""
    short = save_folder(make_checkpoint(seed=4, max_position_embeddings=24))
    speculation = {"method": "draft", "draft_model": str(short), "num_tokens": 4}
    assert _tokens(_llm(folder, speculation=speculation)) == plain


def test_seeded_answers_are_the_same_in_any_batch_and_with_guesses(
    folder: Path, draft_folder: Path
) -> None:
    """Sampling with a seed: alone, batched and speculating give the same tokens."""
    params = [
        SamplingParams(temperature=1.0, seed=1, max_tokens=24),
        SamplingParams(temperature=0.7, top_p=0.9, seed=2, max_tokens=24, ignore_eos=True),
        SamplingParams(temperature=1.2, top_k=20, presence_penalty=0.5, seed=3, max_tokens=24),
        SamplingParams(temperature=0.9, min_p=0.05, repetition_penalty=1.1, seed=4, max_tokens=24),
    ]
    llm = _llm(folder)
    alone = [
        llm.generate(prompt, own)[0].outputs[0].token_ids
        for prompt, own in zip(PROMPTS, params, strict=True)
    ]
    assert _tokens(llm, params) == alone
    for speculation in (
        {"method": "ngram"},
        {"method": "draft", "draft_model": str(folder)},
        {"method": "draft", "draft_model": str(draft_folder)},
    ):
        assert _tokens(_llm(folder, speculation=speculation), params) == alone


def test_n_answers_differ_and_repeat_with_the_seed(folder: Path) -> None:
    """The n choices of one seed are different draws; asking again gives the same ones."""
    params = SamplingParams(n=3, temperature=1.0, seed=9, max_tokens=12, ignore_eos=True)
    llm = _llm(folder)
    first, second = (llm.generate(PROMPTS[0], params)[0].outputs for _ in range(2))
    assert [answer.index for answer in first] == [0, 1, 2]
    assert len({tuple(answer.token_ids) for answer in first}) == 3
    assert [answer.token_ids for answer in first] == [answer.token_ids for answer in second]


def test_logprobs_come_in_vllms_shape_and_equal_those_of_transformers(folder: Path) -> None:
    """One mapping per token, the token itself among the likeliest; they add up."""
    from transformers import LlamaForCausalLM

    params = SamplingParams(temperature=0.0, max_tokens=6, logprobs=2, ignore_eos=True)
    output = _llm(folder).generate(PROMPTS[0], params)[0]
    answer = output.outputs[0]
    assert answer.logprobs is not None
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        logits = model(torch.tensor([output.prompt_token_ids + answer.token_ids])).logits[0]
    wanted = logits.log_softmax(-1)[len(output.prompt_token_ids) - 1 : -1]
    total = 0.0
    for place, (token, entry) in enumerate(zip(answer.token_ids, answer.logprobs, strict=True)):
        assert len(entry) == 2
        for token_id, value in entry.items():
            assert value.logprob == pytest.approx(float(wanted[place, token_id]), abs=1e-4)
        assert entry[token].logprob == max(value.logprob for value in entry.values())
        total += entry[token].logprob
    assert answer.cumulative_logprob == pytest.approx(total)


def test_outputs_carry_text_usage_and_reasons(folder: Path) -> None:
    """Text decodes the tokens; a stop string ends the answer and is no part of it."""
    llm = _llm(folder)
    whole = llm.generate(PROMPTS[3], GREEDY)[0]
    text = whole.outputs[0].text
    assert text == llm.tokenizer.decode(whole.outputs[0].token_ids)
    assert whole.outputs[0].finish_reason == "length"
    assert whole.finished
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 40
    stop = text[10:12]
    params = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True, stop=(stop,))
    cut = llm.generate(PROMPTS[3], params)[0].outputs[0]
    assert cut.text == text[: text.index(stop)]
    assert (cut.finish_reason, cut.stop_reason) == ("stop", stop)


def test_prompts_may_be_text_ids_or_mappings(folder: Path) -> None:
    """All spellings of the same prompt get the same answer."""
    llm = _llm(folder)
    ids = llm.tokenizer.encode(PROMPTS[0], add_special_tokens=True)
    many = llm.generate(
        [PROMPTS[0], ids, {"prompt": PROMPTS[0]}, {"prompt_token_ids": ids}], GREEDY
    )
    assert len({tuple(output.outputs[0].token_ids) for output in many}) == 1
    assert llm.generate(ids, GREEDY)[0].outputs == many[0].outputs
    assert [output.prompt for output in many] == [PROMPTS[0], None, PROMPTS[0], None]


def test_chat_renders_the_models_template(folder: Path) -> None:
    """A chat is the templated prompt's completion, for one conversation and for many."""
    llm = _llm(folder)
    messages = [{"role": "user", "content": "hello"}]
    ids = llm.tokenizer.encode_chat(messages)
    wanted = llm.generate(ids, GREEDY)[0].outputs[0].token_ids
    assert llm.chat(messages, GREEDY)[0].outputs[0].token_ids == wanted
    assert [o.outputs[0].token_ids for o in llm.chat([messages] * 2, GREEDY)] == [wanted] * 2


def test_one_bad_prompt_refuses_the_whole_call_and_leaves_nothing_behind(folder: Path) -> None:
    """After a refused call the engine is empty and answers the next."""
    llm = _llm(folder)
    with pytest.raises(ContextLengthError):
        llm.generate(["hello", [7] * 1000], GREEDY)
    with pytest.raises(InvalidRequestError, match="temperature"):
        llm.generate(["hello"], SamplingParams(temperature=3.0))
    with pytest.raises(ValueError, match="2 sampling_params for 1"):
        llm.generate(["hello"], [GREEDY, GREEDY])
    assert not llm.engine.has_unfinished
    assert llm.engine.stats().kv_usage_ratio == 0.0
    assert len(llm.generate("hello", GREEDY)[0].outputs[0].token_ids) == 40


def test_int8_answers_stay_close_and_deterministic(folder: Path) -> None:
    """int8 at load answers; its first-token log-probabilities are near the plain model's."""
    params = SamplingParams(temperature=0.0, max_tokens=1, logprobs=0)
    exact = _llm(folder).generate(PROMPTS, params)
    rounded = _llm(folder, quantization="int8").generate(PROMPTS, params)
    for ours, theirs in zip(rounded, exact, strict=True):
        assert ours.outputs[0].cumulative_logprob == pytest.approx(
            theirs.outputs[0].cumulative_logprob, abs=0.3
        )


def test_options_are_refused_by_name(folder: Path, make_checkpoint: Callable[..., Path]) -> None:
    """Unknown options, wrong values and draft models of another tokenizer are named."""
    with pytest.raises(ValueError, match=r"max_num_sequences.*known: model, device"):
        _llm(folder, max_num_sequences=3)
    with pytest.raises(ValueError, match=r"quantization.*allowed: 'int8'"):
        _llm(folder, quantization="int5")
    with pytest.raises(ValueError, match="tensor_parallel_size is 2"):
        _llm(folder, tensor_parallel_size=2)
    with pytest.raises(ValueError, match="max_model_len is 9999"):
        _llm(folder, max_model_len=9999)
    with pytest.raises(ModelLoadError, match=r"tokenizer\.json"):
        _llm(make_checkpoint(num_hidden_layers=1))
