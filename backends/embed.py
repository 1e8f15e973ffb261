"""Texts as vectors, in one go: `python -m backends.embed --out FILE < texts.json`.

For programs that fit something on an encoder's vectors and may not load torch themselves.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import click
import msgspec
import numpy as np
from numpy.typing import NDArray

from backends.encoder import SentenceEncoder, encoder_folder
from backends.errors import ModelLoadError
from backends.models.folder import revision

BATCH = 64


def embed(encoder: SentenceEncoder, texts: Sequence[str]) -> NDArray[np.float32]:
    """[len(texts), D] unit vectors; texts of about one length go together, to pad little."""
    vectors = np.zeros((len(texts), encoder.dimensions), dtype=np.float32)
    order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
    for start in range(0, len(order), BATCH):
        part = order[start : start + BATCH]
        vectors[part] = encoder.encode([texts[place] or " " for place in part])
    return vectors


@click.command(context_settings={"show_default": True})
@click.option("--model", default="bundled:minilm", help="A sentence-transformers folder.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A .npy file.")
@click.option("--threads", default=1, help="CPU threads of a forward pass.")
def main(model: str, out: Path, threads: int) -> None:
    """Encode a JSON array of texts from standard input; prints the model's revision."""
    try:
        texts = msgspec.json.decode(sys.stdin.buffer.read(), type=list[str])
        folder = encoder_folder(model)
        encoder = SentenceEncoder(folder, threads=threads)
    except (ModelLoadError, msgspec.MsgspecError) as error:
        click.echo(f"headgate embed: {error}", err=True)
        sys.exit(2)
    np.save(out, embed(encoder, texts))
    click.echo(revision(folder))


if __name__ == "__main__":
    main()
