"""`python -m aemos_scheduler [migrate]`: the scheduler service, or its migrations."""

import asyncio
import sys

from aemos_core import process, settings

from aemos_scheduler.settings import SchedulerSettings
from aemos_scheduler.wiring import migrate_database, wire

loaded = settings.load(SchedulerSettings)
if sys.argv[1:] == ["migrate"]:
    asyncio.run(migrate_database(loaded))
else:
    process.run("scheduler", loaded, lambda: wire(loaded))
