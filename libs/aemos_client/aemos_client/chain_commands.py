"""`aemos chains`: rule chains as a YAML file, and such a file tried over made-up readings."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import yaml

from aemos_client.chain_files import Chain, Names, applied, exported, listed, read
from aemos_client.rest import Refused, Rest, open_rest


def add_commands(commands: Any) -> None:
    """`aemos chains export|apply FILE`, `aemos chains try FILE READINGS`."""
    chains = commands.add_parser("chains", help="rule chains as a YAML file").add_subparsers(dest="verb", required=True)
    for verb, what in (
        ("export", "write every chain to a file"),
        ("apply", "make chains as a file says"),
        ("try", "run a file's chains over made-up readings, without effects"),
    ):
        parser = chains.add_parser(verb, help=what)
        parser.add_argument("file", type=Path)
        if verb == "try":
            parser.add_argument("readings", type=Path, help="YAML with a list `readings`")
        parser.add_argument("--url", default="", help="such as http://127.0.0.1:3000; the demo's when absent")
        parser.add_argument("--token", default="", help="a user's access token; the demo's user when absent")


def run(arguments: argparse.Namespace) -> int:
    """Does what the command line says; 1 when the server refused."""
    try:
        with open_rest(arguments.url, arguments.token) as rest:
            if arguments.verb == "export":
                names = Names(rest)
                content = {"ruleChains": [exported(chain, names) for chain in names.all]}
                arguments.file.write_text(
                    yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8"
                )
            elif arguments.verb == "try":
                readings = listed(arguments.readings, "readings", yaml.BaseLoader)  # values stay as written
                for chain in read(arguments.file):
                    print(chain["name"], *_tried(rest, chain, readings), sep="\n")
            else:
                for name, what in applied(rest, read(arguments.file)):
                    print(f"{what}: {name}")
    except (Refused, OSError, httpx.HTTPError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _tried(rest: Rest, chain: Chain, readings: list[dict[str, Any]]) -> Iterator[str]:
    """What the chain does with them: a line for each run, and one for each of its nodes and effects."""
    body = {"chain": {**chain, "nodes": Names(rest).nodes_of(chain)}, "readings": readings}
    for run in rest.call("POST", "/api/v1/rule-chains/dry-run", body)["chainRuns"]:
        yield f"{run['at']}  {run['trigger']}: {run['outcome']} {run['error']}".rstrip()
        for node in run["nodes"]:
            yield f"    {node['name']}: {node['outcome'] or '-'}  {node['error'] or _short(node['values'])}".rstrip()
        for effect in run["effects"]:
            yield f"    => {effect.pop('type')}  {_short(effect)}".rstrip()


def _short(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())
