"""Times of pandas come back with all their digits and zones; whole tables are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pandas
import pytest

from checking import config, put, value_of
from forkpoint import NotStorable, SafeSerializer, SqliteSaver

PARIS = ZoneInfo("Europe/Paris")
TIMES = [
    pandas.Timestamp("2024-01-01 00:00:00.123456789"),
    pandas.Timestamp("2024-01-01", tz=PARIS),
    pandas.Timestamp(year=2024, month=10, day=27, hour=2, minute=30, tz=PARIS, fold=1),
    pandas.Timestamp("2024-01-01").as_unit("s"),
    pandas.Timestamp.max,
    pandas.Timedelta(1, "ns"),
    pandas.Timedelta("1D").as_unit("s"),
]
RECORDS = pandas.DataFrame(
    {
        "when": [TIMES[0], pandas.NaT],
        "long": [pandas.Timedelta("1D"), pandas.NaT],
        "text": ["x", pandas.NA],
        "number": [1.5, 2.5],
    }
).to_dict("records")


def facts(value: Any) -> tuple[Any, ...]:
    return type(value), value.value, value.unit, getattr(value, "tz", None), repr(value)


def test_times_and_the_records_of_a_table_come_back(tmp_path: Path) -> None:
    with SqliteSaver(tmp_path / "x.db") as saver:
        put(saver, {"times": TIMES, "records": RECORDS, "mapped": {TIMES[0]: pandas.NaT}})
        values = value_of(saver.get_tuple(config()))
    assert list(map(facts, values["times"])) == list(map(facts, TIMES))
    assert values["mapped"][TIMES[0]] is pandas.NaT
    (first, second), (_, missing) = values["records"], RECORDS
    assert {key: type(each) for key, each in first.items()} == {
        key: type(each) for key, each in RECORDS[0].items()
    }
    assert first == RECORDS[0]
    assert all(second[key] is missing[key] for key in ("when", "long"))
    assert pandas.isna(second["text"])


@pytest.mark.parametrize("value", [pandas.DataFrame({"a": [1]}), pandas.Series([1])])
def test_a_table_is_refused(value: Any) -> None:
    with pytest.raises(NotStorable, match=r"\['k'\] cannot be stored: a pandas\."):
        SafeSerializer().dumps_typed({"k": value})
