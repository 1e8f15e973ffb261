"""A model folder under test, in our own engine in this process."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from backends.contract import SamplingParams, TokenEvent
from backends.engine.factory import pick_device
from backends.engine.model_runner import ModelRunner
from backends.errors import InvalidRequestError
from backends.evaluation.candidate import (
    CONCURRENT,
    Answer,
    Certainty,
    MachineTime,
    ModelFacts,
    Progress,
)
from backends.evaluation.items import Item, Text
from backends.evaluation.token_scorer import Scored, TokenScorer
from backends.llm import LLM
from backends.models.folder import model_folder, revision
from backends.models.inspect import inspect_model


@dataclass(slots=True)
class _Written:
    """An answer as it grows."""

    prompt: list[int]
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    last: TokenEvent | None = None


class EngineCandidate:
    """Loads once; answers in fp32 on the CPU, without prefix reuse or speculation.

    Keys and values are in fp32 there, too: left to itself an engine picks what this machine reads
    fastest, but a table shall be the same on all.
    """

    machine_time: MachineTime = "engine"

    def __init__(self, name: str, model: str, **options: Any) -> None:
        """`options`: of the engine. Raises ModelLoadError, or ValueError for a bad option."""
        self.name = name
        facts = inspect_model(model)
        on_cpu = pick_device(options.get("device", "auto")).type == "cpu"
        if on_cpu and options.get("dtype", "auto") == "auto":
            options["dtype"] = "float32"  # told one, an engine keeps KV in fp32
        self._llm = LLM(
            model,
            max_num_seqs=CONCURRENT,
            enable_prefix_caching=False,
            speculation={"method": "off"},
            **options,
        )
        self.tokenizer = self._llm.tokenizer
        runner = self._llm.engine.runner
        assert isinstance(runner, ModelRunner)
        self._scorer = TokenScorer(
            runner.model,
            device=runner.device,
            kv_dtype=torch.float32 if runner.device.type == "cpu" else runner.model.embedding.dtype,
        )
        folder = model_folder(model)
        self.facts = ModelFacts(
            source=model if ":" in model else folder.name,
            parameters=facts["parameters"],
            weight_bytes=facts["bytes_on_disk"],
            weights=revision(folder, suffixes=(".safetensors",)),
            quantization=runner.model.quantization,
            device=runner.device.type,
        )

    def answer(self, items: Sequence[Item], progress: Progress) -> list[Answer]:
        """Answer all, `CONCURRENT` at a time."""
        # the first steps load kernels: time that no answer should be charged for
        self._llm.generate(["Hello"] * CONCURRENT, SamplingParams(temperature=0.0, max_tokens=2))
        written: dict[str, _Written] = {}
        answers: dict[str, Answer] = {}
        under_way = 0
        for place, item in enumerate(items):
            name = str(place)
            try:
                written[name] = self._begin(name, item)
            except InvalidRequestError as error:
                answers[name] = Answer(error=error.message)
                continue
            under_way += 1
            while under_way == CONCURRENT:  # as behind a server, where prompts come one by one
                under_way -= self._step(written, progress)
        while under_way:
            under_way -= self._step(written, progress)
        answers |= zip(written, self._finished(list(written.values())), strict=True)
        return [answers[str(place)] for place in range(len(items))]

    def _begin(self, name: str, item: Item) -> _Written:
        prompt = self.tokenizer.encode_chat([{"role": "user", "content": item.prompt}])
        params = SamplingParams(temperature=0.0, max_tokens=item.max_tokens)
        self._llm.engine.add_request(name, prompt, params)
        return _Written(prompt)

    def _step(self, written: Mapping[str, _Written], progress: Progress) -> int:
        """How many answers it finished."""
        finished = 0
        for event in self._llm.engine.step():
            mine = written[event.request_id]
            mine.text += event.text
            mine.tokens += event.token_ids
            if event.usage is not None:
                mine.last = event
                finished += 1
        progress(finished)
        return finished

    def _finished(self, written: Sequence[_Written]) -> list[Answer]:
        """Read every answer again, to see how likely its tokens were."""
        scored = self._scorer.score(
            [one.prompt + one.tokens for one in written], [len(one.prompt) for one in written]
        )
        answers = []
        for one, score in zip(written, scored, strict=True):
            assert one.last is not None
            usage = one.last.usage
            assert usage is not None
            assert usage.headgate is not None
            ended = one.last.finish_reason == "stop"
            answers.append(
                Answer(
                    text=one.text,
                    ended=ended,
                    prompt_tokens=usage.prompt_tokens,
                    completion_tokens=usage.completion_tokens,
                    machine_ns=usage.headgate.machine_ns,
                    mean_logprob=float(score.logprobs.mean()),
                    margin=float(score.margins.min()),
                    certainty=_certainty(score, len(one.tokens) - ended),
                )
            )
        return answers

    def text_bits(self, texts: Sequence[Text]) -> Mapping[str, float]:
        """Bits per byte by part; each piece begins a document."""
        tokenizer = self.tokenizer
        start = [min(tokenizer.eos_token_ids)] if tokenizer.eos_token_ids else [0]
        sequences = []
        for text in texts:
            ids = tokenizer.encode(text.text, add_special_tokens=True)
            begun = ids[:1] == [tokenizer.bos_token_id]
            sequences.append(ids if begun else start + ids)
        nats: dict[str, float] = defaultdict(float)
        size: dict[str, int] = defaultdict(int)
        scored = self._scorer.score(sequences, [1] * len(sequences))
        for text, score in zip(texts, scored, strict=True):
            nats[text.part] -= float(score.logprobs.sum())
            size[text.part] += len(text.text.encode())
        return {part: nats[part] / math.log(2) / size[part] for part in nats}

    def close(self) -> None:
        """Nothing is held but memory."""


def _certainty(score: Scored, shown: int) -> Certainty | None:
    """Of the first `shown` tokens; None for an answer without text."""
    if shown < 1:
        return None
    return Certainty(
        logprob=float(score.logprobs[:shown].mean()),
        margin=float(score.margins[:shown].min()),
        entropy=float(score.entropies[:shown].mean()),
    )
