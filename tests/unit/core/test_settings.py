"""Facts about settings."""

from __future__ import annotations

import pytest
from aemos_core import settings
from aemos_core.settings import ServiceSettings
from redis.connection import parse_url


def test_all_mistakes_are_told_together(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One line for each, which names the variable and repeats no value: it may be a password."""
    wrong = {
        "DATABASE_URL": "hunter2",
        "REDIS_URL": "http://:hunter2@x",
        "QUEUE_REDIS_URL": "hunter2",
        "LOG_LEVEL": "all",
    }
    wrong |= {"DRAIN_SECONDS": "soon", "SERVICE_SECRET": ""}
    for name, value in wrong.items():
        monkeypatch.setenv(f"AEMOS_{name}", value)
    with pytest.raises(SystemExit) as ended:
        settings.load(ServiceSettings)
    told = capsys.readouterr().err
    assert ended.value.code == 2
    assert sorted(line.split(": ")[0] for line in told.splitlines()) == sorted(f"AEMOS_{name}" for name in wrong)
    assert "hunter2" not in told


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("redis://queue:6379", "queue"),
        ("redis://queue:6379/0", "queue"),
        ("rediss://:p%2Fw@queue:6380/5?health_check_interval=3", "queue"),
        ("redis://queue?db=3", "queue"),
        ("unix:///run/redis.sock", None),
    ],
)
def test_jobs_are_in_database_1_of_the_same_server(url: str, host: str | None) -> None:
    """However the server is written."""
    general, jobs = parse_url(url), parse_url(ServiceSettings(redis_url=url, service_secret="x").jobs_url)
    assert (jobs.get("host"), jobs["db"]) == (host, 1)
    assert {**jobs, "db": 0} == {**general, "db": 0}


@pytest.mark.parametrize("url", ["sqlite+aiosqlite:///v.db", "mysql+asyncmy://u:p@h/d", "mariadb+asyncmy://u:p@h:1/d"])
def test_databases_that_there_are(url: str) -> None:
    """SQLite, MySQL and MariaDB, each by the driver that is installed."""
    assert ServiceSettings(database_url=url, service_secret="x").database_of("rules") == url
