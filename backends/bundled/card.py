"""Model cards, written from what was measured: `python -m backends.bundled.card FOLDER...`."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from backends.bundled.errors import ExportError, RecipeError
from backends.bundled.load import read_spec
from backends.bundled.report import Evaluation, Score

SOURCES: Final = (
    ("Standard Ebooks, 53 story books", "CC0 1.0 (public-domain works)"),
    ("English Wikipedia, the plainest articles", "CC BY-SA 3.0, (c) Wikipedia contributors"),
    ("OpenTriviaQA (uberspot/OpenTriviaQA)", "CC BY-SA 4.0"),
    ("GSM8K train split (openai/grade-school-math)", "MIT, (c) 2021 OpenAI"),
    ("Personality chat, friendly (microsoft/botframework-cli)", "MIT, (c) Microsoft Corporation"),
    ("Natural Questions open, dev split (google-research-datasets)", "CC BY-SA 3.0"),
    (
        "databricks-dolly-15k, a part",
        "CC BY-SA 3.0, (c) Databricks, Inc.; Wikipedia contributors",
    ),
    ("chatterbot-corpus, English, five files", "BSD-3-Clause, (c) 2017 Gunther Cox"),
    ("Generated tasks and everyday facts", "made for this project; no third-party text"),
)
CARD: Final = """\
---
license: cc-by-sa-4.0
language: en
pipeline_tag: text-generation
---
<!-- Written by `python -m backends.bundled.card` from evaluation.json and training.json. -->
# {model}: a demo model of Headgate

{parameters:,} parameters, trained from scratch by `backends/bundled`. It exists so that Headgate
can be tried, tested and measured without a download. It is a toy: do not rely on what it says.

| | |
| --- | --- |
| shape | Llama: {layers} layers, hidden {hidden}, feed-forward {ff}, {heads} heads of {head_dim} \
over {kv_heads} key-value heads, tied embedding, {vocab:,} tokens |
| on disk | int8 layers (one scale per output channel, compressed-tensors naming), bf16 embedding \
and norms; {weight_bytes:,} bytes |
| trained on | {tokens:,} tokens (padding and repeats included), {steps:,} steps, seed {seed}, \
{minutes:.0f} minutes on shared CPU cores; stopped and resumed with a changed recipe, see the \
README beside this folder |
| context | trained on rows of 256 tokens, at the end 512; positions up to 2,048 run, but past \
512 the text gets worse |

## Measured

On the int8 weights as shipped, dequantized to fp32, greedy. An answer counts only if it is
exact; a word problem is judged by its final number.

| what | result |
| --- | ---: |
| synthetic test questions | {synthetic} |
| everyday facts, other wordings | {facts} |
| answers that end their turn | {ended} |
{bits}

| difficulty | right |
| --- | ---: |
{difficulty}

| category | right |
| --- | ---: |
{category}

The facts test measures known facts asked in other words. The text figures are for about 1 % of
the stories and articles, held out by hash. Difficulty is set by rule in the corpus.

![loss curve](loss.png)

## Answers, as given

{examples}

## Data and licences

{sources}

The weights are passed on under CC BY-SA 4.0, with thanks to the authors above; the recipe is under
the project's own licence.

## Limits

- Knows almost nothing: a few hundred everyday facts, and prose in the manner of old children's
  books and of encyclopaedia articles. Asked about anything else it makes something up.
- English only. Sums often come out wrong, even small ones; copying longer lists fails too.
- The stories carry the attitudes of their time. No safety training of any kind was done.
"""


def _share(score: Score) -> str:
    return f"{score.passed} of {score.count} ({100 * score.rate:.1f} %)"


def _table(scores: Mapping[str, Score]) -> str:
    return "\n".join(f"| {key} | {_share(score)} |" for key, score in scores.items())


def _quote(prompt: str, answer: str) -> str:
    def block(text: str) -> str:
        return text.replace("\n", "\n> ")

    return f"> **{block(prompt)}**\n>\n> {block(answer)}"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ExportError(
            f"no {path.name} in {str(path.parent)!r} ({error}); train, export and evaluate first"
        ) from error


def render_card(folder: Path) -> str:
    """Write the card of an evaluated folder as Markdown.

    Raises:
        ExportError: the folder lacks its evaluation, its training record or its config.
    """
    found = msgspec.json.decode(_read(folder / "evaluation.json"), type=Evaluation)
    training: dict[str, Any] = msgspec.json.decode(_read(folder / "training.json"))
    spec = read_spec(folder)
    bits = (
        f"| bits per byte, {name.removeprefix('text_')} | {value:.3f} |"
        for name, value in found.bits_per_byte.items()
    )
    return CARD.format(
        model=found.model,
        parameters=found.parameters,
        layers=spec.num_hidden_layers,
        hidden=spec.hidden_size,
        ff=spec.intermediate_size,
        heads=spec.num_attention_heads,
        head_dim=spec.head_dim,
        kv_heads=spec.num_key_value_heads,
        vocab=spec.vocab_size,
        weight_bytes=found.weight_bytes,
        tokens=training["tokens"],
        steps=training["steps"],
        seed=training["seed"],
        minutes=training["seconds"] / 60,
        synthetic=_share(found.synthetic_test),
        facts=_share(found.facts_test),
        ended=_share(found.end_of_turn),
        bits="\n".join(bits),
        difficulty=_table(found.by_difficulty),
        category=_table(found.by_category),
        examples="\n\n".join(_quote(*example) for example in found.examples),
        sources="\n".join(f"- {name}: {licence}" for name, licence in SOURCES),
    )


def write_card(folder: Path) -> None:
    """Write MODEL_CARD.md of an evaluated folder."""
    (folder / "MODEL_CARD.md").write_text(render_card(folder), encoding="utf-8")


def main(argv: Sequence[str]) -> int:
    """Write the cards of the folders named."""
    try:
        for folder in argv:
            write_card(Path(folder))
    except RecipeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
