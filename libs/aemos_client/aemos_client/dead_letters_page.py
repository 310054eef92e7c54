"""`aemos dead-letters`: what failed for good, sent again or dropped."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from aemos_core.broker import open_broker
from aemos_core.dead_letters import DeadLetters
from aemos_core.times import rfc3339

from aemos_client.up import REDIS_PORT


def add_commands(commands: Any) -> None:
    """Adds the command to a parser."""
    parser = commands.add_parser("dead-letters", help="list, replay or drop jobs that failed for good")
    parser.add_argument("action", choices=("list", "replay", "drop"))
    parser.add_argument("ids", nargs="*", help="queue/id as listed; list: all when absent")
    parser.add_argument("--redis", default=_default_url(), help="Redis of the jobs (default: AEMOS_QUEUE_REDIS_URL)")


def _default_url() -> str:
    port = os.environ.get("AEMOS_REDIS_PORT", REDIS_PORT)
    general = os.environ.get("AEMOS_REDIS_URL", f"redis://127.0.0.1:{port}/0")
    return os.environ.get("AEMOS_QUEUE_REDIS_URL") or general.rsplit("/", 1)[0] + "/1"


def run(arguments: argparse.Namespace) -> int:
    """Does it; exit status 1 when one of the ids is not there, 2 when none is given."""
    broker = open_broker(arguments.redis)
    try:
        return _act(DeadLetters(broker), arguments.action, arguments.ids)
    finally:
        broker.close()


def _act(letters: DeadLetters, action: str, ids: list[str]) -> int:
    if action != "list" and not ids:
        print(f"{action}: name them, as list prints them", file=sys.stderr)
        return 2
    known = {f"{letter.queue}/{letter.id}": letter for letter in letters.all()}
    missing = [name for name in ids if name not in known]
    for name in missing:
        print(f"{name}: no such dead letter", file=sys.stderr)
    for name in ids or list(known):
        letter = known.get(name)
        if letter is None:
            continue
        if action == "list":
            print(f"{rfc3339(letter.died_at_ms)}  {name}  {letter.job}  {letter.error}")
        elif action == "replay":
            print(f"{name}: {'on its queue' if letters.replay(letter.queue, letter.id) else 'gone'}")
        else:
            print(f"{name}: {'dropped' if letters.drop(letter.queue, letter.id) else 'gone'}")
    return 1 if missing else 0
