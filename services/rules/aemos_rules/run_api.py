"""ChainRunService of the contract: decode, call, encode."""

from __future__ import annotations

from aemos.v1 import chain_run_pb2 as pb
from aemos.v1 import chain_run_pb2_grpc
from aemos_core.errors import invalid
from aemos_core.paging import page_of
from aemos_core.rpc import Context

from aemos_rules import codec, run_codec
from aemos_rules.run_service import ChainRuns


class ChainRunServicer(chain_run_pb2_grpc.ChainRunServiceServicer):
    """Runs."""

    def __init__(self, runs: ChainRuns) -> None:
        self._runs = runs

    async def ListChainRuns(self, request: pb.ListChainRunsRequest, context: Context) -> pb.ListChainRunsResponse:
        rows, token = await self._runs.page(request.rule_chain_id, request.outcome, page_of(request))
        return pb.ListChainRunsResponse(chain_runs=map(run_codec.run_to_pb, rows), next_page_token=token)

    async def GetChainRun(self, request: pb.GetChainRunRequest, context: Context) -> pb.ChainRun:
        return run_codec.run_to_pb(await self._runs.get(request.id))

    async def GetChainActivity(self, request: pb.GetChainActivityRequest, context: Context) -> pb.ChainActivity:
        return run_codec.activity_to_pb(*await self._runs.activity(request.rule_chain_id))

    async def ExplainReading(self, request: pb.ExplainReadingRequest, context: Context) -> pb.ChainRun:
        wanted = run_codec.made_up(request.reading)
        return run_codec.tried_to_pb(*await self._runs.explain(request.rule_chain_id, wanted))

    async def DryRunChain(self, request: pb.DryRunChainRequest, context: Context) -> pb.DryRunChainResponse:
        if bool(request.rule_chain_id) == request.HasField("chain"):
            raise invalid("ruleChainId", "either ruleChainId or chain must be given")
        wanted = request.rule_chain_id or codec.draft_from_pb(request.chain)
        chain, tried = await self._runs.dry_run(wanted, [run_codec.made_up(reading) for reading in request.readings])
        return pb.DryRunChainResponse(chain_runs=[run_codec.tried_to_pb(chain, one) for one in tried])
