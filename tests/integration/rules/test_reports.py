"""Reports, on both kinds of database: made once however often their job comes, mailed, read by their owner, expired."""

import asyncio
from typing import Any

import pytest
from aemos.v1 import data_stream_pb2, history_pb2, job_pb2
from aemos.v1 import report_pb2 as pb
from aemos_core.database import Database
from aemos_core.errors import AemosError, Kind, unavailable
from aemos_core.identity import Caller, set_caller
from aemos_core.jobs import SEND_EMAIL
from aemos_core.sweeping import forget
from aemos_core.times import now_ms, parse_rfc3339
from aemos_rules import report_job, tables
from aemos_rules.domain import Question, Selection
from aemos_rules.report_api import ReportServicer
from aemos_rules.report_job import ReportJob
from aemos_rules.sensor_source import SensorSource
from sqlalchemy import func, insert, select

from tests.support.outbox import FakeOutbox

AT = parse_rfc3339("2026-03-18T06:00:00Z")
FROM = parse_rfc3339("2026-03-17T00:00:00Z")
QUARTER = 900_000
NO_CONTEXT: Any = None


class FakeHistory:
    """ingest with two devices, one of them labelled, a sensor each; the second's readings have a gap."""

    def __init__(self) -> None:
        self.queries: list[data_stream_pb2.QueryReadingsRequest] = []
        self.error: AemosError | None = None

    async def GetContext(self, request: history_pb2.GetContextRequest) -> history_pb2.GetContextResponse:
        answer = history_pb2.GetContextResponse()
        number = int(request.page_token or 1)
        device = answer.devices.add(uuid=f"device-{number}")
        device.labels["room"] = "cellar" if number == 2 else "attic"
        sensor = answer.sensors.add().sensor
        sensor.uuid, sensor.device_uuid, sensor.name = f"sensor-{number}", device.uuid, f"Sensor <{number}>"
        for name, value in (("temperature", f"{number}.5"), ("humidity", "80"), ("comment", "nan")):
            answer.sensors[0].latest[name].value = value
        answer.next_page_token = "2" if number == 1 else ""
        return answer

    async def QueryHistory(self, request: history_pb2.QueryHistoryRequest) -> data_stream_pb2.QueryReadingsResponse:
        self.queries.append(request.query)
        if self.error is not None:
            raise self.error
        answer = data_stream_pb2.QueryReadingsResponse()
        for uuid in request.query.sensor_uuid:
            for variable in ("temperature", "comment"):
                series = answer.aggregates.add(sensor_uuid=uuid, variable_name=variable)
                for index in range(96 if request.query.interval else 1):
                    interval = series.intervals.add(count=0 if uuid == "sensor-2" and 20 <= index < 40 else 15)
                    getattr(interval, "from").FromMilliseconds(FROM + index * QUARTER)
                    if interval.count and variable == "temperature":
                        interval.min, interval.avg, interval.max = 20.0, 21.5, 23.0
        return answer


class World:
    """The job and what is around it."""

    def __init__(self, database: Database) -> None:
        self.database, self.outbox, self.history = database, FakeOutbox(), FakeHistory()
        self.api = ReportServicer(database)
        source = SensorSource(self.history)  # type: ignore[arg-type]
        self.job = ReportJob(source, database, self.outbox, 30)

    async def listed(self) -> list[pb.Report]:
        return list((await self.api.ListReports(pb.ListReportsRequest(), NO_CONTEXT)).reports)

    async def make(self, key: str = "k", **fields: object) -> None:
        wanted = job_pb2.GenerateReport(
            key=key, organization_id=1, rule_chain_id=5, title="Daily", period="yesterday", timezone="UTC", at_ms=AT,
            **fields,  # type: ignore[arg-type]
        )  # fmt: skip
        await self.job.generate_report(wanted.SerializeToString())


@pytest.fixture
def world(database: Database) -> World:
    set_caller(Caller(1, 7, "admin"))
    return World(database)


async def test_a_job_that_comes_twice_makes_one_report_and_one_mail(world: World) -> None:
    """The mail has the charts as pictures in it and the table attached."""
    for _ in range(2):
        await world.make(email_to=["ops@example.com"])
    (made,) = await world.listed()
    begin, end = made.period_start.ToMilliseconds(), made.period_end.ToMilliseconds()
    assert (made.title, begin, end - begin) == ("Daily", FROM, 86_400_000)
    (sent,) = world.outbox.sent
    mail = job_pb2.SendEmail.FromString(sent.payload)
    assert (sent.kind, list(mail.to), mail.subject) == (SEND_EMAIL.name, ["ops@example.com"], "Daily")
    pictures = [part for part in mail.attachments if part.content_id]
    assert [part.media_type for part in mail.attachments] == ["image/png", "image/png", "text/csv"]
    assert all(f"cid:{part.content_id}" in mail.html and part.content.startswith(b"\x89PNG") for part in pictures)


async def test_two_at_once_make_one(world: World) -> None:
    """The key decides, not who looked first."""
    made = world.job.is_made

    async def not_yet(job_key: str) -> bool:
        await made(job_key)
        return False

    world.job.is_made = not_yet  # type: ignore[method-assign]
    await world.make()
    await world.make()
    assert len(await world.listed()) == 1


@pytest.mark.parametrize(
    ("fields", "sensors"),
    [
        ({}, ["sensor-1", "sensor-2"]),
        ({"label": "room=cellar"}, ["sensor-2"]),
        ({"sensor_uuids": ["sensor-1"]}, ["sensor-1"]),
        ({"device_uuids": ["device-2"]}, ["sensor-2"]),
        ({"label": "room=cellar", "sensor_uuids": ["sensor-1"]}, ["sensor-1", "sensor-2"]),
        ({"label": "room=bath"}, []),
    ],
)
async def test_it_is_about_the_sensors_that_are_wanted(
    world: World, fields: dict[str, object], sensors: list[str]
) -> None:
    """By uuid, by device, by label, or all; only numbers, each with its figures and gaps."""
    async with world.database.write() as connection:
        await connection.execute(insert(tables.alarm).values(ALARM))
    await world.make(**fields)
    (head,) = await world.listed()
    table = (await world.api.GetReportCsv(pb.GetReportCsvRequest(id=head.id), NO_CONTEXT)).data.decode()
    html = (await world.api.GetReportHtml(pb.GetReportHtmlRequest(id=head.id), NO_CONTEXT)).data.decode()
    lines = [line.split(",") for line in table.splitlines()[1:]]
    assert [line[1] for line in lines] == sensors
    assert {line[3] for line in lines} <= {"temperature"}
    for line in lines:
        gap = line[1] == "sensor-2"
        expected = [str(76 * 15 if gap else 96 * 15), "20.0", "21.5", "23.0"]
        assert line[6:] == [*expected, *(["1", "18000", "1"] if gap else ["0", "0", "0"])]
    assert ("freezer-too-warm" in html) == ("sensor-2" in sensors)
    assert html.count("<svg") == len(sensors)
    assert "Sensor <" not in html


ALARM = {
    "organization_id": 1, "device_id": 2, "device_uuid": "device-2", "type": "freezer-too-warm", "latest": 1,
    "severity": "major", "active": True, "message": "", "raised_at_ms": FROM + QUARTER, "rule_chain_id": 1,
    "data_stream_id": 1, "asserted_at_ms": 1, "asserted_reading_id": 1, "asserted_chain_id": 1,
}  # fmt: skip


async def test_only_their_owner_reads_and_removes_them(world: World) -> None:
    """For another organization they do not exist."""
    await world.make()
    (row,) = await world.listed()
    set_caller(Caller(2, 8, "admin"))
    assert await world.listed() == []
    for refused in (
        world.api.GetReport(pb.GetReportRequest(id=row.id), NO_CONTEXT),
        world.api.DeleteReport(pb.DeleteReportRequest(id=row.id), NO_CONTEXT),
    ):
        with pytest.raises(AemosError) as error:
            await refused
        assert error.value.kind is Kind.NOT_FOUND
    set_caller(Caller(1, 7, "admin"))
    await world.api.DeleteReport(pb.DeleteReportRequest(id=row.id), NO_CONTEXT)
    assert await world.listed() == []


async def test_of_many_who_delete_one_did(world: World) -> None:
    """To the others it is gone, and the audit has it once."""
    await world.make()
    (made,), *_ = await asyncio.gather(*(world.listed() for _ in range(8)))  # who deletes has a connection
    request = pb.DeleteReportRequest(id=made.id)
    answers = await asyncio.gather(
        *(world.api.DeleteReport(request, NO_CONTEXT) for _ in range(8)), return_exceptions=True
    )
    refused = [answer.kind for answer in answers if isinstance(answer, AemosError)]
    assert refused == [Kind.NOT_FOUND] * 7
    async with world.database.read() as connection:
        assert (await connection.execute(select(func.count()).select_from(tables.audit))).scalar() == 1


async def test_they_do_not_pile_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest give way, and each goes when its time is over."""
    monkeypatch.setattr(report_job, "KEPT", 2)
    ids = []
    for key in "abc":
        await world.make(key)
        ids.append((await world.listed())[0].id)
    newest = await world.listed()
    assert [made.id for made in newest] == [ids[2], ids[1]]
    expires = tables.report.c.expires_at_ms
    assert await forget(world.database, expires, now_ms()) == 0
    assert await forget(world.database, expires, newest[0].expires_at.ToMilliseconds() + 1) == 2
    assert await world.listed() == []


async def test_chains_ask_what_was_measured() -> None:
    """Last, or in a period: figures over all, and each sensor's own; nothing measured is a count of 0."""
    source = SensorSource(FakeHistory())  # type: ignore[arg-type]
    about = Selection(label="room=cellar", variable_names=("temperature",))
    last = await source.answer(1, Question(about, ""), AT, "UTC")
    assert last == {"count": 1, "min": 2.5, "avg": 2.5, "max": 2.5, "values": {"sensor-2": {"temperature": 2.5}}}
    everything = await source.answer(1, Question(Selection(), ""), AT, "UTC")
    assert (everything["count"], everything["max"]) == (4, 80.0)
    assert everything["values"]["sensor-1"] == {"temperature": 1.5, "humidity": 80.0}
    day = await source.answer(1, Question(Selection(), "yesterday"), AT, "UTC")
    assert (day["count"], day["min"], day["avg"], day["max"]) == (30, 20.0, 21.5, 23.0)
    nothing = await source.answer(1, Question(Selection(label="room=bath"), "yesterday"), AT, "UTC")
    assert nothing == {"count": 0, "values": {}}


async def test_what_can_never_be_made_is_given_up(world: World) -> None:
    """Without that its sender would send it again for ever; what cannot be made now is tried again."""
    world.history.error = unavailable("ingest does not answer")
    with pytest.raises(AemosError):
        await world.make()
    world.history.error = AemosError(Kind.INVALID, "too many variables")
    await world.make()
    assert await world.listed() == []
    world.history.error = AemosError(Kind.NOT_FOUND, "no such variable")
    await world.make(variable_names=["pressure"])
    assert len(await world.listed()) == 1
