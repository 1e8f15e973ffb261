"""`python -m backends.echo`: the echo backend over HTTP."""

from pathlib import Path

import click

from backends.echo import EchoBackend
from backends.http_host import run
from backends.openai_app import create_app


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8000, show_default=True)
@click.option("--uds", type=click.Path(path_type=Path), help="A Unix socket instead of a port.")
@click.option("--model", default="echo", show_default=True, help="The name to answer to.")
@click.option("--tokens", type=int, help="Words per answer; default: as many as the echo has.")
@click.option("--delay-s", default=0.0, help="Seconds before the first word.")
@click.option("--token-delay-s", default=0.0, help="Seconds before each further word.")
@click.option("--ns-per-token", type=int, help="Report machine time as our engine does.")
@click.option("--parent-pid", type=int, help="Exit when the parent is no longer this process.")
def main(
    host: str,
    port: int,
    uds: Path | None,
    model: str,
    tokens: int | None,
    delay_s: float,
    token_delay_s: float,
    ns_per_token: int | None,
    parent_pid: int | None,
) -> None:
    """Serve a deterministic backend that answers with the request's own words."""
    backend = EchoBackend(
        model,
        tokens=tokens,
        delay_s=delay_s,
        token_delay_s=token_delay_s,
        ns_per_token=ns_per_token,
    )
    app = create_app(
        backend, models=[model], endpoints=["chat/completions", "completions", "embeddings"]
    )
    run(lambda: app, name="echo", host=host, port=port, uds=uds, parent_pid=parent_pid)
