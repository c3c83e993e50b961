"""Rows that are fetched where a FlightInfo says, over a connection of their
own: SET shoal.locations. Needs several coordinators."""

import adbc_driver_flightsql.dbapi as flightsql
import pyarrow
import pyarrow.compute
import pytest


@pytest.fixture
def located(cursor):
    """A cursor whose driver is told of all coordinators."""
    if rows(cursor, "SELECT count(*) FROM system.coordinators")[0][0] < 2:
        pytest.skip("there is one coordinator")
    cursor.execute("SET shoal.locations = true")
    return cursor


def rows(cursor, sql, parameters=None):
    """All rows of a query."""
    cursor.execute(sql, parameters)
    return cursor.fetchall()


def test_rows_and_settings_are_those_of_the_session(located, people):
    assert rows(located, f"SELECT id FROM {people} WHERE id > ? ORDER BY id", (1,)) == [(2,), (3,)]
    located.execute("SET datafusion.execution.batch_size = 1234")
    assert rows(located, "SHOW datafusion.execution.batch_size")[0][-1] == "1234"
    located.execute(f"INSERT INTO {people} VALUES (4, 'dan', 1.0)")
    assert located.rowcount == 1
    assert rows(located, f"SELECT count(*) FROM {people}") == [(4,)]


def test_an_error_is_told_and_its_query_not_begun_elsewhere(located, people):
    with pytest.raises((flightsql.Error, pyarrow.ArrowInvalid, OSError), match="(?i)zero"):
        located.execute(f"SELECT 1 / (id - id) FROM {people}")
        located.fetchall()
    begun = f"SELECT count(*) FROM system.queries WHERE sql LIKE '%(id - id) FROM {people}' AND sql NOT LIKE '%system%'"
    assert rows(located, begun) == [(1,)]


def test_a_result_of_many_rows_comes_whole(located):
    located.execute("SELECT value AS n FROM generate_series(1, 300000)")
    table = located.fetch_arrow_table()
    assert (table.num_rows, pyarrow.compute.sum(table["n"]).as_py()) == (300_000, 45_000_150_000)
