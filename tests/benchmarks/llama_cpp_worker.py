"""llama.cpp as a child process: `python llama_cpp_worker.py MODEL.gguf THREADS`.

Runs in an environment that holds llama-cpp-python and nothing of ours. Reads one JSON request per
line and answers it with one JSON line: seconds, or log-probabilities.
"""

import json
import sys
import time
from typing import Any

import llama_cpp
import numpy as np

CONTEXT = 8192
SEQUENCES = 16


class Runner:
    """One model and its context."""

    def __init__(self, model: str, threads: int) -> None:
        self.threads = threads
        llama_cpp.llama_backend_init()
        options = llama_cpp.llama_model_default_params()
        options.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(model.encode(), options)
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(
            llama_cpp.llama_model_get_vocab(self.model)
        )
        context = llama_cpp.llama_context_default_params()
        context.n_ctx, context.n_seq_max = CONTEXT, SEQUENCES
        context.n_batch = context.n_ubatch = 512
        context.n_threads = context.n_threads_batch = threads
        context.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
        context.kv_unified = True
        self.context = llama_cpp.llama_init_from_model(self.model, context)
        self.batch = llama_cpp.llama_batch_init(512, 0, 1)

    def clear(self) -> None:
        """Forget every sequence."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)

    def decode(self, tokens: list[tuple[int, int, int, bool]]) -> None:
        """Compute (token, position, sequence, wants logits) rows."""
        self.batch.n_tokens = len(tokens)
        for row, (token, position, sequence, wanted) in enumerate(tokens):
            self.batch.token[row] = token
            self.batch.pos[row] = position
            self.batch.n_seq_id[row] = 1
            self.batch.seq_id[row][0] = sequence
            self.batch.logits[row] = wanted
        outcome = llama_cpp.llama_decode(self.context, self.batch)
        if outcome:
            raise RuntimeError(f"llama_decode answered {outcome}")

    def logits(self, row: int) -> Any:
        """The logits of a row that wanted them."""
        pointer = llama_cpp.llama_get_logits_ith(self.context, row)
        return np.ctypeslib.as_array(pointer, shape=(self.vocabulary,))

    def prefill(self, prompt: list[int]) -> dict[str, float]:
        """Seconds until the first token of a prompt."""
        self.clear()
        began = time.perf_counter()
        last = len(prompt) - 1
        self.decode([(token, place, 0, place == last) for place, token in enumerate(prompt)])
        int(self.logits(last).argmax())
        return {"seconds": time.perf_counter() - began}

    def generate(self, prompts: list[list[int]], count: int) -> dict[str, Any]:
        """Seconds of `count` greedy tokens of each prompt, the first one's apart."""
        self.clear()
        answers: list[list[int]] = []
        for sequence, prompt in enumerate(prompts):
            last = len(prompt) - 1
            self.decode([(t, place, sequence, place == last) for place, t in enumerate(prompt)])
            answers.append([int(self.logits(last).argmax())])
        began = time.perf_counter()
        for step in range(count - 1):
            self.decode(
                [
                    (answer[-1], len(prompt) + step, sequence, True)
                    for sequence, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
                ]
            )
            for row, answer in enumerate(answers):
                answer.append(int(self.logits(row).argmax()))
        return {"seconds": time.perf_counter() - began, "answers": answers}

    def tokenize(self, text: str) -> dict[str, list[int]]:
        """Token ids of a text, which names no special tokens."""
        vocabulary = llama_cpp.llama_model_get_vocab(self.model)
        data = text.encode()
        room = (llama_cpp.llama_token * (len(data) + 8))()
        count = llama_cpp.llama_tokenize(vocabulary, data, len(data), room, len(room), False, False)
        return {"tokens": list(room[:count])}

    def logprobs(self, tokens: list[int]) -> dict[str, Any]:
        """The log-probability of every token after the first, given those before it."""
        self.clear()
        self.decode([(token, place, 0, True) for place, token in enumerate(tokens)])
        values = []
        for place, following in enumerate(tokens[1:]):
            row = self.logits(place).astype(np.float64)
            top = row.max()
            values.append(float(row[following] - top - np.log(np.exp(row - top).sum())))
        return {"logprobs": values}


def main() -> None:
    """Answer requests until the input ends."""
    runner = Runner(sys.argv[1], int(sys.argv[2]))
    info = llama_cpp.llama_print_system_info().decode()
    print(json.dumps({"version": llama_cpp.__version__, "system": info}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        answer = getattr(runner, request.pop("call"))(**request)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
