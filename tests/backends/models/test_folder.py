"""hf:owner/name: out of the hub's cache, or refused with words that help."""

import json
import os
import subprocess
import sys
from pathlib import Path

from backends.bundled import bundled_path
from tests.backends.gguf.writer import write_gguf

ROOT = Path(__file__).parents[3]


def inspect(model: str, cache: Path) -> subprocess.CompletedProcess[str]:
    """`models inspect` in a process of its own: the hub's library reads its settings once."""
    return subprocess.run(
        [sys.executable, "-m", "backends.models.inspect", model],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_hub_model_is_served_from_the_cache(tmp_path: Path) -> None:
    """A snapshot in the hub's cache is found by name and by revision, without a network."""
    home = tmp_path / "models--owner--tiny"
    commit = "a" * 40
    (home / "snapshots").mkdir(parents=True)
    (home / "snapshots" / commit).symlink_to(bundled_path("nano"))
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(commit)
    for name in ("hf:owner/tiny", f"hf:owner/tiny@{commit}"):
        done = inspect(name, tmp_path)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["architecture"] == "LlamaForCausalLM"


def test_hub_file_is_served_from_the_cache(tmp_path: Path) -> None:
    """Of a repository of .gguf files one is named; one that is not there is refused."""
    home, commit = tmp_path / "models--owner--files", "b" * 40
    snapshot = home / "snapshots" / commit
    snapshot.mkdir(parents=True)
    write_gguf(bundled_path("nano"), snapshot / "nano-f16.gguf", "F16")
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(commit)
    done = inspect("hf:owner/files/nano-f16.gguf", tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["tensor_types"] == {"F16": 29, "F32": 9}
    done = inspect("hf:owner/files/nano-q8_0.gguf", tmp_path)
    assert done.returncode == 1
    assert "hf:owner/files/nano-q8_0.gguf" in done.stderr


def test_unknown_hub_model_is_refused_with_the_way_out(tmp_path: Path) -> None:
    """Offline and not in the cache: the message names the model and how to get it."""
    done = inspect("hf:owner/name", tmp_path)
    assert done.returncode == 1
    assert "hf:owner/name" in done.stderr
    assert "hf download owner/name --local-dir" in done.stderr
