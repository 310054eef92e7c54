"""A MariaDB of a test's own: durable at each commit, on a free port, gone at the end."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.ports import free_port

START_SECONDS = 30.0


@contextmanager
def mariadb_server(data_dir: Path, port: int = 0) -> Iterator[str]:
    """Yields an AEMOS_DATABASE_URL with {service} in it.

    Entered again with the same directory and port it is the same server after a crash.
    """
    path = os.environ["PATH"] + ":/usr/sbin"
    installer, daemon = (shutil.which(name, path=path) for name in ("mariadb-install-db", "mariadbd"))
    assert installer, "mariadb-server is needed: make infra installs it"
    assert daemon, "mariadb-server is needed: make infra installs it"
    data_dir.mkdir(parents=True, exist_ok=True)
    user = ["--user=root"] if os.geteuid() == 0 else []
    where = [f"--datadir={data_dir}/data", *user]
    options = ["--auth-root-authentication-method=normal", "--skip-test-db"]
    if not (data_dir / "data").exists():
        subprocess.run([installer, "--no-defaults", *where, *options], check=True, capture_output=True, timeout=60)
    port = port or free_port()
    command = [
        daemon,
        "--no-defaults",
        *where,
        f"--port={port}",
        f"--socket={data_dir}/socket",
        "--bind-address=127.0.0.1",
        "--skip-name-resolve",
        "--innodb-flush-log-at-trx-commit=1",
        "--innodb-buffer-pool-size=512M",
        "--max-connections=200",
    ]
    with (data_dir / "log").open("ab") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            _wait(port, process)
            yield f"mysql+asyncmy://root@127.0.0.1:{port}/aemos_{{service}}"
        finally:
            process.terminate()
            process.wait(30)


def _wait(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    ping = ["mariadb-admin", "--no-defaults", "-h127.0.0.1", f"-P{port}", "-uroot", "ping"]
    while subprocess.run(ping, capture_output=True, check=False, timeout=10).returncode:
        assert process.poll() is None, "mariadbd ended"
        assert time.monotonic() < deadline, "mariadbd does not answer"
        time.sleep(0.1)
