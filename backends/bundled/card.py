"""Model cards, written from what was measured: `python -m backends.bundled.card FOLDER...`."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from backends.bundled.errors import ExportError, RecipeError
from backends.bundled.load import read_spec
from backends.bundled.tokenizer import write_json
from backends.evaluation.figures import Evaluation, Rate
from backends.evaluation.table import overall, percent

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
| context | 2,048; trained on rows of 256 tokens, at the end of 1,024 whose positions leap as far \
as 2,048; the text gets a little worse past 1,024 |

## Measured

By `headgate models eval`, which gives these figures again: int8 weights as shipped, our engine,
fp32 activations on the CPU, greedy. Shares are in %, in brackets their 95 % intervals (bootstrap
within task functions for the pass rate, Wilson's elsewhere).

| what | result |
| --- | ---: |
| **pass rate**, mean over {functions} task functions | **{pass_rate}** |
{parts}
| valid JSON where asked for | {json_valid} |
| answers that end their turn | {ended} |
| answers that repeat themselves | {repetition} |
{bits}
| machine-seconds per answer, {concurrent} at a time (this machine, that day) | {seconds} |

The pass rate covers the synthetic, known and unseen tasks: the corpus's test questions, everyday
facts in words that were not trained, and task functions that were not trained at all. Greetings,
small talk and open tasks count as passed if they end, say something and do not repeat themselves.
Texts were held out of training.

| difficulty, set by rule | right |
| --- | ---: |
{difficulty}

| task function | right |
| --- | ---: |
{tasks}

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


def _line(label: str, cell: str | None) -> str:
    return f"| {label} | {cell or '-'} |"


def _rates(rates: Mapping[str, Rate]) -> str:
    return "\n".join(_line(key, percent(rate)) for key, rate in rates.items())


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
        _line(f"bits per byte, {part}", f"{value:.4f}")
        for part, value in (found.bits_per_byte or {}).items()
    )
    return CARD.format(
        model=found.name,
        parameters=found.model.parameters,
        layers=spec.num_hidden_layers,
        hidden=spec.hidden_size,
        ff=spec.intermediate_size,
        heads=spec.num_attention_heads,
        head_dim=spec.head_dim,
        kv_heads=spec.num_key_value_heads,
        vocab=spec.vocab_size,
        weight_bytes=found.model.weight_bytes,
        tokens=training["tokens"],
        steps=training["steps"],
        seed=training["seed"],
        minutes=training["seconds"] / 60,
        functions=len(found.by_task),
        pass_rate=overall(found),
        parts=_rates({part: rates.pass_rate for part, rates in found.by_part.items()}),
        json_valid=percent(found.json_valid),
        ended=percent(found.end_of_turn),
        repetition=percent(found.repetition),
        bits="\n".join(bits),
        concurrent=found.concurrent,
        seconds=found.machine_seconds_per_answer,
        difficulty=_rates(found.by_difficulty),
        tasks=_rates(found.by_task),
        examples="\n\n".join(_quote(*example) for example in found.examples),
        sources="\n".join(f"- {name}: {licence}" for name, licence in SOURCES),
    )


def write_evaluation(folder: Path, found: Evaluation) -> None:
    """Write evaluation.json of a folder, and its card from it."""
    write_json(folder / "evaluation.json", msgspec.to_builtins(found))
    write_card(folder)


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
