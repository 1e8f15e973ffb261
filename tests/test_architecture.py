"""The documents tell the truth, and the layers hold."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks import readme

ROOT = Path(__file__).parents[1]
PACKAGES = ("gateway", "backends", "kernels", "policies", "migrations")


def test_architecture_names_only_what_exists() -> None:
    """Every path in ARCHITECTURE.md is a file or folder of this repository."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    packages = "|".join(PACKAGES)
    named = re.findall(rf"`((?:{packages}|tests|docs)/[\w/.*{{}},-]+)`", text)
    assert len(named) > 40
    missing = [path for path in named if not list(ROOT.glob(path.rstrip("/")))]
    assert missing == []


def test_architecture_names_every_room() -> None:
    """Every folder of code has its line in ARCHITECTURE.md."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    rooms = {
        str(file.parent.relative_to(ROOT))
        for package in PACKAGES
        for file in (ROOT / package).rglob("*.py")
    }
    assert sorted(room for room in rooms if f"`{room}/" not in text) == []


@pytest.mark.parametrize(
    "module",
    [
        "gateway.app",
        "gateway.processes.worker",
        "gateway.processes.supervisor",
        "gateway.cli",
        "policies.evaluator",
    ],
)
def test_gateway_never_imports_torch(module: str) -> None:
    """Importing the front door loads none of the heavy libraries."""
    heavy = "{'torch', 'triton', 'transformers', 'sentence_transformers', 'scipy', 'sklearn'}"
    script = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_readme_figures_are_those_of_the_benchmark_files() -> None:
    """The README's table is what the committed benchmark files say, figure by figure."""
    text = (ROOT / "README.md").read_text()
    start, end = readme.section(text)
    assert text[start:end] == readme.table()


def test_areas_are_the_same_in_the_readme_the_guide_and_the_heads_card() -> None:
    """Both ways of counting frozen rows, wherever either stands."""
    (figures, *_) = [figure for _, figure, file in readme.rows() if file == "cascades"]
    guide = " ".join((ROOT / "docs" / "routing.md").read_text().split())
    assert all(figure in guide for figure in figures.split("; "))
    card = json.loads((ROOT / "gateway" / "routing" / "head" / "card.json").read_text())["cascade"]
    measured = readme.load("cascades")["results"]
    assert card["area"] == measured["measured"]["all"]["area"]
    assert card["marked"] == {name: measured["measured_marked"][name] for name in ("rows", "area")}
