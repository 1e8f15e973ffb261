"""The language of a text, by script and by its commonest words. A guess: good from ten words on."""

import re
from collections.abc import Sequence

_SCRIPTS: tuple[tuple[str, str], ...] = (
    ("ja", "\u3040-\u30ff"),
    ("ko", "\uac00-\ud7af\u1100-\u11ff"),
    ("zh", "\u4e00-\u9fff\u3400-\u4dbf"),
    ("ru", "\u0400-\u04ff"),
    ("ar", "\u0600-\u06ff"),
    ("hi", "\u0900-\u097f"),
    ("el", "\u0370-\u03ff"),
    ("he", "\u0590-\u05ff"),
    ("th", "\u0e00-\u0e7f"),
)
_SCRIPT = tuple((code, re.compile(f"[{chars}]")) for code, chars in _SCRIPTS)
_UKRAINIAN = re.compile("[іїєґ]", re.IGNORECASE)
_COMMON: dict[str, str] = {
    "en": "the of and to in is you that it for was on are with as i his they be at this have from "
    "what how why who when where which can do does my your me a an please write give tell will "
    "not we would there if so or make find need want",
    "de": "der die das und ist in ich nicht es sie zu ein eine mit auf für den von dem wie was "
    "warum wer wo wann kann bitte mir du wir im auch sich einen einer des schreibe erkläre hat "
    "sind haben über oder aber welche welcher nenne zum zur",
    "fr": "le la les de des et est un une que qui dans pour pas je vous tu il elle en du ce cette "
    "au aux sur avec plus comment pourquoi quoi quel quelle où quand moi est-ce écris donne mon "
    "ma son sa nous sont être par peux explique résume",
    "es": "el la los las de que y en un una es por con para no se lo como más pero qué cómo cuál "
    "quién dónde cuándo me mi tu su al del este esta está escribe dime haz son hay puedes sobre "
    "cuántos explica resume",
    "it": "il lo la gli le di che e è un una per non con sono mi si come più ma cosa chi dove "
    "quando perché del della dei nel nella questo questa ho hai puoi scrivi dimmi al alla da "
    "quale quanto spiega riassumi",
    "pt": "o a os as de que e é um uma para não com em por se mais como mas do da dos das no na "
    "você eu meu minha qual quem onde quando porque isso este esta são ao escreva diga faça está "
    "quantos explique resuma",
    "nl": "de het een en van ik is dat niet in je op te zijn voor met die wat hoe waarom wie waar "
    "wanneer kan mij mijn aan er maar om ook als dit deze schrijf geef welke naar uit bij heeft "
    "hebben wordt leg",
    "pl": "nie to się w i na z jest co do że jak o ale po czy ten mi tak dla od są gdzie kiedy "
    "dlaczego kto jaki jaka jakie napisz podaj mnie może przez był oraz",
    "sv": "och att det i en är som på för jag inte med har den ett de av till om vad hur varför "
    "vem var när kan du mig min skriv från eller men så vi",
    "tr": "bir ve bu ne için mi de da ile çok ben sen nasıl neden kim nerede zaman var yok gibi "
    "daha olarak bana yaz olan mı nedir kadar",
}
_WORDS: dict[str, tuple[str, ...]] = {}
for _code, _text in _COMMON.items():
    for _word in set(_text.split()):
        _WORDS[_word] = (*_WORDS.get(_word, ()), _code)
_MARKS = {
    "ß": "de", "ä": "de", "ü": "de", "ñ": "es", "¿": "es", "¡": "es", "ã": "pt", "õ": "pt",
    "ç": "fr", "è": "fr", "ê": "fr", "œ": "fr", "ł": "pl", "ą": "pl", "ę": "pl", "ś": "pl",
    "ż": "pl", "å": "sv", "ı": "tr", "ğ": "tr", "ş": "tr", "ò": "it", "ù": "it",
}  # fmt: skip
LANGUAGES = tuple(sorted({*_COMMON, *(code for code, _ in _SCRIPTS), "uk"}))
"""Every code that `detect` can return."""
TOLD = 64
"""Tokens that have a vote."""
_SAMPLE = 400


def detect(text: str, tokens: Sequence[str], default: str = "en") -> str:
    """An ISO 639-1 code out of `LANGUAGES`; `default` when nothing speaks for any."""
    sample = text[:_SAMPLE]
    votes: dict[str, float] = {}
    if not sample.isascii():
        letters = sum(map(str.isalpha, sample)) or 1
        for code, pattern in _SCRIPT:
            found = len(pattern.findall(sample))
            # Japanese mixes kana with Chinese characters: a little kana decides
            if found and found >= (0.1 if code == "ja" else 0.3) * letters:
                return "uk" if code == "ru" and _UKRAINIAN.search(sample) else code
        for mark, code in _MARKS.items():
            if mark in sample:
                votes[code] = votes.get(code, 0.0) + 1.0
    for codes in filter(None, map(_WORDS.get, tokens[:TOLD])):
        for code in codes:
            votes[code] = votes.get(code, 0.0) + 1.0 / len(codes)
    if not votes:
        return default
    best = max(votes, key=lambda code: (votes[code], code == default))
    return best if votes[best] > votes.get(default, 0.0) else default
