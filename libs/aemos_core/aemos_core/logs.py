"""One JSON line for each log record, on standard error."""

from __future__ import annotations

import logging
import sys
from typing import Any

from pythonjsonlogger.json import JsonFormatter

_LONGEST = 2_000
"""Characters of a message, and of each thing beside it."""


class _Formatter(JsonFormatter):
    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        """Cut before it is JSON, which a cut line is not."""
        return {name: _cut(value) for name, value in log_data.items()}

    def formatException(self, exc_info: Any) -> str:
        """A traceback's last lines say most."""
        return str(super().formatException(exc_info))[-_LONGEST:]


def _cut(value: Any) -> Any:
    return value[:_LONGEST] + "…" if isinstance(value, str) and len(value) > _LONGEST else value


def formatter(service: str) -> logging.Formatter:
    """Makes a record a JSON line with time, level, logger, message and service, and what is beside the message."""
    return _Formatter(
        "{asctime}{levelname}{name}{message}",
        style="{",
        rename_fields={"asctime": "time", "levelname": "level", "name": "logger"},
        static_fields={"service": service},
    )


def configure(service: str, level: str) -> None:
    """Sends every logger's records to one handler; libraries speak from WARNING on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter(service))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("aemos").setLevel(level)
    logging.captureWarnings(True)
