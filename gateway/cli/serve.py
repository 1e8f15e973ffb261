"""`headgate serve`."""

import click

from gateway.cli.common import config_option, fail
from gateway.errors import SettingsError
from gateway.settings import load


@click.command()
@config_option
@click.option("--host", help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), help="Port; 0 picks a free one.")
@click.option("--workers", type=click.IntRange(1), help="Gateway processes sharing the port.")
@click.pass_context
def serve(
    ctx: click.Context, config: str | None, host: str | None, port: int | None, workers: int | None
) -> None:
    """Run the gateway and every local backend, supervised.

    Prints one ready line on stdout; logs go to stderr. Ctrl-C or SIGTERM drains: running answers
    finish, new requests get 503.
    """
    overrides = {"host": host, "port": port, "workers": workers}
    settings = load(config or ctx.obj["config"], overrides=overrides)

    from gateway.observability import configure_logging
    from gateway.processes.run_folder import AlreadyRunningError
    from gateway.processes.supervisor import DatabaseRefusedError, PortInUseError
    from gateway.processes.supervisor import serve as run

    configure_logging(settings.log_level)
    try:
        code = run(settings)
    except (AlreadyRunningError, DatabaseRefusedError, PortInUseError) as error:
        fail(str(error))
    except SettingsError as error:
        fail(str(error), code=2)
    ctx.exit(code)
