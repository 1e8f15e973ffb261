"""A toy language model, a runner that keeps its "KV" in blocks, and a one-letter tokenizer.

The runner writes (position, token) into block slots and reads the whole context back through the
block table, so a wrong table, a stale draft or a block reused too early changes an answer or fails
an assertion.
"""

from collections.abc import Sequence

from backends.contract import SamplingParams, TokenEvent, TokenLogprob
from backends.engine.config import EngineConfig
from backends.engine.engine import Engine
from backends.engine.runner import SampleResult, ScheduledSequence, SchedulerOutput

VOCAB = 23
EOS = 0
LETTERS = "~abcdefghijklmnopqrstuv"


def next_token(tokens: Sequence[int]) -> int:
    """The toy model: greedy, deterministic, soon repeating itself (so that lookups succeed)."""
    one, two = tokens[-1], tokens[-2] if len(tokens) > 1 else 7
    return (one * 31 + two * 17 + one * two + 5) % VOCAB


def plain_answer(prompt: Sequence[int], max_tokens: int, *, eos: int | None = EOS) -> list[int]:
    """What the toy model answers, computed one by one with no engine."""
    tokens = list(prompt)
    for _ in range(max_tokens):
        tokens.append(next_token(tokens))
        if tokens[-1] == eos:
            break
    return tokens[len(prompt) :]


class ToyRunner:
    """Executes steps with the toy model over block slots, verifying drafts greedily."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.slots: dict[tuple[int, int], tuple[int, int]] = {}
        self.steps = 0
        self.tokens_per_step: list[int] = []

    def execute(self, output: SchedulerOutput) -> list[SampleResult]:
        """Check the step against the limits, then compute it."""
        self.steps += 1
        total = sum(part.num_tokens for part in output.sequences)
        assert total == output.num_tokens <= self.config.max_num_batched_tokens
        assert 0 < len(output.sequences) <= self.config.max_num_seqs
        self.tokens_per_step.append(total)
        for part in output.sequences:
            self._write(part)
        return [self._sample(part) for part in output.sequences]

    def _slot(self, part: ScheduledSequence, position: int) -> tuple[int, int]:
        size = self.config.block_size
        return part.request.block_ids[position // size], position % size

    def _write(self, part: ScheduledSequence) -> None:
        request = part.request
        tokens = request.token_ids + request.draft_token_ids
        assert part.num_drafts == len(request.draft_token_ids) or part.num_drafts == 0
        for position in range(part.start, part.start + part.num_tokens):
            self.slots[self._slot(part, position)] = (position, tokens[position])

    def _sample(self, part: ScheduledSequence) -> SampleResult:
        request = part.request
        end = part.start + part.num_tokens
        context = []
        for position in range(end):
            written_at, token = self.slots[self._slot(part, position)]
            assert written_at == position
            context.append(token)
        known = end - part.num_drafts
        assert context[:known] == request.token_ids[:known]
        if not part.samples:
            return SampleResult()
        sampled: list[int] = []
        for draft in [*context[known:], None]:
            sampled.append(next_token(context[: known + len(sampled)]))
            if sampled[-1] != draft:
                break
        logprobs = tuple(TokenLogprob(t, -0.5) for t in sampled)
        return SampleResult(tuple(sampled), logprobs if request.params.logprobs is not None else ())


class LetterDetokenizer:
    """One letter per token."""

    def push(self, token_ids: Sequence[int]) -> str:
        """The letters of these tokens."""
        return "".join(LETTERS[token] for token in token_ids)

    def flush(self) -> str:
        """Nothing is ever left."""
        return ""


class LetterTokenizer:
    """One token per letter; `~` is end-of-sequence."""

    vocab_size = VOCAB
    eos_token_ids = (EOS,)

    def encode(self, text: str) -> list[int]:
        """Token ids of letters a to v."""
        return [LETTERS.index(letter) for letter in text]

    def detokenizer(
        self, prompt_ids: Sequence[int], shown_ids: frozenset[int] = frozenset()
    ) -> LetterDetokenizer:
        """For the answer to any prompt."""
        return LetterDetokenizer()


def greedy(max_tokens: int | None = 16, **fields: object) -> SamplingParams:
    """Greedy parameters."""
    return SamplingParams(temperature=0.0, max_tokens=max_tokens, **fields)  # type: ignore[arg-type]


def run_all(engine: Engine, most_steps: int = 10_000) -> dict[str, list[TokenEvent]]:
    """Step until nothing is left; the events of each request."""
    events: dict[str, list[TokenEvent]] = {}
    for _ in range(most_steps):
        if not engine.has_unfinished:
            return events
        for event in engine.step():
            events.setdefault(event.request_id, []).append(event)
    raise AssertionError(f"requests still unfinished after {most_steps} steps")


def tokens_of(events: Sequence[TokenEvent], index: int = 0) -> list[int]:
    """All tokens of one choice."""
    return [t for event in events if event.index == index for t in event.token_ids]


def text_of(events: Sequence[TokenEvent], index: int = 0) -> str:
    """All text of one choice."""
    return "".join(event.text for event in events if event.index == index)
