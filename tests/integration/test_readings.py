"""Readings in ingest, on both databases: stored once, typed, all of a group or nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import aemos_ingest
import pytest
from aemos_core.database import Database
from aemos_core.errors import AemosError
from aemos_core.sweeping import forget
from aemos_core.times import now_ms
from aemos_ingest import readings_store, tables
from aemos_ingest.repeats import KEPT_MS
from sqlalchemy import select

from tests.integration.conftest import Open
from tests.support.ingest import KeptOutbox, ingest, refusal
from tests.support.registry import call

DAY_MS = 24 * 60 * 60 * 1000


@pytest.fixture
async def database(open_owned: Open) -> Database:
    return await open_owned(aemos_ingest)


async def test_a_message_that_comes_again_is_stored_once(database: Database) -> None:
    """The same messageId with the same body has the same answer, also in one commit, in another one, and for another
    process; with another body it is refused."""
    async with ingest(database) as one, ingest(database, like=one) as other:
        first, again = await one.write(one.reading(message_id="m1"), one.reading(message_id="m1"))
        later, *_ = await one.write(one.reading(message_id="m1", received_at_ms=now_ms() + 50))
        elsewhere, conflict = await other.write(one.reading(message_id="m1"), one.reading(b"22", message_id="m1"))
        assert first.id > 0
        assert [r.id for r in (again, later, elsewhere)] == [first.id] * 3
        assert first.repeats_at_ms == 0
        assert again.repeats_at_ms == later.repeats_at_ms == elsewhere.repeats_at_ms > 0
        assert (conflict.id, refusal(conflict)) == (0, "message_id_used")
        assert await one.count() == 1


async def test_what_rules_derived_needs_no_token(database: Database) -> None:
    """It names organization and sensor, is stored once by its name, and tells how many chains led to it; a sensor of
    another organization is unknown."""
    async with ingest(database) as one:
        derived = {"token_id": 0, "organization_id": 1, "sensor_uuid": "sensor-1", "depth": 2}
        (first,) = await one.write(one.reading(**derived, message_id="derived"))
        (again,) = await one.write(one.reading(**derived, message_id="derived"))
        (foreign,) = await one.write(one.reading(**(derived | {"organization_id": 2})))
        assert first.id == again.id > 0
        assert (foreign.id, foreign.refusal.kind) == (0, "unauthenticated")
        assert await one.count() == 1


async def test_what_cannot_be_announced_is_not_stored(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reading, its name and its job for the rules are one transaction."""

    async def fails(*_: object) -> None:
        raise OSError

    async with ingest(database) as one:
        with monkeypatch.context() as patch:
            patch.setattr(KeptOutbox, "add", fails)
            with pytest.raises(AemosError):
                await one.write(one.reading(message_id="m1"))
        assert await one.count() == 0
        (first,) = await one.write(one.reading(message_id="m1"))
        assert (first.id > 0, first.repeats_at_ms) == (True, 0)


async def test_two_processes_store_a_message_once(database: Database) -> None:
    """Whoever comes second finds what the first one stored, though both had looked before."""
    async with ingest(database) as one, ingest(database, like=one) as other:
        await one.write(one.reading())  # so that both have their ids
        await other.write(one.reading())
        names = [f"m{number}" for number in range(20)]
        results = await asyncio.gather(
            *(process.write(one.reading(message_id=name)) for name in names for process in (one, other))
        )
        ids = [result[0].id for result in results]
        assert ids[::2] == ids[1::2]
        assert 0 not in ids
        assert await one.count() == 2 + len(names)


async def test_names_are_forgotten_after_a_day(database: Database) -> None:
    """Then the same messageId is a new reading's."""
    async with ingest(database) as one:
        (first,) = await one.write(one.reading(message_id="m1"))
        assert await forget(database, tables.reading_message.c.at_ms, now_ms() - KEPT_MS) == 0
        assert await forget(database, tables.reading_message.c.at_ms, now_ms() + 1) == 1
        (second,) = await one.write(one.reading(message_id="m1"))
        assert second.id > first.id
        assert KEPT_MS == DAY_MS


async def test_what_a_protocol_repeats_is_found_by_its_origin(database: Database) -> None:
    """Sent again after the first one was stored, or while it is being stored; not when it cannot be a repetition."""
    async with ingest(database) as one:
        (first,) = await one.write(one.reading(origin_key=7))
        (again,) = await one.write(one.reading(origin_key=7, maybe_repeated=True))
        (used_again,) = await one.write(one.reading(origin_key=7))
        (new,) = await one.write(one.reading(origin_key=8, maybe_repeated=True))
        pair = await one.write(one.reading(origin_key=9), one.reading(origin_key=9, maybe_repeated=True))
        assert again.id == first.id
        assert pair[0].id == pair[1].id
        assert len({first.id, used_again.id, new.id, pair[0].id}) == 4
        assert await one.count() == 4


@pytest.mark.parametrize("seconds", [5, 65, 595, 605])
async def test_a_repetition_is_looked_for_in_ten_minutes_or_where_the_edge_says(
    database: Database, seconds: int
) -> None:
    """What is older than a minute is looked for apart, without waiting for anybody."""
    async with ingest(database) as one:
        at = now_ms() - seconds * 1000
        (first,) = await one.write(one.reading(received_at_ms=at, origin_key=7))
        later = {"origin_key": 7, "maybe_repeated": True, "repeats_after_ms": at + 1}
        (elsewhere,) = await one.write(one.reading(**later))
        (again,) = await one.write(one.reading(origin_key=7, maybe_repeated=True, repeats_before_ms=at + 1))
        assert elsewhere.id > first.id
        assert (again.id == first.id) == (seconds < 600)


async def test_claims_of_others_are_not_read(database: Database) -> None:
    """After a restart there is one for each reading: a reading with its own time asks for those of its origin only."""
    async with ingest(database) as one:
        (known,) = await one.write(one.reading())
        others = {(known.telemetry_data_id, key): now_ms() for key in range(1, 1_001)}
        await readings_store.claim(database, {**others, (known.telemetry_data_id, 5_000): now_ms()})
        asked = [(known.telemetry_data_id, key) for key in (7, 5_000, 6_000)]
        async with database.read() as connection:
            found = await readings_store.claims(connection, asked, now_ms() - 60_000)
        assert set(found) == set(asked[:2])


async def test_two_processes_store_a_repetition_once(database: Database) -> None:
    """The first message and its repetition, or two repetitions, taken by two processes at the same time; with the
    time of the device, too. Both are answered alike, and a later message with the same number is another one."""
    async with ingest(database) as one, ingest(database, like=one) as other:
        await asyncio.gather(*(process.write(one.reading()) for process in (one, other)))  # so that both have their ids
        at = now_ms()
        for number in range(1, 41):
            timed = {"received_at_ms": at + number, "at_arrival": number % 2 == 0, "origin_key": number}
            again = {**timed, "received_at_ms": at + number + (number % 2 == 0), "maybe_repeated": True}
            results = await asyncio.gather(
                one.write(one.reading(**(again if number % 4 > 1 else timed))), other.write(one.reading(**again))
            )
            assert results[0][0].id == results[1][0].id > 0, (number, results)
        (later,) = await one.write(one.reading(received_at_ms=at + 100, origin_key=40))
        assert later.repeats_at_ms == 0
        assert await one.count() == 2 + 40 + 1


async def test_a_message_that_was_overtaken_by_its_repetition_is_stored_once(database: Database) -> None:
    """A process that waited finds what another one has stored meanwhile, whoever of them is asked first."""
    async with ingest(database) as one, ingest(database, like=one) as other:
        at = now_ms()
        (repetition,) = await other.write(one.reading(received_at_ms=at, origin_key=7, maybe_repeated=True))
        (late,) = await one.write(one.reading(received_at_ms=at - 50, origin_key=7))
        assert (late.id, late.repeats_at_ms) == (repetition.id, at)
        assert await forget(database, tables.origin_claim.c.before_ms, now_ms() + 1) == 2
        assert await one.count() == 1


async def test_a_repetition_waits_for_what_another_process_is_storing(database: Database) -> None:
    """What it repeats is inserted and not committed yet: the repetition is answered after that, as that is."""
    async with ingest(database) as one:
        (known,) = await one.write(one.reading())
        at = now_ms()
        async with database.write() as connection:
            await readings_store.store(connection, [(known.telemetry_data_id, at, 2**40, "21.5", 21.5, 7)], {})
            repetition = one.reading(received_at_ms=at + 1, origin_key=7, maybe_repeated=True)
            again = asyncio.create_task(one.write(repetition))
            assert not (await asyncio.wait([again], timeout=0.3))[0]
        assert (await again)[0].id == 2**40
        assert await one.count() == 2


async def test_a_repeated_reading_of_last_year_is_found_too(database: Database) -> None:
    """Where the device gave the time, that is where to look."""
    async with ingest(database) as one:
        at = now_ms() - 365 * DAY_MS
        old = {"received_at_ms": at, "at_arrival": False, "origin_key": 7}
        (first,) = await one.write(one.reading(**old))
        (again,) = await one.write(one.reading(**old, maybe_repeated=True))
        assert (again.id, again.repeats_at_ms) == (first.id, at)


async def test_a_group_is_stored_whole_or_not_at_all(database: Database) -> None:
    """One wrong value, or one messageId of another reading, refuses the group and nobody else."""
    async with ingest(database) as one:
        await one.write(one.reading(b"1", message_id="taken"))
        results = await one.write(
            one.reading(b"2", group=1),
            one.reading(b'"warm"', group=1),
            one.reading(b"3", group=2),
            one.reading(b"4", group=2, message_id="taken"),
            one.reading(b"5", group=3),
            one.reading(b"6"),
        )
        assert [bool(r.id) for r in results] == [False, False, False, False, True, True]
        assert [refusal(r) for r in results] == ["", "wrong_type", "", "message_id_used", "", ""]
        assert await one.count() == 3


async def test_a_group_is_of_one_call(database: Database) -> None:
    """Gateways count their groups for themselves: of two with the same number in one commit, each stands for itself."""
    async with ingest(database) as one:
        await one.write(one.reading(b"1", message_id="taken"))
        refused, stored = await asyncio.gather(
            one.write(one.reading(b"2", group=1), one.reading(b"3", group=1, message_id="taken")),
            one.write(one.reading(b"4", group=1), one.reading(b"5", group=1)),
        )
        assert [refusal(result) for result in refused] == ["", "message_id_used"]
        assert [result.id > 0 for result in (*refused, *stored)] == [False, False, True, True]


async def test_what_repeats_a_reading_of_a_refused_group_takes_its_own_group_along(database: Database) -> None:
    """Both lists come in one commit; half of the second one would be stored, and its device told that nothing was."""
    async with ingest(database) as one:
        await one.write(one.reading(b"1", message_id="taken"))
        refused, following = await asyncio.gather(
            one.write(one.reading(b"5", message_id="m1", group=1), one.reading(b"2", message_id="taken", group=1)),
            one.write(one.reading(b"5", message_id="m1", group=1), one.reading(b"7", group=1)),
        )
        assert [result.id for result in (*refused, *following)] == [0, 0, 0, 0]
        assert following[0].refusal.kind == "unavailable"
        assert await one.count() == 1


@pytest.mark.parametrize("value", [b"7" * 4301, b"[1e400]", b"1e400"])
async def test_a_json_value_holds_no_number_that_nobody_can_read(database: Database, value: bytes) -> None:
    """Python reads no integer of over 4,300 digits: the rules would fail on it, and who reads it back."""
    async with ingest(database) as one:
        await one.write(one.reading(b"{}", name="shape"))
        (result,) = await one.write(one.reading(value, name="shape"))
        assert (result.id, refusal(result)) == (0, "out_of_range")


@pytest.mark.parametrize(
    ("value", "made"),
    [(b"21.5", "number"), (b'"21.5"', "number"), (b'"warm"', "text"), (b"true", "boolean"), (b'{"a":1}', "json")],
)
async def test_readings_make_variables(database: Database, value: bytes, made: str) -> None:
    """Of the type that the first value has, in two processes at once, when the device allows it."""
    async with ingest(database) as one, ingest(database, like=one) as other:
        results = await asyncio.gather(*(process.write(one.reading(value, "new")) for process in (one, other)))
        assert len({r.telemetry_data_id for (r,) in results}) == 1
        assert await one.registry.variables_of("sensor-1") == [("temperature", "number"), ("new", made)]


async def test_a_commit_of_unlike_readings_is_stored_as_it_is(database: Database) -> None:
    """Numbers and text, with and without an origin, in one insert or each kind by itself; large ones and 😀 too."""
    columns = tables.data_stream.c
    kinds: list[tuple[bytes, str, dict[str, int]]] = [
        (b"21.5", "temperature", {}),
        (b"-1e-7", "temperature", {"origin_key": 2**62}),
        (b'"warm \xf0\x9f\x98\x80"', "words", {}),
        (b'"' + b"x" * 60_000 + b'"', "words", {"origin_key": 7}),
        (b'{"a": [null]}', "tree", {}),
    ]
    async with ingest(database) as one:
        for together in (kinds, *([kind] for kind in kinds), kinds[2:], kinds * 30):
            results = await one.write(*(one.reading(value, name, **more) for value, name, more in together))
            query = select(columns.id, columns.value, columns.number, columns.origin_key)
            async with database.read() as connection:
                found = {row.id: tuple(row)[1:] for row in await connection.execute(query)}
            for result, (value, name, more) in zip(results, together, strict=True):
                text = value.decode().strip('"')
                number = float(text) if name == "temperature" else None
                assert found[result.id] == (text, number, more.get("origin_key"))


async def test_a_variable_is_not_made_of_what_says_nothing(database: Database) -> None:
    """null, a number that cannot be kept, and a name that a database takes for another one are mistakes, and nothing
    is made."""
    async with ingest(database) as one:
        mistaken = [one.reading(b"null", "new"), one.reading(b"1e400", "new"), one.reading(b"9007199254740993", "new")]
        unheard = [one.reading(name="temperature "), one.reading(name="n" * 201)]
        results = await one.write(*mistaken, *unheard)
        reasons = ["wrong_type", "out_of_range", "out_of_range", "unknown_variable", "unknown_variable"]
        assert [refusal(result) for result in results] == reasons
        assert [name for name, _ in await one.registry.variables_of("sensor-1")] == ["temperature"]


async def test_many_variables_at_once_are_made_in_one_go_and_no_more_than_fit(database: Database) -> None:
    """1,000 a sensor by readings; two processes that make the same ones in other orders do not wait for each other."""
    async with ingest(database) as one, ingest(database, like=one) as other:
        names = [f"v{number}" for number in range(1_100)]
        made, again = await asyncio.gather(
            one.write(*(one.reading(name=name) for name in names[:600])),
            other.write(*(one.reading(name=name) for name in reversed(names[:600]))),
        )
        assert {refusal(result) for result in (*made, *again)} == {""}
        rest = await one.write(*(one.reading(name=name) for name in names[600:]))
        assert sum(result.id > 0 for result in rest) == 1_000 - 1 - 600
        assert await one.count() == 1_200 + 399


async def test_a_source_that_is_dropped_while_another_is_read_is_read_again(database: Database) -> None:
    """A valid token is never refused because its copy of the registry was just dropped."""
    async with ingest(database) as one:
        await one.write(one.reading())
        second = one.reading()
        second.token_id = (await one.registry.create_token("second")).id
        sources = one.readings._sources
        read = sources._read

        async def read_and_dropped(token_ids: set[int]) -> Any:
            sources._read = read  # type: ignore[method-assign]
            found = await read(token_ids)
            sources._drop({one.device_id})
            return found

        sources._read = read_and_dropped  # type: ignore[method-assign]
        assert [refusal(result) for result in await one.write(one.reading(), second)] == ["", ""]


async def test_a_device_may_forbid_new_variables(database: Database) -> None:
    """Then an unknown one is a mistake."""
    async with ingest(database) as one:
        await call(one.registry.devices.UpdateDevice, device="freezer-1", creates_variables=False)
        (result,) = await one.write(one.reading(name="new"))
        assert (refusal(result), result.refusal.loc) == ("unknown_variable", "variableName")


async def test_a_sensor_is_named_or_the_first(database: Database) -> None:
    """sensorUuid chooses; without it the device's first sensor gets the reading."""
    async with ingest(database) as one:
        await call(one.registry.sensors.CreateSensor, device="freezer-1", name="Door", uuid="sensor-2")
        named, first, foreign = await one.write(
            one.reading(name="x", sensor_uuid="sensor-2"), one.reading(), one.reading(sensor_uuid="sensor-3")
        )
        assert (named.sensor_uuid, first.sensor_uuid, refusal(foreign)) == ("sensor-2", "sensor-1", "unknown_sensor")


async def test_order_of_one_device_is_kept(database: Database) -> None:
    """Ids grow in the order of the calls, whatever is committed together."""
    async with ingest(database) as one:
        await one.write(one.reading())
        results = await asyncio.gather(*(one.write(one.reading(b"%d" % n)) for n in range(50)))
        ids = [r.id for (r,) in results]
        assert ids == sorted(ids)
