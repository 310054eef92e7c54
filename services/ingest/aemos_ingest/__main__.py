"""`python -m aemos_ingest [migrate]`: the ingest service, or its migrations."""

from aemos_core.process import main

from aemos_ingest.settings import IngestSettings
from aemos_ingest.wiring import wire

main("aemos_ingest", IngestSettings, wire)
