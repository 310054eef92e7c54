"""The CoAP edge: readings in by POST, notifications out by GET with Observe."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aemos_core.waiting import wait
from aiocoap import Context

from aemos_gateway.coap_observers import Observers
from aemos_gateway.coap_resources import Site
from aemos_gateway.coap_transport import open_port
from aemos_gateway.coap_uploads import Uploads
from aemos_gateway.device_auth import DeviceAuth
from aemos_gateway.downlink import Downlink
from aemos_gateway.service import Uplink
from aemos_gateway.token_holders import TokenHolders

_LIBRARY_LOG = "aiocoap.edge"
_CHECK_SECONDS = 1.0


class CoapEdge:
    """A component: the open edge. `port` is the one it listens on."""

    def __init__(self, holders: TokenHolders, uploads: Uploads, observers: Observers, port: int) -> None:
        self._holders = holders
        self._uploads = uploads
        self._observers = observers
        self.port = port

    async def run(self, stop: asyncio.Event) -> None:
        """Ends observations whose token was; after `stop` refuses what is new, until what was taken is answered."""
        while not await wait(stop, _CHECK_SECONDS):
            await self._holders.check()
        self._observers.close()
        await self._uploads.drain()


@asynccontextmanager
async def coap_edge(
    host: str, port: int, auth: DeviceAuth, uplink: Uplink, downlink: Downlink
) -> AsyncIterator[CoapEdge]:
    """Listens on UDP (port 0: a free one) from entering to leaving the block; PortInUse when the port is taken."""
    # The library warns once for each odd datagram, so whoever sends them would fill the log.
    logging.getLogger(_LIBRARY_LOG).setLevel(logging.ERROR)
    uploads, observers, holders = Uploads(auth, uplink), Observers(downlink), TokenHolders(auth)
    site = Site(auth, holders, uploads, observers, uplink.presence)
    context = Context(asyncio.get_running_loop(), serversite=site, loggername=_LIBRARY_LOG)
    site.messages = open_port(context, host, port, uploads)
    try:
        yield CoapEdge(holders, uploads, observers, site.messages.address[1])
    finally:
        await context.shutdown()
