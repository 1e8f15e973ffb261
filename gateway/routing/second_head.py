"""The second head: P(each backend answers well) from the first head's view and a text's meaning.

A vector of the sentence encoder stands beside the first head's log-odds; what is read off both is
one linear output per backend and per gain. Half way between that and what the first head said, in
log-odds, is the second opinion: the two err differently. `policy fit` writes it as second.npz, with
its card, beside the head that it was fitted over.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from gateway.errors import SettingsError
from gateway.routing.figures import log_odds
from gateway.routing.judges import EDGE

SECOND = "second.npz"
SECOND_CARD = "second.json"
FORMAT = 2
MAX_CHARS = 1_000
"""Of a text that the encoder is shown; the semantic cache shows it no more either."""
VECTOR_SCALE = 3.0
"""Of a unit vector beside log-odds, under one penalty."""
Floats = NDArray[np.float32]


class SecondHead(Struct, frozen=True, kw_only=True):
    """Its arrays: K backends, D dimensions of a vector, K + K − 1 outputs."""

    backends: tuple[str, ...]
    """The cheapest first: the others' gains are over it."""
    weights: Floats
    """[K + D, K + K − 1]"""
    bias: Floats
    """[K + K − 1]"""
    shift: tuple[float, ...]
    """[K], how far a look moves each quality: its root mean square, out of fold."""
    encoder: str
    """Name or folder of the encoder that it was fitted with."""
    card: dict[str, Any]

    @classmethod
    def load(cls, folder: Path, head: str) -> "SecondHead | None":
        """The one beside a head; None: there is none, or it belongs to another head.

        Raises:
            SettingsError: it cannot be read.
        """
        try:
            card = json.loads((folder / SECOND_CARD).read_text(encoding="utf-8"))
            if card["format"] != FORMAT:
                raise ValueError(f"made for another version (format {card['format']})")
            with np.load(folder / SECOND, allow_pickle=False) as file:
                weights, bias = file["weights"], file["bias"]
            backends, count = tuple(card["backends"]), len(card["backends"])
            if weights.shape != (count + card["dimensions"], 2 * count - 1):
                raise ValueError(f"weights {weights.shape} are not what the card says")
            if card["head"] != head:
                return None
            return cls(
                backends=backends,
                weights=weights.astype(np.float32),
                bias=bias.astype(np.float32),
                shift=tuple(card["shift"][name] for name in backends),
                encoder=card["encoder"],
                card=card,
            )
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError) as error:
            raise SettingsError(
                f"routing.head: {str(folder / SECOND)!r} cannot be used: {error}; run "
                "`headgate policy fit` again, or remove it"
            ) from None

    def quality(self, first: Mapping[str, float], vector: Floats) -> dict[str, float]:
        """P(answers well) by backend.

        Args:
            first: what the first head says; backends that this head does not know keep it.
            vector: [D], unit length.

        Raises:
            ValueError: the vector is of another encoder.
        """
        seen = np.array(
            [log_odds(first[name], edge=EDGE) for name in self.backends], dtype=np.float32
        )
        told = np.concatenate((seen, VECTOR_SCALE * vector))
        outputs = (told @ self.weights + self.bias).tolist()
        count = len(self.backends)
        good = [1.0 / (1.0 + math.exp(-min(60.0, max(-60.0, value)))) for value in outputs[:count]]
        # what a dearer backend gains is predicted too; its quality is the mean of both views
        for place, gain in enumerate(outputs[count:], start=1):
            other = good[0] + min(1.0, max(-1.0, gain))
            good[place] = min(1.0, max(0.0, (good[place] + other) / 2))
        second = zip(self.backends, good, strict=True)
        return dict(first) | {name: _between(first[name], p) for name, p in second}


def _between(first: float, second: float) -> float:
    """The probability whose log-odds are half way between two others'."""
    middle = (log_odds(first, edge=EDGE) + log_odds(second, edge=EDGE)) / 2
    return 1.0 / (1.0 + math.exp(-middle))
