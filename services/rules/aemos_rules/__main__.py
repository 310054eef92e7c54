"""`python -m aemos_rules [worker | migrate]`: the rules service, a rule worker, or the migrations."""

from aemos_core.process import main

from aemos_rules.settings import RulesSettings
from aemos_rules.wiring import wire
from aemos_rules.worker_wiring import wire_worker

main("aemos_rules", RulesSettings, wire, wire_worker)
