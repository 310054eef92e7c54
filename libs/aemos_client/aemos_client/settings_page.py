"""`aemos settings`: every setting, from the services' own classes and the command's own."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

from aemos_core.settings import ServiceSettings
from pydantic import Field, create_model

SERVICES = ("gateway", "ingest", "rules", "scheduler", "notify")
OWNERS = SERVICES[1:]
"""Services that own a database."""
REDIS_PORT = 6399


class UpSettings(ServiceSettings):
    """What `make up` reads beside what its processes read."""

    drain_seconds: float = Field(8.0, gt=0, description="How long a process may finish its work after Ctrl-C.")
    demo_devices: int = Field(20, ge=0, description="Devices of the demo organization, seeded at the first `make up`.")
    var_dir: Path = Field(Path("var"), description="Where `make up` keeps databases, Redis, traces and demo.json.")
    redis_port: int = Field(
        REDIS_PORT, ge=1, le=65535, description="Port of the embedded Redis, when AEMOS_REDIS_URL is not set."
    )


def var_dir() -> Path:
    """Where `make up` keeps its files; relative, when it was not said otherwise."""
    return Path(os.environ.get("AEMOS_VAR_DIR") or "var")


def settings_class(service: str) -> type[ServiceSettings]:
    """The settings class of a service."""
    found: type[ServiceSettings] = getattr(
        importlib.import_module(f"aemos_{service}.settings"), f"{service.capitalize()}Settings"
    )
    return found


def every_setting() -> type[Any]:
    """All that `make up` and its processes read, so that all mistakes are told before anything starts."""
    return create_model("Everything", __base__=(UpSettings, *map(settings_class, SERVICES)))


def render() -> str:
    """A line for each setting: its variable, its default, what it does."""
    lines = ["Every process:", *_lines(ServiceSettings)]
    own = {service: settings_class(service) for service in SERVICES} | {"make up": UpSettings}
    for name, cls in own.items():
        lines += ["", f"{name}:", *_lines(cls, ServiceSettings)]
    return "\n".join(lines)


def _lines(cls: type[ServiceSettings], base: type[ServiceSettings] | None = None) -> list[str]:
    known = base.model_fields if base else {}
    return [
        f"  {'AEMOS_' + name.upper():32} {field.get_default()!s:24} {field.description}"
        for name, field in cls.model_fields.items()
        if name not in known or field.default != known[name].default
    ]
