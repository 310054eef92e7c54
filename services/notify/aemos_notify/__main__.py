"""`python -m aemos_notify [worker | migrate]`: the notify service, its worker, or its migrations."""

from aemos_core.process import main

from aemos_notify.settings import NotifySettings
from aemos_notify.wiring import wire, wire_worker

main("aemos_notify", NotifySettings, wire, wire_worker)
