"""The corpus as token arrays: shelves of short documents, and streams of running text."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from backends.bundled import facts
from backends.bundled.corpus import TEXT_FILES, Task, Turn, read_chat, read_texts
from backends.bundled.facts_tables import HELP, WHO
from backends.bundled.lessons import make_lessons
from backends.bundled.reading import make_readings
from backends.bundled.tokenizer import EOS_ID, IM_END, IM_START
from backends.evaluation.frozen import is_frozen

PROMPT, ANSWER, TEXT = 0, 1, 2
"""Classes of a token: what was asked, what must be answered, running text."""
SYSTEM = "You are a helpful assistant."
SYSTEM_EVERY = 12
"""One chat in this many opens with the system message."""

OURS: Final = {
    "I'm a bot who was created by humans.": WHO,
    "People made me out of code and a dash of ingenuity.": WHO,
    "Oh, I don't have a name.": WHO,
    "I'm here to chat and to try to help out.": HELP,
}
"""Answers of the small talk that would say something else about us, and ours."""

Conversation = Sequence[tuple[str, str]]
"""Pairs of prompt and response, in order."""


class Shelf:
    """Many short documents, end to end; `ends[i]` is where document i stops."""

    def __init__(
        self, tokens: NDArray[np.uint16], kinds: NDArray[np.uint8], ends: NDArray[np.int64]
    ) -> None:
        self.tokens, self.kinds, self.ends = tokens, kinds, ends

    def __len__(self) -> int:
        return len(self.ends)

    def document(self, index: int) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
        """Return the tokens of one document and their classes."""
        start = int(self.ends[index - 1]) if index else 0
        end = int(self.ends[index])
        return self.tokens[start:end], self.kinds[start:end]


def _pieces(conversations: Sequence[Conversation]) -> tuple[list[str], list[int], list[int]]:
    """Cut conversations into texts of one class each; the last list counts pieces of each."""
    texts: list[str] = []
    kinds: list[int] = []
    counts: list[int] = []
    for number, conversation in enumerate(conversations):
        before = len(texts)
        system = f"{IM_START}system\n{SYSTEM}{IM_END}\n" if number % SYSTEM_EVERY == 0 else ""
        for turn, (prompt, response) in enumerate(conversation):
            lead = system if turn == 0 else "\n"
            texts.append(f"{lead}{IM_START}user\n{prompt}{IM_END}\n{IM_START}assistant\n")
            texts.append(response.strip() + IM_END)
            kinds += [PROMPT, ANSWER]
        counts.append(len(texts) - before)
    return texts, kinds, counts


def chat_shelf(tokenizer: Tokenizer, conversations: Sequence[Conversation]) -> Shelf:
    """Tokenize conversations in the chat format, marking what the model must answer."""
    texts, kinds, counts = _pieces(conversations)
    ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(texts)]
    lengths = np.array([len(piece) for piece in ids], dtype=np.int64)
    tokens = np.fromiter((token for piece in ids for token in piece), np.uint16, lengths.sum())
    ends = lengths.cumsum()[np.array(counts).cumsum() - 1]
    return Shelf(tokens, np.repeat(np.array(kinds, dtype=np.uint8), lengths), ends)


def text_stream(tokenizer: Tokenizer, texts: Sequence[str]) -> NDArray[np.uint16]:
    """Tokenize texts end to end, `<|eos|>` after each."""
    ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts))]
    total = sum(len(piece) + 1 for piece in ids)
    return np.fromiter((token for piece in ids for token in (*piece, EOS_ID)), np.uint16, total)


class Library:
    """Everything the model learns from, tokenized."""

    def __init__(self, shelves: dict[str, Shelf], streams: dict[str, NDArray[np.uint16]]) -> None:
        self.shelves, self.streams = shelves, streams


def _chats(turns: Sequence[Turn], *sources: str) -> list[Conversation]:
    return [[(t.prompt, t.response)] for t in turns if t.source in sources]


def allowed(chats: Sequence[Conversation]) -> list[Conversation]:
    """Leave out every conversation that asks what the evaluation asks."""
    return [chat for chat in chats if not any(is_frozen(prompt) for prompt, _ in chat)]


def build_library(
    corpus: Path, tokenizer: Tokenizer, tasks: Sequence[Task], *, seed: int
) -> Library:
    """Read the corpus and tokenize all of its training part, with our own facts beside it.

    What the evaluation asks is left out, whoever wrote it.
    """
    turns = read_chat(corpus, "train")
    talk = _chats(turns, "personality-chat-friendly", "chatterbot-corpus")
    small_talk = [[(p, OURS.get(r, r))] for [(p, r)] in talk]
    lessons = {
        kind: [[pair] for pair in pairs]
        for kind, pairs in make_lessons(seed=seed, split="train").items()
    }
    known = [[turn] for turn in facts.make_facts(seed=seed, split="train")]
    known += lessons.pop("science")
    single = [[(task.prompt, task.response)] for task in tasks]
    pool = [
        chat[0] for chat in (*small_talk, *known, *lessons["docs"], *single[: 2 * len(small_talk)])
    ]
    texts = {name: read_texts(corpus, name, held_out=False) for name in TEXT_FILES}
    long_pool = [
        *pool,
        *(chat[0] for kind in ("extraction", "summaries") for chat in lessons[kind]),
    ]
    long_pool = [pair for pair in long_pool if not is_frozen(pair[0])]
    conversations: dict[str, Sequence[Conversation]] = {
        "tasks": single,
        "facts": known,
        **lessons,
        "small_talk": small_talk,
        "trivia": _chats(turns, "opentriviaqa", "nq-open-dev"),
        "essays": _chats(turns, "dolly-15k-part"),
        "math": _chats(turns, "gsm8k"),
        "turns": facts.make_dialogues(pool, count=max(200, len(tasks) // 20), seed=seed),
        "readings": make_readings(
            [text for kind in texts.values() for text in kind],
            long_pool,
            count=max(200, len(tasks) // 40),
            seed=seed,
        ),
    }
    return Library(
        {name: chat_shelf(tokenizer, allowed(chats)) for name, chats in conversations.items()},
        {name: text_stream(tokenizer, kind) for name, kind in texts.items()},
    )
