"""How a model's makers would sample from it: generation_config.json. No torch."""

import json
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from backends.contract import SamplingParams
from backends.errors import ModelLoadError
from backends.gguf.file import is_gguf, open_gguf

GenerationConfig = Literal["auto", "vllm"]
"""auto: the model folder's generation_config.json; vllm: OpenAI's defaults."""
_FIELDS: Final = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
}
"""The file's names, and ours."""
_GGUF_FIELDS: Final = {
    "general.sampling.temp": "temperature",
    "general.sampling.top_p": "top_p",
    "general.sampling.top_k": "top_k",
    "general.sampling.min_p": "min_p",
    "general.sampling.penalty_repeat": "repetition_penalty",
}


def default_sampling(folder: Path, which: GenerationConfig = "auto") -> SamplingParams:
    """What stands for the sampling fields that a request leaves out; a .gguf file may say it, too.

    As in vLLM, `do_sample = false` alone does not make a model greedy: only `temperature` does.

    Raises:
        ModelLoadError: the file is no JSON object, or a field has a wrong type or value.
    """
    if which == "vllm":
        return SamplingParams()
    file = folder if is_gguf(folder) else folder / "generation_config.json"
    fields = _GGUF_FIELDS if is_gguf(folder) else _FIELDS
    if not file.is_file():
        return SamplingParams()
    try:
        raw: Any = open_gguf(file).metadata if is_gguf(file) else json.loads(file.read_bytes())
        if not isinstance(raw, dict):
            raise ModelLoadError(f"{file}: holds no JSON object")
        said = {ours: raw[theirs] for theirs, ours in fields.items() if raw.get(theirs) is not None}
        params = msgspec.convert(said, SamplingParams)
        params.validate()
    except ValueError as error:
        raise ModelLoadError(f"{file}: {error}") from None
    return params
