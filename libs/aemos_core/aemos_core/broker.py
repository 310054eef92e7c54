"""The job queue's broker: Dramatiq on Redis, its idle consumers woken by the queue itself.

An override of dramatiq 2.2.1. Beside its public interface it touches `dramatiq.brokers.redis._RedisConsumer`
(subclassed: `message_cache`, `outstanding_message_count`, a timeout of 0 means "never sleep"),
`RedisBroker._should_do_maintenance` (overridden), the commands `do_requeue` and `do_qsize`, the option
`redis_message_id`, and the keys `{namespace}:{queue}`, `{namespace}:{queue}.msgs` and
`{namespace}:__acks__.{broker}.{queue}`. tests/unit/test_library_contract_dramatiq.py fails when one of them
changes.

The queue needs a Redis database of its own (Dramatiq looks for dead workers with KEYS), Redis >= 6.2 (BLMOVE), and
hosts whose clocks agree to within a few seconds (heartbeats are written with the worker's clock).
"""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from math import inf
from typing import Any, cast
from uuid import uuid4

import redis
from dramatiq import Message
from dramatiq.broker import Broker, MessageProxy
from dramatiq.brokers.redis import RedisBroker, _RedisConsumer
from dramatiq.common import current_millis, q_name
from dramatiq.errors import ConnectionClosed
from dramatiq.middleware import AgeLimit, CurrentMessage, Middleware, Retries, TimeLimit
from redis.backoff import NoBackoff
from redis.retry import Retry

NAMESPACE = "dramatiq"
HEARTBEAT_TIMEOUT_MS = 5_000
MAINTENANCE_EVERY_S = 1.0
BLOCK_S = 1.0
NOT_ALLOWED_S = 0.25
SHORTEST_BLOCK_S = 0.005  # BLMOVE takes 0 for "for ever"
OUTAGE_PAUSE_S = 1.0


@contextmanager
def _outage_closes_connection() -> Iterator[None]:
    """Dramatiq survives ConnectionClosed only: a mere read timeout costs it an acknowledgement or a consumer thread."""
    try:
        yield
    except redis.RedisError as error:
        raise ConnectionClosed(error) from None  # type: ignore[no-untyped-call]


class SureRetries(Retries):
    """Retries that outlive an outage: the library logs a failed re-enqueue, then acknowledges, and the job is lost."""

    def after_process_message(
        self, broker: Broker, message: MessageProxy, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        while True:
            retries = message.options.get("retries", 0)
            try:
                super().after_process_message(broker, message, result=result, exception=exception)  # type: ignore[no-untyped-call]
                return
            except redis.RedisError as error:
                self.logger.warning("Redis refused the retry of %r: %s", message.message_id, error)
                message.options["retries"] = retries
                time.sleep(OUTAGE_PAUSE_S)


class FindableIds(Middleware):
    """Makes the id in Redis, new at every retry, begin with the message's own, so that it is found: `{id}:{nonce}`."""

    def before_enqueue(self, broker: Broker, message: Message[Any], delay: int | None) -> None:
        message.options["redis_message_id"] = f"{message.message_id}:{uuid4().hex[:12]}"


class WakeConsumer(_RedisConsumer):
    """Waits in `BLMOVE q q LEFT LEFT`, which takes nothing and returns as soon as the queue is not empty.

    Each pass (at most 1 s) still fetches, which is heartbeat and maintenance. A consumer that may not fetch goes on
    with what it holds: at most `prefetch` jobs, which it still runs itself, and delayed jobs, which it puts on the
    queue when they are due, for whoever may fetch then.
    """

    def __init__(self, broker: "WakeRedisBroker", queue_name: str, prefetch: int, timeout: int) -> None:
        super().__init__(broker, queue_name, prefetch, 0)  # type: ignore[no-untyped-call]
        self._key = f"{broker.namespace}:{queue_name}"
        self._room = threading.Event()
        self._beaten = 0.0
        with _outage_closes_connection():
            self._held = broker.take_back_stranded(queue_name)

    def __next__(self) -> MessageProxy | None:
        with _outage_closes_connection():
            if not self.message_cache and not self.broker.may_fetch(q_name(self.queue_name)):
                self._keep_alive()
                self.broker.wait_for_permission(min(NOT_ALLOWED_S, self._until_due()))
                return None
            self._room.clear()
            message: MessageProxy | None = super().__next__()  # type: ignore[no-untyped-call]
            if message is None:
                self._wait()
            else:
                self._held[_redis_id(message)] = message.options.get("eta", inf)
            return message

    def ack(self, message: MessageProxy) -> None:
        with _outage_closes_connection():
            super().ack(message)  # type: ignore[no-untyped-call]
        self._let_go(message)

    def nack(self, message: MessageProxy) -> None:
        """Makes it a dead letter that tells its last error: the library keeps what the queue held, before this try."""
        with _outage_closes_connection():
            self.broker.client.hset(f"{self._key}.msgs", _redis_id(message), message.encode())
            super().nack(message)  # type: ignore[no-untyped-call]
        self._let_go(message)

    def requeue(self, messages: Iterable[MessageProxy]) -> None:
        returned = list(messages)
        with _outage_closes_connection():
            super().requeue(returned)  # type: ignore[no-untyped-call]
        for message in returned:
            self._let_go(message)

    def _let_go(self, message: MessageProxy) -> None:
        self._held.pop(_redis_id(message), None)
        if self.outstanding_message_count * 2 <= self.prefetch:
            self._room.set()

    def _wait(self) -> None:
        if self.outstanding_message_count >= self.prefetch:
            self._keep_alive()
            self._room.wait(self._until_due())
        else:
            self.broker.client.blmove(self._key, self._key, self._until_due(), "LEFT", "LEFT")

    def _until_due(self) -> float:
        """Seconds to the next thing to do unasked: the first delayed job's time or a heartbeat."""
        due = min(list(self._held.values()), default=inf)
        return min(BLOCK_S, max(SHORTEST_BLOCK_S, (due - current_millis()) / 1000))

    def _keep_alive(self) -> None:
        """Fetching is a heartbeat; who does not fetch asks for a size, or others take over what this process holds."""
        now = time.monotonic()
        if self._held and now - self._beaten >= BLOCK_S:
            self._beaten = now
            self.broker.do_qsize(self.queue_name)


class WakeRedisBroker(RedisBroker):
    """Dramatiq's Redis broker with `WakeConsumer`; a killed worker's jobs return within about 7 s of its death."""

    def __init__(self, client: redis.Redis) -> None:
        # What is last here is first after a job: a retry that waits for Redis has no time limit.
        middleware = [AgeLimit(), CurrentMessage(), FindableIds(), SureRetries(), TimeLimit()]
        super().__init__(  # type: ignore[no-untyped-call]
            client=client, namespace=NAMESPACE, middleware=middleware, heartbeat_timeout=HEARTBEAT_TIMEOUT_MS
        )
        self.may_fetch: Callable[[str], bool] = lambda queue: True
        """Asked before every fetch, with the queue's name without `.DQ`, from consumer threads: no I/O."""
        self._permission = threading.Condition()
        self._held: defaultdict[str, dict[str, float]] = defaultdict(dict)
        self._maintained = threading.local()

    @property
    def consumer_class(self) -> type[WakeConsumer]:
        return WakeConsumer

    def permissions_changed(self) -> None:
        """Makes waiting consumers ask `may_fetch` at once instead of within 0.25 s. Any thread."""
        with self._permission:
            self._permission.notify_all()

    def wait_for_permission(self, timeout_s: float) -> None:
        """Returns after `permissions_changed` or `timeout_s` seconds."""
        with self._permission:
            self._permission.wait(timeout_s)

    def take_back_stranded(self, queue_name: str) -> dict[str, float]:
        """Puts back what only Redis thinks this process has of a queue; returns what it has: {redis id: due in ms}.

        What a fetch took whose answer was lost, or a delay queue dropped after an error, would otherwise be missing
        for as long as this process lives. Raises redis.RedisError.
        """
        held = self._held[queue_name]
        if queue_name.endswith(".DQ"):
            held.clear()  # a new consumer of a delay queue starts with an empty one
        acks = f"{self.namespace}:__acks__.{self.broker_id}.{queue_name}"
        stranded = {raw.decode() for raw in cast("set[bytes]", self.client.smembers(acks))} - held.keys()
        if stranded:
            self.do_requeue(queue_name, *stranded)
        return held

    def close(self) -> None:
        """Closes the connections to Redis."""
        self.client.close()

    def _should_do_maintenance(self, command: str) -> int:
        """Once a second per consumer (each is a thread), where the library throws dice: so recovery has a bound."""
        now = time.monotonic()
        if command != "fetch" or now - getattr(self._maintained, "at", -inf) < MAINTENANCE_EVERY_S:
            return 0
        self._maintained.at = now
        return 1


def open_broker(url: str) -> WakeRedisBroker:
    """Opens a broker on the Redis database at `url` (`redis://host:port/db`); connects at first use."""
    client = redis.Redis.from_url(
        url,
        socket_connect_timeout=2.0,
        socket_timeout=5.0,  # above BLOCK_S
        retry=Retry(NoBackoff(), 0),  # a fetch sent again strands what the first one took; callers know when to repeat
    )
    return WakeRedisBroker(client)


def _redis_id(message: MessageProxy) -> str:
    return str(message.options["redis_message_id"])
