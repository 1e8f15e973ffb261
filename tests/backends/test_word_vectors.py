"""The classifier's static word vectors."""

import numpy as np

from backends.word_vectors import reduce, whole_words


def test_whole_words_leave_out_pieces_and_marks() -> None:
    """Only entries that stand for a word by themselves are kept."""
    assert whole_words(["[CLS]", "the", "##ing", "a", "x1", "café", "!"]) == ["the", "café"]


def test_reduce_keeps_near_words_near() -> None:
    """Few dimensions hold the main directions: neighbours stay neighbours, variance is one."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(5, 40)) * 3
    vectors = np.repeat(centres, 20, axis=0) + rng.normal(size=(100, 40)) * 0.1
    reduced = reduce(vectors.astype(np.float32), 4)
    assert reduced.shape == (100, 4)
    assert abs(float(reduced.std()) - 1) < 1e-3
    distances = np.linalg.norm(reduced[:, None] - reduced[None], axis=-1)
    same = np.kron(np.eye(5), np.ones((20, 20))).astype(bool)
    assert distances[same].max() < distances[~same].min()
