"""ReportService of the contract: what users do with the reports of their organization."""

from __future__ import annotations

from aemos.v1 import report_pb2 as pb
from aemos.v1 import report_pb2_grpc
from aemos_core import audit
from aemos_core.database import Database
from aemos_core.errors import not_found
from aemos_core.identity import caller
from aemos_core.paging import page_of
from aemos_core.records import AnyRow, listed, message, own
from aemos_core.rpc import Context
from aemos_core.times import to_timestamp
from google.api.httpbody_pb2 import HttpBody
from sqlalchemy import delete, select

from aemos_rules import tables as t

_r = t.report.c
_HEAD = select(*(column for column in _r if column.name not in ("html", "csv")))


class ReportServicer(report_pb2_grpc.ReportServiceServicer):
    """Reports."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def ListReports(self, request: pb.ListReportsRequest, context: Context) -> pb.ListReportsResponse:
        query = _HEAD.where(_r.organization_id == caller().organization_id)
        async with self._database.read() as connection:
            rows, token = await listed(connection, query, _r.id, page_of(request), newest_first=True)
        return pb.ListReportsResponse(reports=map(_report, rows), next_page_token=token)

    async def GetReport(self, request: pb.GetReportRequest, context: Context) -> pb.Report:
        return _report(await self._get(request.id))

    async def GetReportHtml(self, request: pb.GetReportHtmlRequest, context: Context) -> HttpBody:
        row = await self._get(request.id)
        return HttpBody(content_type="text/html; charset=utf-8", data=row.html.encode())

    async def GetReportCsv(self, request: pb.GetReportCsvRequest, context: Context) -> HttpBody:
        row = await self._get(request.id)
        return HttpBody(content_type="text/csv; charset=utf-8", data=row.csv.encode())

    async def DeleteReport(self, request: pb.DeleteReportRequest, context: Context) -> pb.DeleteReportResponse:
        async with self._database.write() as connection:
            mine = _r.id == request.id, _r.organization_id == caller().organization_id
            if not (await connection.execute(delete(t.report).where(*mine))).rowcount:
                raise not_found("report")
            await audit.record(connection, t.audit, "report.delete", f"report {request.id}")
        return pb.DeleteReportResponse()

    async def _get(self, report_id: int) -> AnyRow:
        async with self._database.read() as connection:
            return await own(connection, t.report, report_id)


def _report(row: AnyRow) -> pb.Report:
    return message(pb.Report, row, period_start=to_timestamp(row.from_ms), period_end=to_timestamp(row.to_ms))
