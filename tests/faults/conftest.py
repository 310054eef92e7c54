"""An installation on MariaDB to break."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator

import psutil
import pytest

from tests.faults.checker import Rows
from tests.support.mariadb import mariadb_server
from tests.support.stack import Stack, running


@pytest.fixture(scope="module")
def database_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with mariadb_server(tmp_path_factory.mktemp("mariadb")) as url:
        yield url
        for process in psutil.Process().children():  # of which one may have taken the place of the first
            if process.name() == "mariadbd":
                process.terminate()
                process.wait(30)


@pytest.fixture(scope="module")
def stack(database_url: str, rows: Rows, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    rows("CREATE USER aemos@'127.0.0.1'")  # root may write to a server that is read-only
    rows("GRANT ALL ON `aemos\\_%`.* TO aemos@'127.0.0.1'")
    url = database_url.replace("root@", "aemos@")
    with running(tmp_path_factory.mktemp("var"), AEMOS_DATABASE_URL=url, AEMOS_DEMO_DEVICES="40") as stack:
        yield stack


@pytest.fixture(scope="module")
def rows(database_url: str) -> Rows:
    port = re.search(r":(\d+)/", database_url)
    assert port
    command = ["mariadb", "--no-defaults", "-h127.0.0.1", f"-P{port[1]}", "-uroot", "-N", "-B", "-e"]

    def run(statement: str) -> list[tuple[str, ...]]:
        text = statement.format(ingest="aemos_ingest", rules="aemos_rules")
        done = subprocess.run([*command, text], capture_output=True, text=True, check=True, timeout=30)
        return [tuple(line.split("\t")) for line in done.stdout.splitlines()]

    return run
