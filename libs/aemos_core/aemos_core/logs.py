"""One JSON line for each log record, on standard error."""

from __future__ import annotations

import logging
import sys
from typing import Any

from pythonjsonlogger.json import JsonFormatter

_LONGEST = 4_000


class _Formatter(JsonFormatter):
    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        return line if len(line) <= _LONGEST else line[:_LONGEST] + '…"}'

    def formatException(self, exc_info: Any) -> str:
        """A traceback's last lines say most."""
        return str(super().formatException(exc_info))[-_LONGEST // 2 :]


def configure(service: str, level: str) -> None:
    """Sends every logger's records to one handler; libraries speak from WARNING on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        _Formatter(
            "{asctime}{levelname}{name}{message}",
            style="{",
            rename_fields={"asctime": "time", "levelname": "level", "name": "logger"},
            static_fields={"service": service},
        )
    )
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("aemos").setLevel(level)
    logging.captureWarnings(True)
