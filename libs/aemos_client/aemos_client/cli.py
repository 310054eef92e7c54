"""The `aemos` command."""

from __future__ import annotations

import argparse
import asyncio
import importlib
from pathlib import Path

from aemos_core.database import migrate
from aemos_core.settings import ServiceSettings, load

from aemos_client import chain_commands, dead_letters, settings_page, trace_page, up


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="aemos", description="AEMOS on this machine.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("up", help="start everything here, on embedded defaults")
    commands.add_parser("settings", help="list every setting")
    commands.add_parser("migrate", help="bring every service's database to the newest version")
    demo = commands.add_parser("demo", help="simulate the demo devices and print notifications")
    demo.add_argument("--seconds", type=float, default=0, help="stop after so long; 0: until Ctrl-C")
    trace = commands.add_parser("trace", help="print a trace's waterfall")
    trace.add_argument("trace_id")
    trace.add_argument("--dir", type=Path, default=settings_page.var_dir() / "traces")
    chain_commands.add_commands(commands)
    dead_letters.add_commands(commands)
    arguments = parser.parse_args()
    match arguments.command:
        case "up":
            raise SystemExit(up.main())
        case "settings":
            print(settings_page.render())
        case "migrate":
            asyncio.run(migrate_all())
        case "trace":
            raise SystemExit(trace_page.show(arguments.trace_id, arguments.dir))
        case "chains":
            raise SystemExit(chain_commands.run(arguments))
        case "dead-letters":
            raise SystemExit(dead_letters.run(arguments))
        case "demo":
            importlib.import_module("aemos_client.demo").main(arguments.seconds)


async def migrate_all() -> None:
    """Migrates every owner's database in this one process, which is quicker than one for each."""
    settings = load(ServiceSettings)
    for owner in settings_page.OWNERS:
        await migrate(settings.database_of(owner), f"aemos_{owner}")
