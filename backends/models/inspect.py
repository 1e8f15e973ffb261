"""`headgate models inspect`: what a model folder holds, read from headers only. No torch."""

import json
import math
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
from safetensors import safe_open

from backends.errors import ModelLoadError
from backends.gguf.file import is_gguf, open_gguf
from backends.models.config import read_model_config
from backends.models.folder import model_folder, revision

_BESIDE_WEIGHTS = ("_scale", "_zero_point", "_shape", ".scales", ".qzeros", ".g_idx")
_WORDS = (".weight_packed", ".qweight")
"""Each number of these holds eight weights."""


def inspect_model(model: str) -> dict[str, Any]:
    """Architecture, size and revision of a folder, a .gguf file or bundled:NAME.

    Raises:
        ModelLoadError: it cannot be served; says why.
    """
    folder = model_folder(model)
    config = read_model_config(folder)
    types: dict[str, int] = {}
    if is_gguf(folder):
        parameters, size, types = _count_gguf(folder)
    else:
        parameters, size = _count(folder)
    return {
        "model": model,
        "architecture": config.architecture,
        "parameters": parameters,
        "bytes_on_disk": size,
        "quantization": None if config.quantization is None else config.quantization.scheme,
        "tensor_types": types or None,
        "dtype": config.dtype,
        "layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "heads": config.num_attention_heads,
        "kv_heads": config.num_key_value_heads,
        "vocab_size": config.vocab_size,
        "context_tokens": config.max_position_embeddings,
        "rope": msgspec.structs.asdict(config.rope)["rope_type"],
        "revision": revision(folder),
    }


def _count(folder: Path) -> tuple[int, int]:
    """Parameters (what belongs to codes is not counted) and bytes of all weight files."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelLoadError(f"no .safetensors file in {str(folder)!r}")
    parameters = 0
    for file in files:
        with safe_open(file, framework="np") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - it is no mapping
                if not name.endswith(_BESIDE_WEIGHTS):
                    count = 8 if name.endswith(_WORDS) else 1
                    for length in tensors.get_slice(name).get_shape():
                        count *= length
                    parameters += count
    return parameters, sum(file.stat().st_size for file in files)


def _count_gguf(path: Path) -> tuple[int, int, dict[str, int]]:
    """Parameters, bytes of all parts, and how many tensors are of each type."""
    file = open_gguf(path)
    types = Counter(tensor.kind.name for tensor in file.tensors.values())
    parameters = sum(math.prod(tensor.shape) for tensor in file.tensors.values())
    return parameters, sum(part.stat().st_size for part in file.paths), dict(types.most_common())


def main() -> int:
    """Print the facts as JSON; 1 and a message on stderr if the model cannot be served."""
    if len(sys.argv) != 2:
        print("usage: python -m backends.models.inspect MODEL", file=sys.stderr)
        return 2
    try:
        print(json.dumps(inspect_model(sys.argv[1])))
    except ModelLoadError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
