"""What an answer's own tokens say of it: P(good), from how likely the model found them.

`policy fit` finds, for each backend and judge, the logistic regression from these signals, and from
what the question promised, to P(good): judges.json beside the head. Without one the signals stand
for themselves, uncalibrated: the tokens' mean probability, the surest margin, the lack of entropy.

Where the outcomes tell what was answered, the judge `answer` is a network that reads the words,
too. Judging happens while a request waits, so this is plain Python over a few numbers, and two
small products of matrices for the network.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from gateway.errors import SettingsError
from gateway.routing.figures import log_odds

Floats = NDArray[np.float64]
JUDGES_FILE = "judges.json"
TOP = 5
"""Likeliest tokens at each place that a backend is asked for."""
EDGE = 1e-3
"""How near probabilities come to 0 and 1, and logarithms to that of 0."""
_CERTAIN = 12.0
"""Nats from which a margin says nothing more."""


class Signals(Struct, frozen=True, kw_only=True):
    """How sure a model was of one answer; the token that ended it is not counted."""

    logprob: float
    """Mean log-probability of its tokens."""
    margin: float
    """Least gap between a token's log-probability and that of the likeliest other one."""
    entropy: float
    """Mean over its places, nats; what is beyond the likeliest tokens counts as one more."""
    tokens: int
    checks: tuple[float, ...] = ()
    """What its words say, see `checks_of`; empty: not looked at."""


class Calibration(Struct, frozen=True, kw_only=True):
    """P(good) = sigmoid(offset + weights · features)."""

    weights: tuple[float, ...]
    offset: float
    rows: int = 0
    auc: float | None = None
    ece: float | None = None

    def __call__(self, features: Sequence[float]) -> float:
        """P(good) of one answer."""
        total = self.offset + sum(map(float.__mul__, self.weights, features))
        return 1.0 / (1.0 + math.exp(-max(-60.0, min(60.0, total))))


class Reader(Struct, frozen=True, kw_only=True, dict=True):
    """A small network over tokens, words and the question's promise: one hidden layer.

    P(good) = sigmoid(offset + out · max(0, bias + features · hidden)).
    """

    hidden: tuple[tuple[float, ...], ...]
    """[F][H]"""
    bias: tuple[float, ...]
    """[H]"""
    out: Mapping[str, tuple[float, ...]]
    """[H] by backend: the one whose answer is read, and each dearer one."""
    offset: Mapping[str, float]
    rows: int = 0
    auc: float | None = None
    ece: float | None = None

    def __call__(self, features: Sequence[float], name: str) -> float:
        """P(that backend's answer is good), given that this one was read."""
        return float(self.all(np.array([features]), [name])[0, 0])

    def all(self, features: Floats, names: Sequence[str]) -> Floats:
        """[N, len(names)] from [N, F]."""
        hidden, bias = self._inner
        inner = np.maximum(features @ hidden + bias, 0.0)
        out = np.array([self.out[name] for name in names]).T
        total = inner @ out + [self.offset[name] for name in names]
        return np.asarray(1.0 / (1.0 + np.exp(-np.clip(total, -60.0, 60.0))))

    @cached_property
    def _inner(self) -> tuple[Floats, Floats]:
        return np.array(self.hidden), np.array(self.bias)


class Spread(Struct, frozen=True, kw_only=True):
    """How far a look at the answer moves what the question promised, in log-odds.

    Equally likely points, from the judge's worst to its best verdicts: they say what a judge will
    make of answers that nobody has seen.
    """

    own: tuple[float, ...]
    """Of P(this answer is good)."""
    above: Mapping[str, tuple[float, ...]] = msgspec.field(default_factory=dict)
    """Of P(a dearer backend's would be), by backend, at the same points."""


class Judges(Struct, frozen=True, kw_only=True):
    """The calibrations of one file of outcomes."""

    question: tuple[str, ...] = ()
    """Backends whose predicted quality is a feature, in this order."""
    backends: Mapping[str, Mapping[str, Calibration]] = msgspec.field(default_factory=dict)
    """By backend, by judge."""
    above: Mapping[str, Mapping[str, Mapping[str, Calibration]]] = msgspec.field(
        default_factory=dict
    )
    """By backend, by judge, by a dearer backend: P(that one's answer would be good)."""
    readers: Mapping[str, Reader] = msgspec.field(default_factory=dict)
    """By backend: the judge `answer`, where the answer's words are known."""
    spread: Mapping[str, Mapping[str, Spread]] = msgspec.field(default_factory=dict)
    """By backend, by judge."""
    head: str = ""
    """Version of the head whose predictions they were fitted with."""
    data_sha256: str = ""

    @classmethod
    def load(cls, folder: Path) -> "Judges":
        """Read judges.json; without one nothing is calibrated. Raises SettingsError."""
        path = folder / JUDGES_FILE
        try:
            return msgspec.json.decode(path.read_bytes(), type=cls)
        except FileNotFoundError:
            return cls()
        except (OSError, msgspec.MsgspecError) as error:
            raise SettingsError(f"routing.head: {str(path)!r} cannot be used: {error}") from None

    def p_good(
        self,
        backend: str,
        judge: str,
        signal: "Signals | float",
        quality: Mapping[str, float],
    ) -> float:
        """P(the answer is good).

        Args:
            signal: of its tokens, or what another judge said, 0 to 1.
            quality: predicted from the question, by backend.
        """
        promised = [quality.get(name) for name in self.question]
        reader = self._reader(backend, judge, signal)
        if reader is not None:
            return reader(reader_features(signal, promised), backend)
        known = self.backends.get(backend, {}).get(judge)
        if known is None:
            return uncalibrated(judge, signal)
        return known(features_of(judge, signal, promised))

    def gain(
        self,
        backend: str,
        judge: str,
        signal: "Signals | float",
        quality: Mapping[str, float],
        others: Sequence[str],
    ) -> float | None:
        """How much likelier the best of the others is to be good; None where nobody knows."""
        promised = [quality.get(name) for name in self.question]
        reader = self._reader(backend, judge, signal)
        if reader is not None and all(name in reader.out for name in others):
            read = np.array([reader_features(signal, promised)])
            said = reader.all(read, [backend, *others])[0]
            return float(said[1:].max() - said[0])
        known = self.backends.get(backend, {}).get(judge)
        fitted = self.above.get(backend, {}).get(judge, {})
        if known is None or any(name not in fitted for name in others):
            return None
        features = features_of(judge, signal, promised)
        return max(fitted[name](features) for name in others) - known(features)

    def _reader(self, backend: str, judge: str, signal: "Signals | float") -> Reader | None:
        """Who has been fitted to read this."""
        if judge != "answer" or not isinstance(signal, Signals) or not signal.checks:
            return None
        return self.readers.get(backend)


NO_JUDGES = Judges()
"""Nothing is calibrated."""


def features_of(
    judge: str, signal: Signals | float, quality: Sequence[float | None]
) -> list[float]:
    """What a calibration weighs: the judge's signals, then the question's promise as logits."""
    found: list[float] = []
    if not isinstance(signal, Signals):
        found += [signal, log_odds(signal, edge=EDGE)]
    else:
        if judge in ("answer", "logprob"):
            found += [signal.logprob, math.log(EDGE - signal.logprob)]
        if judge in ("answer", "margin"):
            margin = min(max(signal.margin, 0.0), _CERTAIN)
            found += [margin, math.log(EDGE + margin)]
        if judge in ("answer", "entropy"):
            found += [signal.entropy, math.log(EDGE + signal.entropy)]
        if judge == "answer":
            found += [math.log(max(signal.tokens, 1)), signal.logprob * signal.tokens]
    return found + [0.0 if p is None else log_odds(p, edge=EDGE) for p in quality]


def reader_features(signal: "Signals | float", quality: Sequence[float | None]) -> list[float]:
    """What a reader weighs: as the judge `answer`, then what the words say."""
    checks = signal.checks if isinstance(signal, Signals) else ()
    return [*features_of("answer", signal, quality), *checks]


def uncalibrated(judge: str, signal: Signals | float) -> float:
    """The signal itself, as a number from 0 to 1."""
    if not isinstance(signal, Signals):
        return min(max(signal, 0.0), 1.0)
    if judge == "margin":
        return math.tanh(max(signal.margin, 0.0) / 2)
    if judge == "entropy":
        return math.exp(-max(signal.entropy, 0.0))
    return math.exp(min(signal.logprob, 0.0))


def signals_of(choice: Mapping[str, Any]) -> Signals | None:
    """Of one choice of a chat or completion; None where the server told no log-probabilities."""
    told = choice.get("logprobs")
    if not isinstance(told, Mapping):
        return None
    try:
        places = _chat(told["content"]) if "content" in told else _completion(told)
        return _summed(places)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None  # another server's idea of log-probabilities


_Place = tuple[float, list[float], list[float]]
"""A token's log-probability, those of the likeliest ones, and of those but the token itself."""


def _chat(entries: Sequence[Mapping[str, Any]] | None) -> list[_Place]:
    places: list[_Place] = []
    for entry in entries or ():
        top = entry.get("top_logprobs") or ()
        others = [float(o["logprob"]) for o in top if o["token"] != entry["token"]]
        places.append((float(entry["logprob"]), [float(o["logprob"]) for o in top], others))
    return places


def _completion(told: Mapping[str, Any]) -> list[_Place]:
    places: list[_Place] = []
    tops = told.get("top_logprobs") or [{}] * len(told["tokens"])
    for token, logprob, top in zip(told["tokens"], told["token_logprobs"], tops, strict=True):
        if logprob is not None:
            others = [float(value) for name, value in (top or {}).items() if name != token]
            places.append((float(logprob), [float(v) for v in (top or {}).values()], others))
    return places


def _summed(places: list[_Place]) -> Signals | None:
    if not places:
        return None
    entropy, margin = 0.0, _CERTAIN
    for logprob, top, others in places:
        likeliest = sorted(top or [logprob], reverse=True)[:TOP]
        rest = max(0.0, 1.0 - sum(map(math.exp, likeliest)))
        entropy -= sum(math.exp(value) * value for value in likeliest)
        entropy -= rest * math.log(rest) if rest else 0.0
        if others:
            margin = min(margin, logprob - max(others))
    return Signals(
        logprob=sum(logprob for logprob, _, _ in places) / len(places),
        margin=margin,
        entropy=entropy / len(places),
        tokens=len(places),
    )


def write_judges(judges: Judges, folder: Path) -> None:
    """judges.json, on one line: readers are tens of thousands of numbers."""
    (folder / JUDGES_FILE).write_bytes(msgspec.json.encode(judges) + b"\n")
