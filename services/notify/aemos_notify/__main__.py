"""`python -m aemos_notify [worker|migrate]`: the notify service, its worker, or its migrations."""

import asyncio
import sys

from aemos_core import process, settings

from aemos_notify.settings import NotifySettings
from aemos_notify.wiring import migrate_database, wire, wire_worker

loaded = settings.load(NotifySettings)
match sys.argv[1:]:
    case ["migrate"]:
        asyncio.run(migrate_database(loaded))
    case ["worker"]:
        process.run("notify-worker", loaded, lambda: wire_worker(loaded))
    case _:
        process.run("notify", loaded, lambda: wire(loaded))
