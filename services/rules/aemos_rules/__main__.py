"""`python -m aemos_rules [worker | migrate]`: the rules service, a rule worker, or the migrations."""

import asyncio
import sys

from aemos_core import process, settings

from aemos_rules.settings import RulesSettings
from aemos_rules.wiring import migrate_database, wire
from aemos_rules.worker_wiring import wire_worker

loaded = settings.load(RulesSettings)
match sys.argv[1:]:
    case ["migrate"]:
        asyncio.run(migrate_database(loaded))
    case ["worker"]:
        process.run("rules-worker", loaded, lambda: wire_worker(loaded))
    case _:
        process.run("rules", loaded, lambda: wire(loaded))
