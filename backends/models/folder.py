"""Where a model lies, and a short name for exactly what lies there. No torch."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Final

from backends.bundled import UnknownBundledModelError, bundled_path
from backends.errors import ModelLoadError
from backends.gguf.file import all_parts, is_gguf, names_of_parts

_WHOLE_BYTES: Final = 256 * 2**20
"""Files up to this size are hashed whole; of longer ones the size, the ends and samples."""
_SAMPLES: Final = 256
_SAMPLE_BYTES: Final = 64 * 2**10
_SUFFIXES: Final = (".safetensors", ".json", ".jinja", ".model")
_RECORDS: Final = ("evaluation.json", "training.json")
"""What was measured and how it was trained: no part of what the model is."""
_REVISION_CHARACTERS: Final = 16


def model_folder(model: str, *, refresh: bool = False) -> Path:
    """Turn what a user calls a model into its folder, or its .gguf file.

    Args:
        model: bundled:NAME, a folder, a .gguf file, hf:owner/name or hf:owner/name/FILE.gguf.
        refresh: of hf:owner/name ask for the newest version, even where one is cached.

    Raises:
        ModelLoadError: there is no such model; says what there is.
    """
    if model.startswith("bundled:"):
        try:
            return bundled_path(model.removeprefix("bundled:"))
        except UnknownBundledModelError as error:
            raise ModelLoadError(str(error)) from None
    if model.startswith("hf:"):
        return _from_hub(model.removeprefix("hf:"), refresh=refresh)
    folder = Path(model).expanduser()
    if is_gguf(folder):
        all_parts(folder)
        return folder
    if not folder.is_dir():
        raise ModelLoadError(
            f"model {model!r} is no folder; give one in the Hugging Face layout, a .gguf file, or "
            "bundled:NAME"
        )
    files = sorted(folder.glob("*.gguf"))
    if files and not (folder / "config.json").is_file():
        raise ModelLoadError(f"{model!r} holds .gguf files; name one of them, such as {files[0]}")
    return folder


def _from_hub(name: str, *, refresh: bool) -> Path:
    """The snapshot of `owner/name` or `owner/name@revision`: from the local cache, else fetched.

    Of a repository of .gguf files, `owner/name/FILE.gguf` (and its other parts) alone.

    The cache, the endpoint, the token and offline mode are huggingface_hub's (HF_HOME,
    HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE).
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    repo, _, version = name.partition("@")
    owner, _, rest = repo.partition("/")
    short, _, file = rest.partition("/")
    patterns = [f"*{suffix}" for suffix in _SUFFIXES]
    if file:
        repo, patterns = (
            f"{owner}/{short}",
            [part.as_posix() for part in names_of_parts(Path(file))],
        )
    reason: Exception = FileNotFoundError()
    for cached_only in (False,) if refresh else (True, False):
        try:
            snapshot = Path(
                snapshot_download(
                    repo,
                    revision=version or None,
                    allow_patterns=patterns,
                    local_files_only=cached_only,
                )
            )
            if not file or all((snapshot / part).is_file() for part in patterns):
                return snapshot / file
            reason = FileNotFoundError(f"it has no file {file!r}")
        except LocalEntryNotFoundError as error:
            reason = error
        except (HFValidationError, OSError, ValueError) as error:
            reason = error
            break
    raise ModelLoadError(
        f"cannot get 'hf:{name}': {str(reason).splitlines()[0]}; check the name, HF_TOKEN and the "
        f"network, or run `hf download {repo} --local-dir DIR` elsewhere and name DIR as the model"
    ) from reason


def revision(folder: Path, *variant: str, suffixes: Sequence[str] = _SUFFIXES) -> str:
    """Name the contents: changes when weights, configuration, tokenizer or template change.

    A hash over names and contents of the folder's model files, or of the .gguf file. Of a file
    over 256 MiB it reads the size, the ends and 256 samples, not every byte: training or fetching
    another version changes them, flipping one byte by hand may not.

    Args:
        variant: What else makes answers differ, such as the quantisation at load.
        suffixes: Of the files that count; (".safetensors",) names the weights alone.
    """
    digest = hashlib.sha256()
    for word in variant:
        digest.update(word.encode() + b"\0")
    for file in all_parts(folder) if is_gguf(folder) else _files(folder, suffixes):
        digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            _update(digest, stream, file.stat().st_size)
    return digest.hexdigest()[:_REVISION_CHARACTERS]


def _files(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    files = (file for file in sorted(folder.iterdir()) if file.suffix in suffixes)
    return [file for file in files if file.name not in _RECORDS and file.is_file()]


def _update(digest: "hashlib._Hash", stream: BinaryIO, size: int) -> None:
    if size <= _WHOLE_BYTES:
        while chunk := stream.read(2**20):
            digest.update(chunk)
        return
    for sample in range(_SAMPLES):
        stream.seek((size - _SAMPLE_BYTES) * sample // (_SAMPLES - 1))
        digest.update(stream.read(_SAMPLE_BYTES))
