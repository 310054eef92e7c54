"""One installation on MariaDB for all of these tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.installation import Installation, installation
from tests.faults.test_rounds import DEVICES, ROUNDS
from tests.support.mariadb import mariadb_server

OTHER_DEVICES = 80


@pytest.fixture(scope="session")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    devices, disk_megabytes = ROUNDS * DEVICES + OTHER_DEVICES, 512 + 128 * ROUNDS  # a round stores 30 to 80 MB
    with installation(tmp_path_factory.mktemp("faults"), devices, disk_megabytes) as it:
        yield it


@pytest.fixture(scope="module")
def database_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with mariadb_server(tmp_path_factory.mktemp("mariadb")) as url:
        yield url
