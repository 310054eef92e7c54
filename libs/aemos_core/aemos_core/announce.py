"""The notification log and its channel: a notification is logged once, gets its id there, and is published."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aemos.v1 import job_pb2
from redis.exceptions import NoScriptError

from aemos_core import names, telemetry
from aemos_core.redis_link import RedisClient

log = logging.getLogger("aemos.announce")

BODY, EVENT, ROOMS = b"n", b"e", b"r"
"""Fields of a log entry: the notification as JSON, without `id`, for the entry's own id is that; the event's name; the
rooms, separated by spaces, or `EVERYBODY`."""
EVERYBODY = "*"
"""Instead of rooms: everybody of the organization."""
_SEEN_SECONDS = 24 * 60 * 60
_LONGEST_LOG = 1_000_000
_RECENT_MS = 10 * 60 * 1000
_MOST_RECENT = 5_000
_LOST = b"lost"

# KEYS: seen, log, set of logs. ARGV: organization, channel, beginning of the message, notification, seconds, length,
# event, rooms, the id it had (* when it is new), the last id that the log must have (0 for any).
# The id exists only once the entry does, so it is put into the published text here, not by the caller. The log's age is
# measured by its own ids: they never run back, and a script that asks for the time cannot be replicated everywhere.
_SCRIPT = """
if ARGV[10] ~= '0' and #redis.call('XRANGE', KEYS[2], ARGV[10], '+', 'COUNT', 1) == 0 then return 'lost' end
if not redis.call('SET', KEYS[1], '1', 'NX', 'EX', ARGV[5]) then return false end
local function add(call, id)
  return call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[6], id, 'n', ARGV[4], 'e', ARGV[7], 'r', ARGV[8])
end
local id = add(redis.pcall, ARGV[9])
if type(id) == 'table' then id = add(redis.call, '*') end
local oldest = tonumber(string.match(id, '^%d+')) - ARGV[5] * 1000
redis.call('XTRIM', KEYS[2], 'MINID', '~', string.format('%.0f', oldest))
redis.call('SADD', KEYS[3], ARGV[1])
redis.call('PUBLISH', ARGV[2], ARGV[3] .. string.sub(ARGV[4], 1, -2) .. ',"id":"' .. id .. '"}}')
return id
"""


@dataclass(slots=True)
class _Call:
    """An announcement as the script takes it; `id` is the one that it got."""

    uuid: str
    organization_id: int
    arguments: list[str]
    id: str = "*"


class Announcer:
    """Puts announcements into the notification log and publishes those that it had not seen within 24 hours.

    A Redis that is killed may lose its last second. What this process put there is put back with the id that it had,
    before anything newer of this process: feeds that handed it over know it by its id, and the others catch up. Only
    when another process' notification was faster does it get a new id.
    """

    def __init__(self, redis: RedisClient) -> None:
        self._redis = redis
        self._sha = ""
        self._recent: dict[str, _Call] = {}
        self._last: dict[int, str] = {}
        """The last id in each organization's log, as far as it is known here."""

    async def announce(self, announcements: Sequence[job_pb2.Announcement]) -> None:
        """One round trip for all of them, in order. Raises redis.RedisError; doing it again announces nothing twice.

        One whose `notification_json` is not a JSON object is logged and left out: it would never get any better.
        """
        found = ((each, _arguments(each)) for each in announcements)
        calls = [self._recent.get(a.uuid) or _Call(a.uuid, a.organization_id, made) for a, made in found if made]
        if left := await self._call(calls, self._last):
            await self._call([*self._recent_of({call.organization_id for call in left}), *left], {})

    def _recent_of(self, organization_ids: set[int]) -> list[_Call]:
        calls = [call for call in self._recent.values() if call.organization_id in organization_ids]
        return sorted(calls, key=lambda call: _place(call.id))

    async def _call(self, calls: Sequence[_Call], last: Mapping[int, str]) -> list[_Call]:
        """Those that were not announced, for their logs have lost what was there."""
        if not calls:
            return []
        self._sha = self._sha or await self._redis.script_load(_SCRIPT)
        answers = await self._send(calls, last)
        if any(isinstance(answer, NoScriptError) for answer in answers):
            await self._redis.script_load(_SCRIPT)  # Redis was restarted, and forgot it
            answers = await self._send(calls, last)
        for call, answer in zip(calls, answers, strict=True):
            if isinstance(answer, Exception):
                raise answer
            if isinstance(answer, bytes) and answer != _LOST:
                self._remember(call, answer.decode())
        return [call for call, answer in zip(calls, answers, strict=True) if answer == _LOST]

    def _remember(self, call: _Call, log_id: str) -> None:
        call.id = log_id
        self._last[call.organization_id] = max(log_id, self._last.get(call.organization_id, log_id), key=_place)
        self._recent.pop(call.uuid, None)
        self._recent[call.uuid] = call
        oldest = _place(log_id)[0] - _RECENT_MS
        while len(self._recent) > _MOST_RECENT or _place(next(iter(self._recent.values())).id)[0] < oldest:
            del self._recent[next(iter(self._recent))]

    async def _send(self, calls: Sequence[_Call], last: Mapping[int, str]) -> list[object]:
        async with self._redis.pipeline(transaction=False) as pipe:
            for call in calls:
                pipe.evalsha(self._sha, 3, *call.arguments, call.id, last.get(call.organization_id, "0"))
            answers: list[object] = await pipe.execute(raise_on_error=False)
        return answers


def _place(log_id: str) -> tuple[int, int]:
    ms, _, seq = log_id.partition("-")
    return int(ms), int(seq)


def _arguments(announcement: job_pb2.Announcement) -> list[str]:
    organization = announcement.organization_id
    try:
        notification = _with_trace_id(announcement)
    except ValueError:
        log.error("notification %s is not a JSON object", announcement.uuid)
        return []
    return [
        names.notification_seen(announcement.uuid),
        names.notification_log(organization),
        names.NOTIFICATION_LOGS,
        str(organization),
        names.DEVICE_STATE_CHANGE,
        _envelope(announcement),
        notification,
        str(_SEEN_SECONDS),
        str(_LONGEST_LOG),
        announcement.event,
        " ".join(announcement.rooms) or EVERYBODY,
    ]


def _envelope(announcement: job_pb2.Announcement) -> str:
    """The published message as far as the notification; no rooms: everybody of the organization."""
    rooms = {"rooms": list(announcement.rooms)} if announcement.rooms else {"broadcastAll": True}
    carried = {"traceContext": announcement.trace_context.hex()} if announcement.trace_context else {}
    organization = {"organizationId": announcement.organization_id}
    head = {"type": "socket", "event": announcement.event, **rooms, **organization, **carried}
    return json.dumps(head, separators=(",", ":"))[:-1] + ',"notification":'


def _with_trace_id(announcement: job_pb2.Announcement) -> str:
    """The notification with `traceId`, empty when it is not sampled: every delivery has the same fields."""
    notification = json.loads(announcement.notification_json)
    if not isinstance(notification, dict):
        raise ValueError("a notification is not a JSON object")
    trace_id = telemetry.trace_id_of(announcement.trace_context)
    return announcement.notification_json.rstrip()[:-1] + f'{"," if notification else ""}"traceId":"{trace_id}"}}'
