"""Where a model lies, and a short name for exactly what lies there. No torch."""

import hashlib
from pathlib import Path
from typing import BinaryIO, Final

from backends.bundled import UnknownBundledModelError, bundled_path
from backends.errors import ModelLoadError

_WHOLE_BYTES: Final = 256 * 2**20
"""Files up to this size are hashed whole; of longer ones the size, the ends and samples."""
_SAMPLES: Final = 256
_SAMPLE_BYTES: Final = 64 * 2**10
_SUFFIXES: Final = (".safetensors", ".json", ".jinja", ".model")
_REVISION_CHARACTERS: Final = 16


def model_folder(model: str) -> Path:
    """Turn what a user calls a model into its folder.

    Raises:
        ModelLoadError: there is no such model; says what there is.
    """
    if model.startswith("bundled:"):
        try:
            return bundled_path(model.removeprefix("bundled:"))
        except UnknownBundledModelError as error:
            raise ModelLoadError(str(error)) from None
    if model.startswith("hf:"):
        name = model.removeprefix("hf:")
        raise ModelLoadError(
            f"{model!r} is not on this machine and we download nothing by ourselves: run "
            f"`hf download {name} --local-dir DIR` and name DIR as the model"
        )
    if model.endswith(".gguf"):
        raise ModelLoadError(f"{model!r}: GGUF files are not supported yet; give a folder")
    folder = Path(model).expanduser()
    if not folder.is_dir():
        raise ModelLoadError(
            f"model {model!r} is no folder; give one in the Hugging Face layout, or bundled:NAME"
        )
    return folder


def revision(folder: Path, *variant: str) -> str:
    """Name the contents: changes when weights, configuration, tokenizer or template change.

    A hash over names and contents of the folder's model files. Of a file over 256 MiB it reads
    the size, the ends and 256 samples, not every byte: training or fetching another version
    changes them, flipping one byte by hand may not.

    Args:
        variant: What else makes answers differ, such as the quantisation at load.
    """
    digest = hashlib.sha256()
    for word in variant:
        digest.update(word.encode() + b"\0")
    for file in sorted(folder.iterdir()):
        if file.suffix in _SUFFIXES and file.is_file():
            digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
            with file.open("rb") as stream:
                _update(digest, stream, file.stat().st_size)
    return digest.hexdigest()[:_REVISION_CHARACTERS]


def _update(digest: "hashlib._Hash", stream: BinaryIO, size: int) -> None:
    if size <= _WHOLE_BYTES:
        while chunk := stream.read(2**20):
            digest.update(chunk)
        return
    for sample in range(_SAMPLES):
        stream.seek((size - _SAMPLE_BYTES) * sample // (_SAMPLES - 1))
        digest.update(stream.read(_SAMPLE_BYTES))
