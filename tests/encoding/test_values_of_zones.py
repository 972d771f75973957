"""Zones of dateutil and pytz come back, and with them the moments that are given in them."""

from __future__ import annotations

import copy
import datetime
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import dateutil.tz
import pandas
import pytest

from forkpoint import NotStorable, SafeSerializer, StoredObject
from forkpoint.encoding import zone_values


@pytest.mark.parametrize(
    "value",
    [
        datetime.datetime(2024, 1, 1, tzinfo=dateutil.tz.UTC),
        datetime.time(1, tzinfo=dateutil.tz.tzoffset(None, 5.5 * 3600)),
        dateutil.tz.tzoffset("there", -3600),
        pandas.Timestamp("2024-01-01", tz=dateutil.tz.UTC),
        datetime.datetime(2024, 7, 1, tzinfo=dateutil.tz.tzlocal()),
        pandas.Timestamp("2024-07-01", tz=dateutil.tz.tzlocal()),
        datetime.datetime(2024, 10, 27, 2, 30, tzinfo=dateutil.tz.gettz("Europe/Paris"), fold=1),
        pandas.Timestamp("2024-07-01", tz=dateutil.tz.gettz("Asia/Tokyo")),
    ],
)
def test_a_zone_of_dateutil_comes_back(value: Any) -> None:
    serde = SafeSerializer()
    (restored,) = serde.loads_typed(serde.dumps_typed([value]))
    assert restored == value
    assert (type(restored), repr(restored)) == (type(value), repr(value))


@pytest.fixture
def local_time() -> Iterator[Callable[[str], None]]:
    """Yield a function that sets the local zone."""
    with pytest.MonkeyPatch.context() as patch:

        def set_zone(name: str) -> None:
            patch.setenv("TZ", name)
            time.tzset()

        yield set_zone
    time.tzset()


@pytest.mark.parametrize("zone", ["UTC", "Europe/Paris"])
def test_a_local_time_is_the_same_moment_wherever_it_is_read(
    zone: str, local_time: Callable[[str], None]
) -> None:
    serde = SafeSerializer()
    local_time(zone)
    value = datetime.datetime(2024, 7, 1, tzinfo=dateutil.tz.tzlocal())
    stored, text = serde.dumps_typed(value), value.isoformat()
    local_time("America/New_York")
    elsewhere = serde.loads_typed(stored)
    if zone == "UTC":
        assert elsewhere.isoformat() == text
    else:
        assert isinstance(elsewhere, StoredObject)  # who knows when they change their clocks?
        assert serde.dumps_typed(elsewhere) == stored
    local_time(zone)
    assert serde.loads_typed(stored).isoformat() == text


def test_a_zone_is_read_of_no_other_file() -> None:
    for name in ("/etc/localtime", "../zoneinfo/Europe/Paris", "Europe/None", "EST5EDT4", "", 5):
        with pytest.raises(ValueError, match=r"zone|stored as"):
            zone_values.RESTORERS["tzfile"](name)


def test_a_zone_that_is_found_by_no_name_is_refused() -> None:
    zone: Any = copy.copy(dateutil.tz.gettz("Europe/Paris"))
    zone._key, zone._filename = None, "mine"
    with pytest.raises(NotStorable, match="has no name that finds it again"):
        SafeSerializer().dumps_typed([zone])


def test_a_zone_of_pytz_comes_back() -> None:
    pytz = pytest.importorskip("pytz")
    serde = SafeSerializer()
    paris, day = pytz.timezone("Europe/Paris"), datetime.datetime(2024, 7, 1)
    for zone in (pytz.utc, paris, pytz.timezone("Etc/GMT-5"), pytz.FixedOffset(90)):
        for value in (zone, zone.localize(day), zone.localize(day.replace(month=1))):
            (restored,) = serde.loads_typed(serde.dumps_typed([value]))
            assert restored == value
            assert repr(restored) == repr(value)
    assert serde.loads_typed(serde.dumps_typed(paris.localize(day))).utcoffset().seconds == 7200


def test_a_zone_comes_back_before_anybody_has_imported_dateutil(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stored = SafeSerializer().dumps_typed([dateutil.tz.UTC, dateutil.tz.tzoffset("there", -3600)])
    for module in ("dateutil", "dateutil.tz", "dateutil.tz.tz"):
        monkeypatch.delitem(sys.modules, module)
    assert str(SafeSerializer().loads_typed(stored)) == "[tzutc(), tzoffset('there', -3600)]"
