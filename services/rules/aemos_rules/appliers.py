"""What judges and carries out, wherever chains run; and the registry of what runs may say."""

from __future__ import annotations

from collections.abc import Mapping
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
from aemos_rules.deadlines import Deadlines
from aemos_rules.domain import DerivedReading, Notice, ReportWanted, StateAssertion
from aemos_rules.effects import Effects, Prepare
from aemos_rules.memory import Memory
from aemos_rules.run import Deadline, Remembered
from aemos_rules.run_records import Recorder
from aemos_rules.sent_effects import sent


class Parts:
    """What a process that runs chains is made of."""

    def __init__(self, database: Database, redis: RedisClient, outbox: OutboxRows) -> None:
        self.activities = Activities(redis)
        self.index = ChainIndex(database, redis, self.activities)
        self.memory = Memory(database)
        self.deadlines = Deadlines(database, outbox)
        # In the order in which they are written.
        appliers: Mapping[type[Any], Prepare] = {
            Remembered: self.memory.prepare,
            Deadline: self.deadlines.prepare,
            StateAssertion: States(redis).prepare,
            AlarmAssertion: Alarms(redis).prepare,
            Notice: sent(sent_effects.notices),
            DerivedReading: sent(sent_effects.derived_readings),
            ReportWanted: sent(sent_effects.reports),
            FiringEnd: sent(sent_effects.firing_ends),
            Row: sent(lambda rows, _: list(rows)),
        }
        self.effects = Effects(database, outbox, appliers, Recorder(self.activities))
