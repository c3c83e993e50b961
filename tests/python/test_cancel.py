"""Queries that are stopped: by their client, by its going away, and by
others. A stopped query is gone within two seconds."""

import json
import threading
import time

import adbc_driver_flightsql.dbapi as flightsql
import pyarrow
import pytest
from pyarrow import flight

import sql_messages
from conftest import FLIGHT_ERRORS, URI

GONE_WITHIN_SECONDS = 2


@pytest.fixture
def endless(cursor, table):
    """A query over a table of 20,000 rows that nobody lives to see the end of."""
    cursor.adbc_ingest(table, pyarrow.table({"n": range(20_000)}), mode="create")
    joins = f"{table} a CROSS JOIN {table} b CROSS JOIN {table} c CROSS JOIN {table} d"
    return f"SELECT a.n + b.n + c.n + d.n AS n FROM {joins} WHERE a.n * b.n + c.n * d.n >= 0"


def started(client, sql):
    """A query that gave its first rows: its info, id and reader."""
    info = client.get_flight_info(flight.FlightDescriptor.for_command(sql_messages.statement_query(sql)))
    reader = client.do_get(info.endpoints[0].ticket)
    assert reader.read_chunk().data.num_rows > 0
    return info, json.loads(info.app_metadata)["query_id"], reader


def state(query):
    """What the coordinator knows of a query; `gone` where it knows nothing."""
    with flight.connect(URI) as client:
        try:
            (answer,) = client.do_action(flight.Action("shoal.progress", query.encode()))
        except FLIGHT_ERRORS as error:
            assert "not known" in str(error)
            return "gone"
        return json.loads(answer.body.to_pybytes())["state"]


def wait_until_stopped(query):
    """Fails where the query runs on."""
    deadline = time.monotonic() + GONE_WITHIN_SECONDS
    while (now := state(query)) in ("queued", "running"):
        assert time.monotonic() < deadline, f"the query is still {now}"
        time.sleep(0.05)


def cancel_message(info):
    """CancelFlightInfoRequest."""
    return sql_messages.field(1, info.serialize())


def test_a_query_says_that_it_runs(client, endless):
    _, query, reader = started(client, endless)
    assert state(query) == "running"
    reader.cancel()
    wait_until_stopped(query)


def test_a_cancelled_reader_stops_its_query(client, endless):
    _, query, reader = started(client, endless)
    reader.cancel()
    wait_until_stopped(query)


def test_a_closed_connection_stops_its_query(endless):
    client = flight.connect(URI)
    _, query, reader = started(client, endless)
    reader.cancel()
    client.close()
    wait_until_stopped(query)


def test_cancel_flight_info_stops_a_running_query(client, endless):
    info, query, reader = started(client, endless)
    with flight.connect(URI) as other:
        (answer,) = other.do_action(flight.Action("CancelFlightInfo", cancel_message(info)))
        assert answer.body.to_pybytes() == b"\x08\x01"
    with pytest.raises(FLIGHT_ERRORS, match="(?i)cancel"):
        while True:
            reader.read_chunk()
    wait_until_stopped(query)


def test_cancel_flight_info_forgets_a_query_that_waits(client):
    info = client.get_flight_info(flight.FlightDescriptor.for_command(sql_messages.statement_query("SELECT 1")))
    query = json.loads(info.app_metadata)["query_id"]
    assert state(query) == "queued"
    list(client.do_action(flight.Action("CancelFlightInfo", cancel_message(info))))
    with pytest.raises(FLIGHT_ERRORS, match="run the statement again"):
        client.do_get(info.endpoints[0].ticket).read_all()
    with pytest.raises(FLIGHT_ERRORS, match="ended"):
        list(client.do_action(flight.Action("CancelFlightInfo", cancel_message(info))))


def test_shoal_cancel_stops_a_query_by_its_id(client, endless):
    _, query, reader = started(client, endless)
    with flight.connect(URI) as other:
        (answer,) = other.do_action(flight.Action("shoal.cancel", query.encode()))
        assert json.loads(answer.body.to_pybytes()) == {"cancelled": True}
    with pytest.raises(FLIGHT_ERRORS, match="(?i)cancel"):
        while True:
            reader.read_chunk()
    wait_until_stopped(query)


def test_a_word_is_no_query_id(client):
    with pytest.raises(FLIGHT_ERRORS, match="query id"):
        list(client.do_action(flight.Action("shoal.cancel", b"everything")))


def test_adbc_cancels_and_goes_on(cursor, endless):
    cursor.execute(endless)
    reader = cursor.fetch_record_batch()
    reader.read_next_batch()
    threading.Timer(0.2, cursor.adbc_cancel).start()
    with pytest.raises((flightsql.Error, pyarrow.ArrowException, OSError), match="(?i)cancel"):
        while True:
            reader.read_next_batch()
    cursor.execute("SELECT 1")
    assert cursor.fetchall() == [(1,)]


def test_notices_are_told_once(client):
    first = list(client.do_action(flight.Action("shoal.notices", b"")))
    again = list(client.do_action(flight.Action("shoal.notices", b"")))
    assert isinstance(json.loads(first[0].body.to_pybytes()), list)
    assert json.loads(again[0].body.to_pybytes()) == []
