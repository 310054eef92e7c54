"""The registry of what runs may say: an applier for each effect, in the order in which they are written."""

from __future__ import annotations

from aemos.v1.schedule_pb2 import FiringEnd
from aemos_core.database import Database
from aemos_core.outbox import Row
from aemos_core.redis_link import RedisClient

from aemos_rules.alarm_effects import AlarmApplier
from aemos_rules.announcements import notice_rows
from aemos_rules.deadlines import Deadlines
from aemos_rules.derived_readings import derived_rows
from aemos_rules.domain import DerivedReading, Notice, ReportWanted
from aemos_rules.effects import Applier
from aemos_rules.firings import end_rows
from aemos_rules.memory import Memory
from aemos_rules.sent_effects import SentApplier, report_rows
from aemos_rules.state_effects import StateApplier


def every_applier(database: Database, redis: RedisClient, memory: Memory, deadlines: Deadlines) -> tuple[Applier, ...]:
    """Wherever chains run, all that they may say is carried out."""
    states, alarms = StateApplier(database, redis), AlarmApplier(database, redis)
    sent = (
        SentApplier(Notice, notice_rows),
        SentApplier(DerivedReading, derived_rows),
        SentApplier(ReportWanted, report_rows),
        SentApplier(FiringEnd, end_rows),
        SentApplier(Row, lambda rows, _: list(rows)),
    )
    return (memory, deadlines, states, alarms, *sent)
