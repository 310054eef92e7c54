"""The job that makes a report: reads, draws, stores, and has it sent."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import resvg_py
from aemos.v1 import job_pb2
from aemos_core.database import Database
from aemos_core.errors import AemosError, Kind
from aemos_core.jobs import SEND_EMAIL
from aemos_core.outbox import OutboxRows, Row
from aemos_core.outbox_lane import MOST_IN_BATCH
from aemos_core.sweeping import delete_found
from aemos_core.times import now_ms
from sqlalchemy import insert, or_, select

from aemos_rules import tables
from aemos_rules.domain import Selection
from aemos_rules.report import PERIODS, Alarm, Report, chart, lines, period, to_csv, to_html
from aemos_rules.sensor_source import SensorSource

log = logging.getLogger("aemos.rules")

KEPT = 1_000
"""Reports of an organization: the oldest give way."""
AT_ONCE = 50
"""How many are deleted at a time: each may have megabytes."""
_MOST_PICTURES = 20
_MOST_ALARMS = 200
_MOST_BYTES = 2 * 1024 * 1024
_DAY_MS = 24 * 60 * 60 * 1000
_r = tables.report.c


class ReportJob:
    """May come twice: the key of a report makes it one, and its mail one."""

    def __init__(self, source: SensorSource, database: Database, outbox: OutboxRows, kept_days: int) -> None:
        self._source = source
        self._database = database
        self._outbox = outbox
        self._kept_ms = kept_days * _DAY_MS

    async def generate_report(self, payload: bytes) -> None:
        """Makes it unless it is made. What would fail again and again is given up: its sender would never stop."""
        wanted = job_pb2.GenerateReport.FromString(payload)
        try:
            if not await self.is_made(wanted.key):
                await self._make(wanted)
        except AemosError as error:
            if error.kind.answers.job_again:
                raise
            log.error("no report %r of chain %d: %s", wanted.title, wanted.rule_chain_id, error.detail)

    async def is_made(self, key: str) -> bool:
        """Whether there is the report of this key."""
        async with self._database.read() as connection:
            return (await connection.execute(select(_r.id).where(_r.job_key == key))).first() is not None

    async def _make(self, wanted: job_pb2.GenerateReport) -> None:
        begin, end = period(wanted.period, wanted.at_ms, wanted.timezone)
        bucket = PERIODS[wanted.period]
        about = Selection(
            tuple(wanted.sensor_uuids), tuple(wanted.device_uuids), wanted.label, tuple(wanted.variable_names)
        )
        series = await self._source.series(wanted.organization_id, about, begin, end, bucket)
        alarms = await self._alarms(wanted.organization_id, {one.device_uuid for one in series}, begin, end)
        report = Report(wanted.title, bucket, begin, end, wanted.timezone, series, alarms)
        # Drawing takes up to some hundred milliseconds, and others wait for this loop.
        values, mails = await asyncio.to_thread(_made, wanted, report)
        now = now_ms()
        try:
            await self._save(values | {"created_at_ms": now, "expires_at_ms": now + self._kept_ms}, mails)
        except AemosError as error:
            if error.kind is not Kind.EXISTS:
                raise

    async def _save(self, values: Mapping[str, Any], mails: Sequence[Row]) -> None:
        """Stores a report and announces its mails in one transaction; EXISTS when its job has done so before."""
        async with self._database.write() as connection:
            await connection.execute(insert(tables.report).values(**values))
            surplus = select(_r.id).where(_r.organization_id == values["organization_id"]).order_by(_r.id.desc())
            await delete_found(connection, tables.report, surplus.offset(KEPT).limit(AT_ONCE))
            rows = await self._outbox.add(connection, mails)
        self._outbox.committed(rows)

    async def _alarms(self, organization_id: int, devices: set[str], begin: int, end: int) -> list[Alarm]:
        c = tables.alarm.c
        query = (
            select(c.device_uuid, c.type, c.severity, c.raised_at_ms, c.cleared_at_ms)
            .where(c.organization_id == organization_id, c.device_uuid.in_(devices), c.raised_at_ms < end)
            .where(or_(c.cleared_at_ms.is_(None), c.cleared_at_ms >= begin))
            .order_by(c.raised_at_ms)
            .limit(_MOST_ALARMS)
        )
        async with self._database.read() as connection:
            found = (await connection.execute(query)).all()
        return [Alarm(r.device_uuid, r.type, r.severity, r.raised_at_ms, r.cleared_at_ms or 0) for r in found]


def _made(wanted: job_pb2.GenerateReport, report: Report) -> tuple[dict[str, Any], list[Row]]:
    html, table = to_html(report), to_csv(report)
    if len(html) > _MOST_BYTES:
        html = to_html(report, {})
    values = {
        "organization_id": wanted.organization_id,
        "rule_chain_id": wanted.rule_chain_id,
        "job_key": wanted.key,
        "title": report.title,
        "from_ms": report.from_ms,
        "to_ms": report.to_ms,
        "html": html,
        "csv": table,
    }
    return values, [_mail(wanted, report, table)] if wanted.email_to else []


def _mail(wanted: job_pb2.GenerateReport, report: Report, table: str) -> Row:
    drawn = [(index, line) for index, line in enumerate(lines(report)) if line.count][:_MOST_PICTURES]
    pictures = {index: f"cid:chart-{index}" for index, _ in drawn}
    mail = job_pb2.SendEmail(
        uuid=str(uuid5(NAMESPACE_URL, wanted.key)),
        organization_id=wanted.organization_id,
        to=wanted.email_to,
        subject=report.title,
        html=to_html(report, pictures),
        text=table,
    )
    for index, line in drawn:
        picture = bytes(resvg_py.svg_to_bytes(svg_string=chart(line, report), skip_system_fonts=True))
        content_id = f"chart-{index}"
        mail.attachments.add(
            content_id=content_id, file_name=f"{content_id}.png", media_type="image/png", content=picture
        )
    mail.attachments.add(file_name="report.csv", media_type="text/csv", content=table.encode())
    # A lane has a mail or two under way: one must not hold up all.
    return Row(SEND_EMAIL.name, wanted.rule_chain_id % 20, mail.SerializeToString(), MOST_IN_BATCH)
