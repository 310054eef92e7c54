"""Dead letters: jobs that failed for good, kept by Dramatiq in Redis for 7 days with their error.

Keys of dramatiq 2.2.1: `{namespace}:{queue}.XQ`, a sorted set of ids by time, and `{namespace}:{queue}.XQ.msgs`, a hash
of the messages. tests/integration/test_dead_letters.py fails when they change.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dramatiq import Message

from aemos_core.broker import NAMESPACE, WakeRedisBroker

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
                message = self._message(queue, letter_id.decode())
                if message is not None:
                    yield DeadLetter(queue, letter_id.decode(), message.actor_name, int(at), _error(message))

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


def _error(message: Message[object]) -> str:
    lines = str(message.options.get("traceback", "")).strip().splitlines()
    return lines[-1] if lines else ""
