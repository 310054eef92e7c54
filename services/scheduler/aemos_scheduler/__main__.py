"""`python -m aemos_scheduler [migrate]`: the scheduler service, or its migrations."""

from aemos_core.process import main

from aemos_scheduler.settings import SchedulerSettings
from aemos_scheduler.wiring import wire

main("aemos_scheduler", SchedulerSettings, wire)
