"""Rule chains as a YAML file, so that they live in version control.

A chain is known by its name. States and other chains stand by name, too (`deviceState: "abc-123/alert"`,
`ruleChain: "Other"`), since ids differ between installations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from aemos_client.rest import Refused, Rest

Chain: TypeAlias = dict[str, Any]
_CHAINS = "/api/v1/rule-chains"
_SERVERS_OWN = ("id", "version", "createdAt", "suspension")
# What a field is when the file does not say. Fields without a default here stay as they are on the server.
_DEFAULTS: Mapping[str, Any] = {
    "enabled": True,
    "connections": [],
    "scheduleEnabled": False,
    "cronExpression": "",
    "intervalSeconds": 0,
    "schedulePaused": False,
    "timezone": "UTC",
}
_HIDDEN: Mapping[str, Any] = {**_DEFAULTS, "misfirePolicy": "run-once", "overlapPolicy": "allow"}


class Names:
    """States and chains of the organization, by id and by name."""

    def __init__(self, rest: Rest) -> None:
        self.all: list[Chain] = list(rest.pages(_CHAINS, "ruleChains"))
        self.chains = {chain["name"]: chain for chain in self.all}
        self.ambiguous = {chain["name"] for chain in self.all if self.chains[chain["name"]] is not chain}
        states = {
            f"{s['deviceUuid']}/{s['name']}": s["id"] for s in rest.pages("/api/v1/device-states", "deviceStates")
        }
        self._ids: dict[str, Callable[[], Mapping[str, int]]] = {
            "deviceState": lambda: states,
            "ruleChain": lambda: {name: chain["id"] for name, chain in self.chains.items()},
        }

    def named(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """A node's configuration with names in the place of ids."""
        config = dict(config)
        for field, ids in self._ids.items():
            wanted = config.pop(f"{field}Id", None)
            if wanted:
                found = [name for name, of in ids().items() if of == wanted]
                config |= {field: found[0]} if found else {f"{field}Id": wanted}
        return config

    def nodes_of(self, chain: Chain) -> list[dict[str, Any]]:
        """The nodes of a chain in a file as the server takes them; Refused when they are none."""
        nodes = chain.get("nodes") or []
        if not isinstance(nodes, list) or not all(
            isinstance(node, dict) and isinstance(node.get("config") or {}, dict) for node in nodes
        ):
            raise Refused("nodes: must be a list of nodes, each with fields for its config")
        return [{**node, "config": self._with_ids(node.get("config") or {})} for node in nodes]

    def _with_ids(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The reverse of `named`; Refused when there is none of that name."""
        config = dict(config)
        for field, ids in self._ids.items():
            name = config.pop(field, None)
            if name is not None:
                if name not in ids():
                    raise Refused(f"there is no {field} {name!r}")
                config[f"{field}Id"] = ids()[name]
        return config


def exported(chain: Mapping[str, Any], names: Names) -> Chain:
    """A chain as it stands in a file: without what the server makes, and without defaults."""
    kept = {
        field: value
        for field, value in chain.items()
        if field not in _SERVERS_OWN and value is not None and value != _HIDDEN.get(field, [])
    }
    if not chain.get("intervalSeconds"):
        kept.pop("intervalAnchor", None)
    return kept | {"nodes": [{**node, "config": names.named(node["config"])} for node in chain["nodes"]]}


def applied(rest: Rest, chains: Iterable[Chain]) -> Iterator[tuple[str, str]]:
    """Makes the server's chains those of a file; (name, "created", "changed" or "unchanged") of each, in order.

    Chains that the file does not name stay. Doing it again changes nothing. Raises Refused with the chain's name.
    """
    names = Names(rest)
    for chain in chains:
        name = chain["name"]
        try:
            yield name, _apply(rest, names, chain)
        except Refused as refused:
            raise Refused("\n".join(f"{name}: {line}" for line in str(refused).splitlines())) from None


def _apply(rest: Rest, names: Names, chain: Chain) -> str:
    nodes = names.nodes_of(chain)
    before = names.chains.get(chain["name"])
    if chain["name"] in names.ambiguous:
        raise Refused("several chains have this name: rename them, for a file cannot tell them apart")
    if before is None:
        names.chains[chain["name"]] = rest.call("POST", _CHAINS, {**chain, "nodes": nodes})
        return "created"
    wanted = {**_DEFAULTS, **chain, "nodes": [_as_saved(node, place) for place, node in enumerate(nodes, 1)]}
    if all(before.get(field) == value for field, value in wanted.items()):
        return "unchanged"
    names.chains[chain["name"]] = rest.call("PATCH", f"{_CHAINS}/{before['id']}", wanted)
    return "changed"


def _as_saved(node: Mapping[str, Any], place: int) -> dict[str, Any]:
    return {"name": f"{node.get('type')} {place}", **node}


def read(file: Path) -> list[Chain]:
    """The chains of a file; Refused when it is not one."""
    chains = listed(file, "ruleChains", _TimesAsWritten)
    if not all(chain.get("name") for chain in chains):
        raise Refused(f"{file}: each of `ruleChains` must have a name")
    return chains


class _TimesAsWritten(yaml.SafeLoader):
    """JSON has no times: 2026-12-24T18:00:00Z is the text that the server reads."""


_TimesAsWritten.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def listed(file: Path, name: str, loader: Any) -> list[dict[str, Any]]:
    """A list of a YAML file; Refused when there is none."""
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise Refused(f"{file}: {error}") from None
    found = content.get(name) if isinstance(content, dict) else None
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise Refused(f"{file}: must have a list `{name}`")
    return found
