"""`headgate models pull`: models fetched into this machine's cache. No torch."""

import json
import sys
from typing import Any

from backends.errors import ModelLoadError
from backends.gguf.file import all_parts, is_gguf
from backends.models.folder import model_folder, revision


def pull_model(model: str) -> dict[str, Any]:
    """Fetch what is not here yet of hf:owner/name[@revision]; other models are only looked at.

    Raises:
        ModelLoadError: it cannot be had; says why.
    """
    folder = model_folder(model, refresh=True)
    files = all_parts(folder) if is_gguf(folder) else folder.rglob("*")
    size = sum(file.stat().st_size for file in files if file.is_file())
    return {"model": model, "folder": str(folder), "bytes": size, "revision": revision(folder)}


def main() -> int:
    """Print a list as JSON, one entry per model; 1 and a message on stderr at the first refusal."""
    try:
        print(json.dumps([pull_model(model) for model in sys.argv[1:]]))
    except ModelLoadError as error:
        print(f"headgate: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
