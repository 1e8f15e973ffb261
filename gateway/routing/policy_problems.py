"""What is wrong with a policy's text beside what there is: backends, tiers, the head in use."""

import json
from pathlib import Path

from gateway.routing.language import LANGUAGES
from gateway.settings import Settings
from policies.checker import check
from policies.problems import Problem


def problems_of(text: str, settings: Settings) -> list[Problem]:
    """Errors and warnings, in the order of its lines."""
    return check(text, settings.targets(), predicted=_predicted(settings), languages=LANGUAGES)


def _predicted(settings: Settings) -> set[str] | None:
    """Backends whose quality the head says, and those that are not asked for text; None: the head
    cannot be read."""
    from gateway.routing.classifier import SHIPPED_HEAD

    card = Path(settings.routing.head or SHIPPED_HEAD) / "card.json"
    try:
        said = json.loads(card.read_text(encoding="utf-8"))["backends"]
    except (OSError, ValueError, KeyError):
        return None
    return {*said, *(one.name for one in settings.backends if one.kind == "encoder")}
