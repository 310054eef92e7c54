"""`aemos demo`: the demo devices send believable temperatures over all three protocols; notifications are printed."""

from __future__ import annotations

import asyncio
import json
import math
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import Any

import aiocoap
import httpx
import socketio
from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from aemos_client.settings_page import var_dir

_PERIOD_SECONDS = 120.0
"""A day of the simulation: each device's curve crosses 25 twice in it."""
_SEND_SECONDS = 10.0
_STATUS_SECONDS = 10.0
_PATH = "/api/v1/datastreams/token"
Device = Mapping[str, Any]
Send = Callable[[bytes], Awaitable[bool]]


def main(seconds: float) -> None:
    """Runs until Ctrl-C, or for so many seconds."""
    path = var_dir() / "demo.json"
    if not path.exists():
        raise SystemExit(f"{path} is missing: run `make up` first, and wait for its banner")
    try:
        asyncio.run(_run(json.loads(path.read_text(encoding="utf-8")), seconds))
    except (httpx.HTTPError, socketio.exceptions.ConnectionError) as error:
        raise SystemExit(f"is `make up` running? {error}") from None


async def _run(demo: Mapping[str, Any], seconds: float) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, stop.set)
    if seconds:
        loop.call_later(seconds, stop.set)
    counts: Counter[str] = Counter()
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(httpx.AsyncClient(base_url=demo["httpUrl"], timeout=_SEND_SECONDS))
        coap = await aiocoap.Context.create_client_context()
        stack.push_async_callback(coap.shutdown)
        browser = await _listen(demo, client)
        stack.push_async_callback(browser.disconnect)
        ways = (partial(_http, client), partial(_mqtt, stack, demo["mqtt"]), partial(_coap, coap, demo["coapUrl"]))
        # Devices take turns.
        sends = [ways[index % len(ways)](device) for index, device in enumerate(demo["devices"])]
        tasks = [asyncio.create_task(_device(index, send, counts)) for index, send in enumerate(sends)]
        tasks.append(asyncio.create_task(_status(counts)))
        await stop.wait()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    print(f"sent {counts['sent']}, refused {counts['refused']}")


async def _listen(demo: Mapping[str, Any], client: httpx.AsyncClient) -> socketio.AsyncClient:
    login = await client.post("/api/v1/auth/login", json=demo["login"])
    login.raise_for_status()
    browser = socketio.AsyncClient(handle_sigint=False)
    browser.on("device-state-change", _print)
    token = login.json()["accessToken"]
    await browser.connect(demo["socketIoUrl"], auth={"token": token}, transports=["websocket"])
    for device in demo["devices"]:
        await browser.call("subscribe", {"deviceUuid": device["uuid"]}, timeout=_SEND_SECONDS)
    return browser


def _print(notification: Mapping[str, Any]) -> None:
    what = notification["metadata"]
    change = f"{what['stateName']}: {what['oldValue']} -> {what['newValue']}"
    print(f"{notification['timestamp']}  {notification['deviceUuid']}  {change}", flush=True)


def _http(client: httpx.AsyncClient, device: Device) -> Send:
    async def send(body: bytes) -> bool:
        headers = {"Authorization": f"Bearer {device['token']}"}
        return (await client.post(_PATH, content=body, headers=headers)).status_code == httpx.codes.CREATED

    return send


def _mqtt(stack: AsyncExitStack, address: Mapping[str, Any], device: Device) -> Send:
    client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=f"demo-{device['id']}")
    client.username_pw_set(device["uuid"], device["token"])
    client.connect_async(address["host"], address["port"])
    client.loop_start()
    stack.callback(client.loop_stop)
    stack.callback(client.disconnect)
    topic = f"aemos/devices/{device['uuid']}/telemetry"

    async def send(body: bytes) -> bool:
        published = client.publish(topic, body, qos=1)
        await asyncio.to_thread(published.wait_for_publish, _SEND_SECONDS)
        return bool(published.is_published())

    return send


def _coap(coap: aiocoap.Context, url: str, device: Device) -> Send:
    async def send(body: bytes) -> bool:
        request = aiocoap.Message(code=aiocoap.POST, uri=f"{url}{_PATH}?token={device['token']}", payload=body)
        answer = await asyncio.wait_for(coap.request(request).response, _SEND_SECONDS)
        return bool(answer.code == aiocoap.CREATED)

    return send


async def _device(index: int, send: Send, counts: Counter[str]) -> None:
    """One reading a second: a slow sine around 24, each device at another point of it, with a little noise."""
    noise = random.Random(index)
    loop = asyncio.get_running_loop()
    await asyncio.sleep(noise.random())
    while True:
        phase = 2 * math.pi * (loop.time() / _PERIOD_SECONDS + index / 20)
        value = round(24 + 3 * math.sin(phase) + noise.gauss(0, 0.1), 2)
        stored = False
        with suppress(TimeoutError, OSError, ValueError, RuntimeError, httpx.HTTPError, aiocoap.error.Error):
            stored = await send(json.dumps({"value": value, "variableName": "temperature"}).encode())
        counts["sent" if stored else "refused"] += 1
        await asyncio.sleep(1)


async def _status(counts: Counter[str]) -> None:
    while True:
        await asyncio.sleep(_STATUS_SECONDS)
        print(f"sent {counts['sent']}, refused {counts['refused']}", flush=True)
