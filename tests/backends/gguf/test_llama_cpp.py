"""A real file beside llama.cpp itself, where `tests/benchmarks/bench_llama_cpp.py` has built it."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from backends.bundled import bundled_path
from backends.llm import LLM, SamplingParams
from tests.backends.gguf.writer import write_gguf

ROOT = Path(__file__).parents[3]
PYTHON = ROOT / "build" / "llama-cpp" / "bin" / "python"
WORKER = ROOT / "tests" / "benchmarks" / "llama_cpp_worker.py"
TEXTS = ("What is 2 + 3?", "I'll say: héllo wörld 你好 🙂\n\n 12345 x=1;", "   leading")
NEW_TOKENS = 12

pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="llama.cpp is not built here")


@pytest.mark.parametrize("kind", ["F16", "Q4_0"])
def test_file_gives_llama_cpps_tokens(kind: str, tmp_path: Path) -> None:
    """Texts are cut alike, and greedy answers to chats are the same, token by token."""
    file = write_gguf(bundled_path("small"), tmp_path / "small.gguf", kind)
    model = LLM(str(file), dtype="float32", max_model_len=256)
    prompts = [model.tokenizer.encode_chat([{"role": "user", "content": t}]) for t in TEXTS]
    asked = [{"call": "tokenize", "text": text} for text in TEXTS]
    told = _ask(file, [*asked, {"call": "generate", "prompts": prompts, "count": NEW_TOKENS}])
    assert [one["tokens"] for one in told[:-1]] == [model.tokenizer.encode(t) for t in TEXTS]
    params = SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS, ignore_eos=True)
    ours = [one.outputs[0].token_ids for one in model.generate(prompts, params)]
    # What follows the end of an answer was in no training text: both only guess there.
    ends = set(model.tokenizer.eos_token_ids)
    assert [_until(ids, ends) for ids in told[-1]["answers"]] == [_until(i, ends) for i in ours]


def _until(ids: list[int], ends: set[int]) -> list[int]:
    stop = next((place for place, token in enumerate(ids) if token in ends), len(ids))
    return ids[: stop + 1]


def _ask(file: Path, requests: list[dict[str, object]]) -> list[dict[str, list[list[int]]]]:
    done = subprocess.run(
        [str(PYTHON), str(WORKER), str(file), "1"],
        input="".join(f"{json.dumps(request)}\n" for request in requests),
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return [json.loads(line) for line in lines[1:]]
