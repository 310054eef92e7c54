"""Facts about the `aemos` command that need nothing started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from aemos_client import chain_files
from aemos_client.cli import main
from aemos_client.rest import Refused, Rest, open_rest

from tests.support.ports import free_port


class FakeRest(Rest):
    """A server with nothing on it; remembers what it was sent."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def call(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        if method == "GET":
            return {"ruleChains": [], "deviceStates": [], "nextPageToken": ""}
        self.sent.append(json.loads(json.dumps(body)))
        return {"id": 1, **body}


def test_times_in_a_chain_file_stay_as_written(tmp_path: Path) -> None:
    """With quotes or without; and a node needs no config, a chain no nodes, for the server to say what is missing."""
    file = tmp_path / "chains.yaml"
    file.write_text(
        "ruleChains: [{name: a, runAt: 2026-12-24T18:00:00Z, nodes: [{type: filter, config: }]}, {name: b, nodes: }]"
    )
    rest = FakeRest()
    assert list(chain_files.applied(rest, chain_files.read(file))) == [("a", "created"), ("b", "created")]
    assert rest.sent[0] == {
        "name": "a", "runAt": "2026-12-24T18:00:00Z", "nodes": [{"type": "filter", "config": {}}]
    }  # fmt: skip


@pytest.mark.parametrize("nodes", ["7", "[7]", "[{config: 7}]"])
def test_a_chain_file_without_nodes_is_refused_in_words(tmp_path: Path, nodes: str) -> None:
    """Not with a traceback."""
    file = tmp_path / "chains.yaml"
    file.write_text(f"ruleChains: [{{name: a, nodes: {nodes}}}]")
    with pytest.raises(Refused, match="a: nodes: must be"):
        list(chain_files.applied(FakeRest(), chain_files.read(file)))


def test_commands_look_where_up_put_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """AEMOS_VAR_DIR moves demo.json and the traces for all of them."""
    monkeypatch.setenv("AEMOS_VAR_DIR", str(tmp_path))
    (tmp_path / "demo.json").write_text(json.dumps({"httpUrl": "http://demo.example"}))
    with open_rest(token="t") as rest:
        assert rest._client.base_url == "http://demo.example"
    monkeypatch.setattr(sys, "argv", ["aemos", "trace", "0" * 32])
    with pytest.raises(SystemExit):
        main()
    assert f"in {tmp_path}/traces" in capsys.readouterr().err


def test_mistakes_are_told_before_anything_starts(tmp_path: Path) -> None:
    """Those of every service, together, each by its variable."""
    wrong = {
        "AEMOS_HTTP_PORT": "web",
        "AEMOS_DEMO_DEVICES": "-1",
        "AEMOS_DRAIN_SECONDS": "soon",
        "AEMOS_SMTP_PORT": "0",
    }
    environment = {**os.environ, "AEMOS_VAR_DIR": str(tmp_path), **wrong}
    command = [sys.executable, "-m", "aemos_client", "up"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 2
    assert sorted(line.split(": ")[0] for line in done.stderr.splitlines()) == sorted(wrong)


@pytest.mark.parametrize("command", [["dead-letters", "list"], ["demo"]])
def test_what_is_not_running_is_told_in_words(command: list[str], tmp_path: Path) -> None:
    """In one line, not with a traceback."""
    port = free_port()
    (tmp_path / "demo.json").write_text(json.dumps({"httpUrl": f"http://127.0.0.1:{port}", "devices": [], "login": {}}))
    environment = {**os.environ, "AEMOS_VAR_DIR": str(tmp_path), "AEMOS_REDIS_URL": f"redis://127.0.0.1:{port}/0"}
    told = [sys.executable, "-m", "aemos_client", *command]
    done = subprocess.run(told, env=environment, capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
