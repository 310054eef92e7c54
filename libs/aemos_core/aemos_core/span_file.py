"""Spans in files: what a developer without a collector reads with `aemos trace`."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from logging.handlers import RotatingFileHandler
from pathlib import Path

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

_FILE_BYTES = 10_000_000


class RotatingFileExporter(SpanExporter):
    """One JSON line for each span in `<dir>/<service>.jsonl`, two files of 10 MB at the most.

    A line: {"trace", "span", "parent", "name", "service", "start_ns", "end_ns", "attributes", "links": [trace ids],
    "error"}, ids as hex.
    """

    def __init__(self, directory: Path, service: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._service = service
        path = directory / f"{service}.jsonl"
        self._file = RotatingFileHandler(path, maxBytes=_FILE_BYTES, backupCount=1, encoding="utf-8")

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Appends the spans."""
        for span in spans:
            self._file.emit(logging.makeLogRecord({"msg": json.dumps(self._line(span))}))
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Closes the file."""
        self._file.close()

    def _line(self, span: ReadableSpan) -> dict[str, object]:
        return {
            "trace": f"{span.context.trace_id:032x}",
            "span": f"{span.context.span_id:016x}",
            "parent": f"{span.parent.span_id:016x}" if span.parent else "",
            "name": span.name,
            "service": self._service,
            "start_ns": span.start_time,
            "end_ns": span.end_time,
            "attributes": dict(span.attributes or {}),
            "links": [f"{link.context.trace_id:032x}" for link in span.links],
            "error": span.status.description or "" if not span.status.is_ok else "",
        }
