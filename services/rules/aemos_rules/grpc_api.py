"""The servicers of rules: decode, call, encode."""

from __future__ import annotations

from aemos.v1 import alarm_pb2 as alarm_pb
from aemos.v1 import alarm_pb2_grpc, device_state_pb2_grpc, report_pb2_grpc, rule_chain_pb2_grpc
from aemos.v1 import device_state_pb2 as state_pb
from aemos.v1 import report_pb2 as report_pb
from aemos.v1 import rule_chain_pb2 as chain_pb
from aemos_core.identity import Caller, set_caller
from aemos_core.paging import page_of
from aemos_core.rpc import Context
from aemos_core.times import now_ms
from google.api.httpbody_pb2 import HttpBody

from aemos_rules import codec
from aemos_rules.alarm_service import Alarms
from aemos_rules.chain_service import RuleChains
from aemos_rules.nodes import node_types
from aemos_rules.report_service import Reports
from aemos_rules.state_service import DeviceStates

_MOST_SCHEDULES = 10_000


class RuleChainServicer(rule_chain_pb2_grpc.RuleChainServiceServicer):
    """Rule chains."""

    def __init__(self, chains: RuleChains) -> None:
        self._chains = chains

    async def CreateRuleChain(self, request: chain_pb.CreateRuleChainRequest, context: Context) -> chain_pb.RuleChain:
        return codec.chain_to_pb(await self._chains.create(codec.draft_from_pb(request)))

    async def GetRuleChain(self, request: chain_pb.GetRuleChainRequest, context: Context) -> chain_pb.RuleChain:
        return codec.chain_to_pb(await self._chains.get(request.id, request.version))

    async def ListRuleChains(
        self, request: chain_pb.ListRuleChainsRequest, context: Context
    ) -> chain_pb.ListRuleChainsResponse:
        rows, token = await self._chains.page(page_of(request))
        return chain_pb.ListRuleChainsResponse(rule_chains=map(codec.chain_to_pb, rows), next_page_token=token)

    async def UpdateRuleChain(self, request: chain_pb.UpdateRuleChainRequest, context: Context) -> chain_pb.RuleChain:
        return codec.chain_to_pb(await self._chains.update(request.id, codec.changes_from_pb(request)))

    async def DeleteRuleChain(
        self, request: chain_pb.DeleteRuleChainRequest, context: Context
    ) -> chain_pb.DeleteRuleChainResponse:
        await self._chains.delete(request.id)
        return chain_pb.DeleteRuleChainResponse()

    async def ListNodeTypes(
        self, request: chain_pb.ListNodeTypesRequest, context: Context
    ) -> chain_pb.ListNodeTypesResponse:
        return chain_pb.ListNodeTypesResponse(node_types=map(codec.node_type_to_pb, node_types()))

    async def ListSchedules(
        self, request: chain_pb.ListSchedulesRequest, context: Context
    ) -> chain_pb.ListSchedulesResponse:
        now = now_ms()
        rows, token = await self._chains.schedules(page_of(request, _MOST_SCHEDULES))
        schedules = map(codec.schedule_to_pb, rows)
        return chain_pb.ListSchedulesResponse(schedules=schedules, next_page_token=token, now_ms=now)

    async def ListScheduleChanges(
        self, request: chain_pb.ListScheduleChangesRequest, context: Context
    ) -> chain_pb.ListScheduleChangesResponse:
        found, now = await self._chains.schedule_changes(request.since_ms)
        if found is None:
            return chain_pb.ListScheduleChangesResponse(incomplete=True, now_ms=now)
        schedules = map(codec.schedule_to_pb, found[0])
        return chain_pb.ListScheduleChangesResponse(schedules=schedules, removed_rule_chain_ids=found[1], now_ms=now)

    async def SetSchedulePaused(
        self, request: chain_pb.SetSchedulePausedRequest, context: Context
    ) -> chain_pb.SetSchedulePausedResponse:
        set_caller(Caller(request.organization_id, request.user_id, "service"))
        saved = await self._chains.pause(request.rule_chain_id, request.paused)
        return chain_pb.SetSchedulePausedResponse(schedule=codec.schedule_to_pb(saved))


class DeviceStateServicer(device_state_pb2_grpc.DeviceStateServiceServicer):
    """Device states."""

    def __init__(self, states: DeviceStates) -> None:
        self._states = states

    async def CreateDeviceState(
        self, request: state_pb.CreateDeviceStateRequest, context: Context
    ) -> state_pb.DeviceState:
        return codec.state_to_pb(await self._states.create(request.device, request.name, request.default_value))

    async def GetDeviceState(self, request: state_pb.GetDeviceStateRequest, context: Context) -> state_pb.DeviceState:
        return codec.state_to_pb(await self._states.get(request.id))

    async def ListDeviceStates(
        self, request: state_pb.ListDeviceStatesRequest, context: Context
    ) -> state_pb.ListDeviceStatesResponse:
        rows, token = await self._states.page(request.device_uuid, page_of(request))
        return state_pb.ListDeviceStatesResponse(device_states=map(codec.state_to_pb, rows), next_page_token=token)

    async def SetDeviceState(self, request: state_pb.SetDeviceStateRequest, context: Context) -> state_pb.DeviceState:
        return codec.state_to_pb(await self._states.set(request.id, request.value))

    async def DeleteDeviceState(
        self, request: state_pb.DeleteDeviceStateRequest, context: Context
    ) -> state_pb.DeleteDeviceStateResponse:
        await self._states.delete(request.id)
        return state_pb.DeleteDeviceStateResponse()

    async def ListDeviceStateInstances(
        self, request: state_pb.ListDeviceStateInstancesRequest, context: Context
    ) -> state_pb.ListDeviceStateInstancesResponse:
        rows, token = await self._states.instances(request.device_state_id, page_of(request))
        return state_pb.ListDeviceStateInstancesResponse(
            device_state_instances=map(codec.instance_to_pb, rows), next_page_token=token
        )


class AlarmServicer(alarm_pb2_grpc.AlarmServiceServicer):
    """Alarms."""

    def __init__(self, alarms: Alarms) -> None:
        self._alarms = alarms

    async def ListAlarms(self, request: alarm_pb.ListAlarmsRequest, context: Context) -> alarm_pb.ListAlarmsResponse:
        rows, token = await self._alarms.page(codec.alarm_query(request), page_of(request))
        return alarm_pb.ListAlarmsResponse(alarms=map(codec.alarm_to_pb, rows), next_page_token=token)

    async def GetAlarm(self, request: alarm_pb.GetAlarmRequest, context: Context) -> alarm_pb.Alarm:
        return codec.alarm_to_pb(await self._alarms.get(request.id))

    async def AcknowledgeAlarm(self, request: alarm_pb.AcknowledgeAlarmRequest, context: Context) -> alarm_pb.Alarm:
        return codec.alarm_to_pb(await self._alarms.acknowledge(request.id))

    async def ClearAlarm(self, request: alarm_pb.ClearAlarmRequest, context: Context) -> alarm_pb.Alarm:
        return codec.alarm_to_pb(await self._alarms.clear(request.id))

    async def ListAlarmEvents(
        self, request: alarm_pb.ListAlarmEventsRequest, context: Context
    ) -> alarm_pb.ListAlarmEventsResponse:
        rows, token = await self._alarms.events(request.alarm_id, page_of(request))
        return alarm_pb.ListAlarmEventsResponse(alarm_events=map(codec.alarm_event_to_pb, rows), next_page_token=token)


class ReportServicer(report_pb2_grpc.ReportServiceServicer):
    """Reports."""

    def __init__(self, reports: Reports) -> None:
        self._reports = reports

    async def ListReports(
        self, request: report_pb.ListReportsRequest, context: Context
    ) -> report_pb.ListReportsResponse:
        rows, token = await self._reports.page(page_of(request))
        return report_pb.ListReportsResponse(reports=map(codec.report_to_pb, rows), next_page_token=token)

    async def GetReport(self, request: report_pb.GetReportRequest, context: Context) -> report_pb.Report:
        return codec.report_to_pb(await self._reports.get(request.id))

    async def GetReportHtml(self, request: report_pb.GetReportHtmlRequest, context: Context) -> HttpBody:
        row = await self._reports.get(request.id)
        return HttpBody(content_type="text/html; charset=utf-8", data=row.html.encode())

    async def GetReportCsv(self, request: report_pb.GetReportCsvRequest, context: Context) -> HttpBody:
        row = await self._reports.get(request.id)
        return HttpBody(content_type="text/csv; charset=utf-8", data=row.csv.encode())

    async def DeleteReport(
        self, request: report_pb.DeleteReportRequest, context: Context
    ) -> report_pb.DeleteReportResponse:
        await self._reports.delete(request.id)
        return report_pb.DeleteReportResponse()
