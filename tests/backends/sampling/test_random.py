"""Counter-based randomness."""

import numpy as np

from backends.sampling.random import stream_key, uniforms


def test_uniforms_depend_on_key_and_place_alone() -> None:
    """The same pair gives the same number in any company; other pairs give other numbers."""
    keys = np.array([stream_key(seed) for seed in (0, 1, -5, 2**70)], dtype=np.uint64)
    places = np.arange(4, dtype=np.uint64)
    together = uniforms(keys, places)
    alone = [uniforms(keys[i : i + 1], places[i : i + 1])[0] for i in range(4)]
    assert together.tolist() == alone
    assert len(set(together.tolist())) == 4


def test_uniforms_are_even_and_uncorrelated() -> None:
    """Means, spread and neighbour correlation over places and over seeds are those of chance."""
    count = 100_000
    along = uniforms(np.full(count, stream_key(3), np.uint64), np.arange(count, dtype=np.uint64))
    across = uniforms(
        np.array([stream_key(seed) for seed in range(10_000)], dtype=np.uint64),
        np.zeros(10_000, dtype=np.uint64),
    )
    for numbers in (along, across):
        assert 0.0 <= numbers.min() < numbers.max() < 1.0
        assert abs(numbers.mean() - 0.5) < 5 * 0.2887 / np.sqrt(len(numbers))
        assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 5 / np.sqrt(len(numbers))
        counts, _ = np.histogram(numbers, bins=50, range=(0, 1))
        expected = len(numbers) / 50
        assert ((counts - expected) ** 2 / expected).sum() < 49 + 6 * np.sqrt(98)


def test_uniforms_of_neighbouring_seeds_are_not_shifted_copies() -> None:
    """No number of one seed's stream shows up in the next seed's."""
    places = np.arange(1000, dtype=np.uint64)
    streams = [
        set(uniforms(np.full(1000, stream_key(seed), np.uint64), places).tolist())
        for seed in range(3)
    ]
    assert not streams[0] & streams[1]
    assert not streams[1] & streams[2]
