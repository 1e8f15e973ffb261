"""generation_config.json: what stands for the sampling fields that a request leaves out."""

import json
from pathlib import Path
from typing import Any

import pytest

from backends.contract import SamplingParams
from backends.errors import ModelLoadError
from backends.models.generation import default_sampling
from backends.wire import ChatCompletionRequest, Message, sampling_params


def _folder(tmp_path: Path, config: Any) -> Path:
    (tmp_path / "generation_config.json").write_text(json.dumps(config))
    return tmp_path


def test_defaults_come_from_the_models_file(tmp_path: Path) -> None:
    """Sampling fields are read under transformers' names; everything else there is ignored."""
    folder = _folder(
        tmp_path,
        {
            "eos_token_id": [1, 2],
            "do_sample": False,
            "temperature": 0.6,
            "top_p": 0.9,
            "top_k": 20,
            "repetition_penalty": 1.05,
            "max_new_tokens": 300,
            "min_p": None,
        },
    )
    expected = SamplingParams(
        temperature=0.6, top_p=0.9, top_k=20, repetition_penalty=1.05, max_tokens=300
    )
    assert default_sampling(folder) == expected
    assert default_sampling(folder, "vllm") == SamplingParams()


def test_folder_without_the_file_has_openais_defaults(tmp_path: Path) -> None:
    """Nothing is invented for a model whose makers said nothing."""
    assert default_sampling(tmp_path) == SamplingParams()
    assert default_sampling(_folder(tmp_path, {"do_sample": False})) == SamplingParams()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ([1], "no JSON object"),
    ],
)
def test_bad_file_is_refused_by_name(tmp_path: Path, config: Any, words: str) -> None:
    """The message names the file and the field."""
    with pytest.raises(ModelLoadError, match=rf"generation_config\.json.*{words}"):
        default_sampling(_folder(tmp_path, config))


def test_cut_file_is_refused(tmp_path: Path) -> None:
    """Half a file is no configuration."""
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.')
    with pytest.raises(ModelLoadError, match=r"generation_config\.json"):
        default_sampling(tmp_path)


def test_request_overrides_defaults_field_by_field() -> None:
    """What the client sends holds, also where it is OpenAI's own default."""
    defaults = SamplingParams(temperature=0.2, top_k=20, max_tokens=50)

    def asked(**fields: Any) -> SamplingParams:
        messages = [Message(role="user", content="hi")]
        return sampling_params(
            ChatCompletionRequest(model="m", messages=messages, **fields), defaults
        )

    assert asked() == defaults
    assert asked(temperature=1.0) == SamplingParams(temperature=1.0, top_k=20, max_tokens=50)
    assert asked(top_k=0, max_completion_tokens=7).max_tokens == 7
    assert asked(top_k=0).top_k == 0
