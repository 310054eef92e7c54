"""What aemos_core.broker takes from inside dramatiq 2.2.1 is there and means what it meant."""

import inspect
from importlib.metadata import version

import dramatiq.worker
from dramatiq.brokers import redis as library
from dramatiq.common import compute_backoff
from dramatiq.middleware import Middleware, Retries


def test_version_is_the_one_that_was_read() -> None:
    """Another version is to be read again before the pin moves."""
    assert version("dramatiq") == "2.2.1"


def test_consumer_keeps_its_parts() -> None:
    """The consumer has the attributes and the constructor that WakeConsumer extends."""
    consumer = library._RedisConsumer(None, "queue", 2, 0)  # type: ignore[no-untyped-call]
    assert consumer.message_cache == []
    assert consumer.outstanding_message_count == 0
    assert {"ack", "nack", "requeue", "__next__"} <= vars(library._RedisConsumer).keys()


def test_timeout_of_zero_never_sleeps() -> None:
    """The library's idle wait is the back-off, which a maximum of 0 makes 0."""
    assert [compute_backoff(misses, max_backoff=0)[1] for misses in range(40)] == [0] * 40
    assert "compute_backoff(self.misses, max_backoff=self.timeout)" in inspect.getsource(library._RedisConsumer)


def test_maintenance_is_asked_for_once_a_command() -> None:
    """The broker decides about maintenance by a method that takes the command's name."""
    assert list(inspect.signature(library.RedisBroker._should_do_maintenance).parameters) == ["self", "command"]
    assert "self._should_do_maintenance(command)" in inspect.getsource(library.RedisBroker._dispatch)


def test_message_id_is_read_after_the_middleware_had_it() -> None:
    """A middleware may name the message in Redis: before_enqueue comes between the library's choice and its use."""
    source = inspect.getsource(library.RedisBroker.enqueue)
    steps = ['"redis_message_id": str', 'emit_before("enqueue", message', "self.do_enqueue(queue_name, message.options"]
    assert [source.index(step) for step in steps] == sorted(source.index(step) for step in steps)
    assert hasattr(Middleware, "before_enqueue")


def test_keys_are_laid_out_as_read() -> None:
    """Queue, messages, held jobs and delay queue are under the keys that the broker and JobQueue use."""
    script = library._scripts["dispatch"].decode()
    for line in (
        'local acks = namespace .. ":__acks__." .. worker_id',
        'local queue_acks = acks .. "." .. queue_name',
        'local queue_full_name = namespace .. ":" .. queue_name',
        'local queue_messages = queue_full_name .. ".msgs"',
        'redis.call("zadd", heartbeats, timestamp, worker_id)',
        'elseif command == "requeue" then',
        'elseif command == "qsize" then',
    ):
        assert line in script, line


def test_retries_count_where_they_are_put_back() -> None:
    """SureRetries undoes one attempt by writing the option that the library counts in."""
    assert 'message.options["retries"] += 1' in inspect.getsource(Retries.after_process_message)


def test_worker_shows_its_threads() -> None:
    """JobWorker looks after `workers` and `consumers`, and TimeLimit starts at the process's boot signal."""
    source = inspect.getsource(dramatiq.worker.Worker.__init__)
    assert "self.workers:" in source
    assert "self.consumers:" in source
    assert hasattr(Middleware, "after_process_boot")
