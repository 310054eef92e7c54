"""`aemos settings`: every setting, from the services' own classes."""

from __future__ import annotations

import importlib

from aemos_core.settings import ServiceSettings

SERVICES = ("gateway", "ingest", "rules", "scheduler", "notify")
LOCAL = {
    "AEMOS_DRAIN_SECONDS": "8 with `make up`",
    "AEMOS_DEMO_DEVICES": "20. Devices of the demo organization, seeded at the first `make up`.",
    "AEMOS_VAR_DIR": "var. Where `make up` keeps databases, Redis, traces and demo.json.",
    "AEMOS_REDIS_PORT": "6399. Port of the embedded Redis, when AEMOS_REDIS_URL is not set.",
}


def settings_class(service: str) -> type[ServiceSettings]:
    """The settings class of a service."""
    module = importlib.import_module(f"aemos_{service}.settings")
    return next(
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, ServiceSettings) and value is not ServiceSettings
    )


def render() -> str:
    """A line for each setting: its variable, its default, what it does."""
    shared = _lines(ServiceSettings, set())
    lines = ["Every process:", *shared]
    for service in SERVICES:
        own = _lines(settings_class(service), set(ServiceSettings.model_fields))
        lines += ["", f"{service}:", *own]
    return "\n".join([*lines, "", "make up:", *(f"  {name:32} {text}" for name, text in LOCAL.items())])


def _lines(cls: type[ServiceSettings], leave_out: set[str]) -> list[str]:
    return [
        f"  {'AEMOS_' + name.upper():32} {field.get_default()!s:24} {field.description}"
        for name, field in cls.model_fields.items()
        if name not in leave_out
    ]
