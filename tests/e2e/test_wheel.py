"""The built wheel, installed into an empty environment, serves from another folder."""

import json
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from backends.bundled import bundled_path
from tests.e2e.serving import Headgate

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of what git tracks, so that no build folder is left behind."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    for name in names:
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, source],
        check=True,
        capture_output=True,
    )
    (built,) = folder.glob("headgate-*.whl")
    return built


def test_wheel_carries_its_data_and_no_tests(wheel: Path) -> None:
    """Weights, tokenizers, policies, migrations and heads are package data."""
    names = zipfile.ZipFile(wheel).namelist()
    for wanted in (
        "backends/bundled/nano/model.safetensors",
        "backends/bundled/small/tokenizer.json",
        "policies/default.toml",
        "policies/cheapest.toml",
        "policies/quality_first.toml",
        "gateway/routing/head/card.json",
        "backends/bundled/nano/evaluation.json",
        "backends/bundled/outcomes.jsonl.gz",
        "backends/evaluation/suites/chat.jsonl.gz",
        "backends/evaluation/suites/docs.jsonl.gz",
        "backends/evaluation/suites/tasks.jsonl.gz",
        "backends/evaluation/suites/lm.jsonl.gz",
        "backends/evaluation/suites/frozen.txt",
        "backends/evaluation/suites/manifest.json",
        "backends/evaluation/suites/NOTICE.md",
    ):
        assert wanted in names
    assert any(name.startswith("migrations/versions/") for name in names)
    assert not any(name.startswith("tests/") for name in names)


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with nothing of ours but the installed wheel."""
    environment = tmp_path_factory.mktemp("installed") / "env"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    # The dependencies are those of this environment: torch alone would take minutes to install.
    purelib = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    (Path(purelib) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    subprocess.run(
        [
            python,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--no-index",
            "--force-reinstall",
            wheel,
        ],
        check=True,
    )
    return environment


def test_wheel_serves_from_another_folder(environment: Path, tmp_path: Path) -> None:
    """`pip install` of the wheel and `headgate serve` elsewhere answer a question."""
    python = environment / "bin" / "python"
    script = "import gateway, transformers, kernels; print(gateway.__file__, kernels.__file__)"
    where = subprocess.run(
        [python, "-c", script],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert all(path.startswith(str(environment)) for path in where)
    command = (str(environment / "bin" / "headgate"),)
    headgate = Headgate(tmp_path, command=command).start()
    try:
        answer = headgate.sdk().chat.completions.create(
            model="auto", messages=[{"role": "user", "content": "What is 1 + 2?"}], max_tokens=16
        )
        assert answer.choices[0].message.content
    finally:
        assert headgate.stop() == 0, headgate.tail()


def test_wheel_measures_a_model_with_nothing_but_itself(environment: Path, tmp_path: Path) -> None:
    """`headgate models eval` finds suites and weights in the wheel and gives its own figures."""
    asked = ("--suite", "docs", "--outcomes", "outcomes.jsonl")
    done = subprocess.run(
        [environment / "bin" / "headgate", "models", "eval", "nano", "--json", *asked],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)["models"]
    shipped = json.loads((bundled_path("nano") / "evaluation.json").read_bytes())
    assert found["by_part"] == {part: shipped["by_part"][part] for part in found["by_part"]}
    assert found["suites"] == {name: shipped["suites"][name] for name in ["docs"]}
    rows = [json.loads(line) for line in (tmp_path / "outcomes.jsonl").read_text().splitlines()]
    assert all(row["cost_usd"]["nano"] > 0 for row in rows)
