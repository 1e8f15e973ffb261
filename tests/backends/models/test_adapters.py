"""LoRA adapters: read from PEFT's folders, run beside each other, equal to merged weights."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_tokenizers import save_folder
from torch import Tensor

from backends.contract import SamplingParams
from backends.engine.engine import Engine
from backends.engine.factory import build_engine
from backends.engine.options import read_options
from backends.errors import InvalidRequestError, ModelLoadError
from backends.models.adapters import read_adapter
from backends.models.config import read_model_config
from backends.server import _lora_modules

RANK, ALPHA = 4, 6
SHAPES = {
    "self_attn.q_proj": (64, 64),
    "self_attn.v_proj": (32, 64),
    "self_attn.o_proj": (64, 64),
    "mlp.up_proj": (112, 64),
    "mlp.down_proj": (64, 112),
}
"""Of the tiny model: projection → channels, inputs. k and gate stay as they are."""


@pytest.fixture(scope="module")
def base(make_checkpoint: Callable[..., Path]) -> Path:
    """A random model with a tokenizer."""
    folder: Path = save_folder(make_checkpoint(seed=5))
    return folder


FUSED_SHAPES = {"self_attn.qkv_proj": (128, 64), "mlp.gate_up_proj": (224, 64)}
"""Of one whose layers lie so on disk."""


def _weights(seed: int, shapes: Mapping[str, tuple[int, int]] = SHAPES) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {
        f"base_model.model.model.layers.{layer}.{name}.lora_{half}.weight": 0.2
        * torch.randn(RANK if half == "A" else n, k if half == "A" else RANK, generator=draw)
        for layer in range(2)
        for name, (n, k) in shapes.items()
        for half in "AB"
    }


def _adapter(folder: Path, weights: dict[str, Tensor] | None = None, **settings: Any) -> Path:
    folder.mkdir(parents=True)
    told = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "bias": "none", **settings}
    (folder / "adapter_config.json").write_text(json.dumps(told))
    save_file(_weights(1) if weights is None else weights, folder / "adapter_model.safetensors")
    return folder


def _merged(base: Path, weights: dict[str, Tensor], target: Path) -> Path:
    """The model with an adapter's products added to its weights."""
    target.mkdir()
    for file in base.iterdir():
        if file.suffix != ".safetensors":
            (target / file.name).write_bytes(file.read_bytes())
    tensors = load_file(base / "model.safetensors")
    for name in [name for name in weights if ".lora_A." in name]:
        plain = name.removeprefix("base_model.model.").replace(".lora_A", "")
        product = weights[name.replace("lora_A", "lora_B")] @ weights[name]
        tensors[plain] += product * (ALPHA / RANK)
    save_file(tensors, target / "model.safetensors")
    return target


@pytest.fixture(scope="module")
def engine(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """Serves the model and two adapters."""
    root = tmp_path_factory.mktemp("adapters")
    modules = {
        "one": str(_adapter(root / "one")),
        "two": str(_adapter(root / "two", _weights(2))),
    }
    return _engine(base, lora_modules=modules)


def _engine(folder: Path, **options: Any) -> Engine:
    told = {"model": str(folder), "dtype": "float32", "speculation": {"method": "off"}}
    return build_engine(read_options({**told, **options}))


def _run(engine: Engine, asked: dict[str, tuple[list[int], str | None]]) -> dict[str, list[Any]]:
    """Greedy tokens and their log-probabilities by request."""
    params = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True, logprobs=1)
    for request_id, (prompt, adapter) in asked.items():
        engine.add_request(request_id, prompt, params, adapter=adapter)
    answers: dict[str, list[Any]] = {request_id: [] for request_id in asked}
    while engine.has_unfinished:
        for event in engine.step():
            answers[event.request_id] += [(e.token_id, e.logprob) for e in event.logprobs]
    return answers


PROMPT = list(range(40, 75))
"""Two whole blocks: the second request of an adapter reuses the first one's KV."""


def test_an_adapter_answers_as_the_merged_weights_do(
    engine: Engine, base: Path, tmp_path: Path
) -> None:
    """Token by token, with log-probabilities as near as sums in another order are."""
    merged = _engine(_merged(base, _weights(1), tmp_path / "merged"))
    ours = _run(engine, {"a": (PROMPT, "one")})["a"]
    wanted = _run(merged, {"a": (PROMPT, None)})["a"]
    assert [token for token, _ in ours] == [token for token, _ in wanted]
    torch.testing.assert_close(
        torch.tensor([p for _, p in ours]), torch.tensor([p for _, p in wanted]), rtol=0, atol=1e-4
    )
    assert ours != _run(engine, {"a": (PROMPT, None)})["a"]


def test_an_adapter_of_fused_layers_answers_as_the_merged_weights_do(
    make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    """Also where pairs of a head change places, since only a part of it is rotated."""
    rope = {"rope_theta": 1e4, "partial_rotary_factor": 0.5}
    made = make_checkpoint(family="Phi3", rope_parameters=rope, sliding_window=None, seed=5)
    base, weights = save_folder(made), _weights(1, FUSED_SHAPES)
    merged = _engine(_merged(base, weights, tmp_path / "merged"))
    wanted = _run(merged, {"a": (PROMPT, None)})["a"]
    adapted = _engine(base, lora_modules={"one": str(_adapter(tmp_path / "one", weights))})
    ours = _run(adapted, {"a": (PROMPT, "one")})["a"]
    assert [token for token, _ in ours] == [token for token, _ in wanted]
    torch.testing.assert_close(
        torch.tensor([p for _, p in ours]), torch.tensor([p for _, p in wanted]), rtol=0, atol=1e-4
    )
    assert ours != _run(adapted, {"a": (PROMPT, None)})["a"]


def test_adapters_in_one_batch_answer_as_alone(engine: Engine, base: Path) -> None:
    """Bit for bit, the same prompt under every adapter and none: they share no KV."""
    asked = {
        f"{adapter}{length}": (PROMPT[:length], adapter)
        for adapter in ("one", None, "two")
        for length in (35, 3)
    }
    alone: dict[str, list[Any]] = {}
    for request_id, request in asked.items():
        alone |= _run(engine, {request_id: request})
    assert _run(engine, asked) == alone
    assert alone["None35"] == _run(_engine(base), {"a": (PROMPT, None)})["a"]
    assert len({str(answer) for answer in alone.values()}) == len(asked)


def test_an_unknown_adapter_is_refused(engine: Engine) -> None:
    """The error says which there are."""
    with pytest.raises(InvalidRequestError, match=r"no adapter 'three' here; there are: one, two"):
        engine.add_request("a", [3], SamplingParams(), adapter="three")


Q = "base_model.model.model.layers.0.self_attn.q_proj.lora_"


@pytest.mark.parametrize(
    ("weights", "settings", "says"),
    [
        (None, {"peft_type": "IA3"}, "peft_type is 'IA3'; we serve: 'LORA'"),
        (None, {"use_dora": True}, "use_dora is True"),
        (None, {"rank_pattern": {"q_proj": 8}}, "rank_pattern is"),
        (None, {"r": 0}, "r is 0"),
        (None, {"r": 8}, r"is \[4, \d+\]; need \[8, \d+\]"),
        ({Q + "A.weight": (RANK, 64)}, {}, "layer 0's q_proj lacks one of its halves"),
        ({Q.replace(".0.", ".9.") + "A.weight": (RANK, 64)}, {}, "the model has 2 layers"),
        ({"base_model.model.lm_head.lora_A.weight": (RANK, 64)}, {}, "adapts what we do not"),
        ({}, {}, "holds no tensors"),
    ],
    ids=["kind", "dora", "ranks", "rank", "shape", "half", "layer", "head", "empty"],
)
def test_an_adapter_that_does_not_fit_is_refused(
    base: Path,
    tmp_path: Path,
    weights: dict[str, tuple[int, int]] | None,
    settings: dict[str, Any],
    says: str,
) -> None:
    """Nothing is left out silently: the error names adapter, folder and what is wrong."""
    made = None if weights is None else {k: torch.ones(shape) for k, shape in weights.items()}
    folder = _adapter(tmp_path / "bad", made, **settings)
    with pytest.raises(ModelLoadError, match=says) as error:
        read_adapter("sql", folder, read_model_config(base))
    assert f"adapter 'sql' in {str(folder)!r}" in error.value.message


def test_a_folder_without_an_adapter_is_refused(base: Path, tmp_path: Path) -> None:
    """The file that is missing or broken is named."""
    config = read_model_config(base)
    with pytest.raises(ModelLoadError, match=r"no adapter_config\.json"):
        read_adapter("sql", tmp_path, config)
    (tmp_path / "adapter_config.json").write_text("[")
    with pytest.raises(ModelLoadError, match="no JSON object"):
        read_adapter("sql", tmp_path, config)
    (tmp_path / "adapter_config.json").write_text('{"r": 4}')
    with pytest.raises(ModelLoadError, match=r"cannot read adapter_model\.safetensors"):
        read_adapter("sql", tmp_path, config)


def test_names_of_adapters_on_the_command_line_must_be_their_own() -> None:
    """NAME=FOLDER, no name twice, none of the model's."""
    assert _lora_modules(["a=/x", "b=/y=z"], ["m"]) == {"a": "/x", "b": "/y=z"}
    for given in (["a"], ["=x"], ["a="], ["a=x", "a=y"], ["m=x"]):
        with pytest.raises(ValueError, match="--lora-modules"):
            _lora_modules(given, ["m"])
