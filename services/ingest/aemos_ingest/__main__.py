"""`python -m aemos_ingest [migrate]`: the ingest service, or its migrations."""

import asyncio
import sys

from aemos_core import process, settings

from aemos_ingest.settings import IngestSettings
from aemos_ingest.wiring import migrate_database, wire

loaded = settings.load(IngestSettings)
if sys.argv[1:] == ["migrate"]:
    asyncio.run(migrate_database(loaded))
else:
    process.run("ingest", loaded, lambda: wire(loaded))
