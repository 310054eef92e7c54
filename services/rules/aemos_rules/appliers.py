"""What judges and carries out, wherever chains run; and the registry of what runs may say."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from aemos.v1.schedule_pb2 import FiringEnd
from aemos_core.database import Database
from aemos_core.outbox import OutboxRows, Row
from aemos_core.redis_link import RedisClient

from aemos_rules import sent_effects
from aemos_rules.activity import Activities
from aemos_rules.alarms import AlarmAssertion
from aemos_rules.assertions import Alarms, States
from aemos_rules.chain_index import ChainIndex
from aemos_rules.deadlines import Deadlines, Kept
from aemos_rules.domain import DerivedReading, Notice, ReportWanted, StateAssertion
from aemos_rules.effects import Applier, Effects
from aemos_rules.memory import Memory, Writes
from aemos_rules.run import Deadline, Remembered
from aemos_rules.sent_effects import Sent


class Parts:
    """What a process that runs chains is made of."""

    def __init__(self, database: Database, redis: RedisClient, outbox: OutboxRows) -> None:
        self.activities = Activities(redis)
        self.index = ChainIndex(database, redis, self.activities)
        self.memory = Memory(database)
        self.deadlines = Deadlines(database, outbox)
        # In the order in which they are written.
        appliers: Mapping[type[Any], Applier] = {
            Remembered: partial(Writes, self.memory),
            Deadline: partial(Kept, self.deadlines),
            StateAssertion: partial(States, redis),
            AlarmAssertion: partial(Alarms, redis),
            Notice: partial(Sent, sent_effects.notices),
            DerivedReading: partial(Sent, sent_effects.derived_readings),
            ReportWanted: partial(Sent, sent_effects.reports),
            FiringEnd: partial(Sent, sent_effects.firing_ends),
            Row: partial(Sent, lambda rows, _: rows),
        }
        self.effects = Effects(database, outbox, appliers)
