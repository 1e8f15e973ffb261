"""The language of a prompt."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.routing.language import LANGUAGES, detect
from gateway.routing.words import tokens_of


def language(text: str) -> str:
    return detect(text, tokens_of(text))


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Why is the sky blue, and what makes it red in the evening?", "en"),
        ("Warum ist der Himmel blau und am Abend rot?", "de"),
        ("Pourquoi le ciel est-il bleu et rouge le soir ?", "fr"),
        ("¿Por qué el cielo es azul y por la tarde rojo?", "es"),
        ("Perché il cielo è azzurro e la sera è rosso?", "it"),
        ("Por que o céu é azul e à noite não é?", "pt"),
        ("Waarom is de lucht blauw en in de avond rood?", "nl"),
        ("Dlaczego niebo jest niebieskie, a wieczorem nie jest?", "pl"),
        ("Varför är himlen blå och inte grön?", "sv"),
        ("Gökyüzü neden mavi ve akşam neden kırmızı?", "tr"),
        ("Почему небо голубое?", "ru"),
        ("Чому небо блакитне і чисте? Їжак", "uk"),
        ("为什么天空是蓝色的?", "zh"),
        ("空はなぜ青いのですか?", "ja"),
        ("하늘은 왜 파란가요?", "ko"),
        ("لماذا السماء زرقاء؟", "ar"),
        ("आसमान नीला क्यों है?", "hi"),
        ("Γιατί ο ουρανός είναι μπλε;", "el"),
        ("12 + 30 = ?", "en"),
        ("", "en"),
        ("def f(x): return x", "en"),
        ("Bonjour", "en"),
    ],
)
def test_detect_knows_a_sentence(text: str, code: str) -> None:
    """One ordinary sentence is enough; where nothing speaks for a language it is English."""
    assert language(text) == code


@given(st.text(max_size=300))
def test_detect_is_total(text: str) -> None:
    """Any text gives one of the codes."""
    assert language(text) in LANGUAGES
