"""`aemos dead-letters`: jobs that failed for good, kept by Dramatiq in Redis for 7 days with their error; sent again or
dropped.

Keys of dramatiq 2.2.1: `{namespace}:{queue}.XQ`, a sorted set of ids by time, and `{namespace}:{queue}.XQ.msgs`, a hash
of the messages. tests/integration/test_dead_letters.py fails when they change.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from aemos_core.broker import NAMESPACE, WakeRedisBroker, open_broker
from aemos_core.settings import jobs_database
from aemos_core.times import rfc3339
from dramatiq import Message
from dramatiq.errors import ConnectionClosed
from redis.exceptions import RedisError

from aemos_client.settings_page import REDIS_PORT

_SUFFIX = ".XQ"
_TRANSIENT = ("retries", "traceback", "requeue_timestamp", "redis_message_id", "eta")
"""Options of a message that tell of its past."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """`id` names it within its queue, `died_at_ms` is ms since 1970, `error` the last line of its traceback."""

    queue: str
    id: str
    job: str
    died_at_ms: int
    error: str


class DeadLetters:
    """Those of every queue."""

    def __init__(self, broker: WakeRedisBroker) -> None:
        self._broker = broker
        self._redis: Any = broker.client  # its types join those of the asyncio client

    def all(self) -> Iterator[DeadLetter]:
        """Oldest first, queue by queue."""
        for key in sorted(self._redis.scan_iter(match=f"{NAMESPACE}:*{_SUFFIX}")):
            queue = key.decode().removeprefix(f"{NAMESPACE}:").removesuffix(_SUFFIX)
            for letter_id, at in self._redis.zrange(key, 0, -1, withscores=True):
                if message := self._message(queue, letter_id.decode()):
                    trace = str(message.options.get("traceback", "")).strip().splitlines() or [""]
                    yield DeadLetter(queue, letter_id.decode(), message.actor_name, int(at), trace[-1])

    def replay(self, queue: str, letter_id: str) -> bool:
        """Puts the job on its queue again, as new; whether it was there. Done twice, the job comes twice."""
        message = self._message(queue, letter_id)
        if message is None:
            return False
        kept = {name: value for name, value in message.options.items() if name not in _TRANSIENT}
        self._broker.declare_queue(queue)
        self._broker.enqueue(message.copy(queue_name=queue, options=kept))
        return self.drop(queue, letter_id)

    def drop(self, queue: str, letter_id: str) -> bool:
        """Forgets it; whether it was there."""
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.zrem(_key(queue), letter_id)
            pipe.hdel(f"{_key(queue)}.msgs", letter_id)
            return bool(pipe.execute()[0])

    def _message(self, queue: str, letter_id: str) -> Message[object] | None:
        data = self._redis.hget(f"{_key(queue)}.msgs", letter_id)
        return None if data is None else Message.decode(data)


def _key(queue: str) -> str:
    return f"{NAMESPACE}:{queue}{_SUFFIX}"


def add_commands(commands: Any) -> None:
    """Adds the command to a parser."""
    parser = commands.add_parser("dead-letters", help="list, replay or drop jobs that failed for good")
    parser.add_argument("action", choices=("list", "replay", "drop"))
    parser.add_argument("ids", nargs="*", help="queue/id as listed; list: all when absent")
    parser.add_argument("--redis", default=_default_url(), help="Redis of the jobs (default: AEMOS_QUEUE_REDIS_URL)")


def _default_url() -> str:
    port = os.environ.get("AEMOS_REDIS_PORT") or REDIS_PORT
    general = os.environ.get("AEMOS_REDIS_URL") or f"redis://127.0.0.1:{port}/0"
    return os.environ.get("AEMOS_QUEUE_REDIS_URL") or jobs_database(general)


def run(arguments: argparse.Namespace) -> int:
    """Does it; exit status 1 when Redis does not answer or one of the ids is not there, 2 when none is given."""
    broker = open_broker(arguments.redis)
    try:
        return act(DeadLetters(broker), arguments.action, arguments.ids)
    except (ConnectionClosed, RedisError) as error:
        print(f"Redis: {error}", file=sys.stderr)
        return 1
    finally:
        broker.close()


def act(letters: DeadLetters, action: str, ids: list[str]) -> int:
    """As `run`."""
    if action != "list" and not ids:
        print(f"{action}: name them, as list prints them", file=sys.stderr)
        return 2
    known = {f"{letter.queue}/{letter.id}": letter for letter in letters.all()}
    missing = [name for name in ids if name not in known]
    for name in missing:
        print(f"{name}: no such dead letter", file=sys.stderr)
    for name, letter in ((name, known[name]) for name in ids or known if name in known):
        if action == "list":
            print(f"{rfc3339(letter.died_at_ms)}  {name}  {letter.job}  {letter.error}")
        elif action == "replay":
            print(f"{name}: {'on its queue' if letters.replay(letter.queue, letter.id) else 'gone'}")
        else:
            print(f"{name}: {'dropped' if letters.drop(letter.queue, letter.id) else 'gone'}")
    return 1 if missing else 0
