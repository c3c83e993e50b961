"""Mistakes: an error that says what to do, and a connection that lives."""

import adbc_driver_flightsql.dbapi as flightsql
import pyarrow
import pytest
from pyarrow import flight

import sql_messages
from conftest import FLIGHT_ERRORS, URI, connect


def works(cursor):
    """Whether the connection still answers."""
    cursor.execute("SELECT 1")
    return cursor.fetchall() == [(1,)]


def test_a_missing_table_is_named(cursor):
    with pytest.raises(flightsql.ProgrammingError, match="no_such_table"):
        cursor.execute("SELECT * FROM no_such_table")
    assert works(cursor)


def test_a_missing_column_is_named(cursor, people):
    with pytest.raises(flightsql.Error, match="nam"):
        cursor.execute(f"SELECT nam FROM {people}")
    assert works(cursor)


def test_broken_sql_is_an_error(cursor):
    with pytest.raises(flightsql.ProgrammingError, match="(?i)selec"):
        cursor.execute("SELEC 1")
    assert works(cursor)


def test_an_error_while_rows_are_computed_reaches_the_client(cursor, people):
    with pytest.raises((flightsql.Error, pyarrow.ArrowInvalid, OSError), match="(?i)zero"):
        cursor.execute(f"SELECT 1 / (id - id) FROM {people}")
        cursor.fetchall()
    assert works(cursor)


def test_a_long_error_is_cut_and_still_arrives(cursor):
    with pytest.raises(flightsql.Error, match="bytes left out"):
        cursor.execute(f"SELECT {'x' * 100_000}")
    assert works(cursor)


def test_a_query_cannot_run_as_an_update(cursor):
    with pytest.raises(flightsql.Error, match="returns rows"):
        cursor.executemany("SELECT ?", [(1,)])
    assert works(cursor)


def test_a_query_takes_one_row_of_parameters(cursor):
    with pytest.raises(flightsql.Error, match="one row"):
        cursor.execute("SELECT $1 + 1", pyarrow.table({"n": [1, 2]}))
    assert works(cursor)


def test_substrait_is_refused(cursor):
    with pytest.raises(flightsql.NotSupportedError):
        cursor.execute(b"no plan")


def test_random_bytes_are_no_ticket(client):
    for junk in [b"", b"\xff\x00junk", b"\x0a\x03abc", bytes(range(256))]:
        with pytest.raises(FLIGHT_ERRORS, match="ticket"):
            client.do_get(flight.Ticket(junk)).read_all()


def test_random_bytes_are_no_command(client):
    for junk in [b"", b"\xff\x00junk", bytes(range(256))]:
        with pytest.raises(FLIGHT_ERRORS):
            client.get_flight_info(flight.FlightDescriptor.for_command(junk))
    with pytest.raises(FLIGHT_ERRORS):
        client.get_flight_info(flight.FlightDescriptor.for_path("a", "b"))


def test_a_ticket_of_nobody_says_to_run_again(client):
    with pytest.raises(FLIGHT_ERRORS, match="run the statement again"):
        client.do_get(flight.Ticket(sql_messages.ticket(b"0123456789abcdef"))).read_all()


def test_a_ticket_is_good_again(client):
    info = client.get_flight_info(flight.FlightDescriptor.for_command(sql_messages.statement_query("SELECT 7 AS n")))
    ticket = info.endpoints[0].ticket
    for _ in range(3):
        assert client.do_get(ticket).read_all().to_pydict() == {"n": [7]}


def test_a_ticket_whose_query_failed_tells_that_again(client):
    sql = "SELECT 1 / (value - value) AS n FROM generate_series(1, 3)"
    info = client.get_flight_info(flight.FlightDescriptor.for_command(sql_messages.statement_query(sql)))
    for _ in range(2):
        with pytest.raises(FLIGHT_ERRORS, match="(?i)zero"):
            client.do_get(info.endpoints[0].ticket).read_all()


def test_an_unknown_statement_says_to_prepare_again(client):
    command = sql_messages.packed("CommandPreparedStatementQuery", (1, b"nothing"))
    with pytest.raises(FLIGHT_ERRORS, match="prepare the statement again"):
        client.get_flight_info(flight.FlightDescriptor.for_command(command))


def test_an_unknown_action_lists_those_there_are(client):
    with pytest.raises(FLIGHT_ERRORS, match="shoal.progress"):
        list(client.do_action(flight.Action("no.such.action", b"")))
    names = {action.type for action in client.list_actions()}
    assert {"CreatePreparedStatement", "CancelFlightInfo", "shoal.cancel"} <= names


def test_transactions_are_refused(client):
    body = sql_messages.packed("ActionBeginTransactionRequest")
    with pytest.raises(FLIGHT_ERRORS, match="(?i)transaction"):
        list(client.do_action(flight.Action("BeginTransaction", body)))


def test_an_unknown_token_is_refused():
    options = {"adbc.flight.sql.authorization_header": "Bearer nobody"}
    with pytest.raises(flightsql.Error, match="connect again"):
        with connect(**options) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT 1")


def test_any_user_may_come_in_and_is_known_by_name():
    with flight.connect(URI) as client:
        token = client.authenticate_basic_token("ann", "")
        options = flight.FlightCallOptions(headers=[token])
        (answer,) = client.do_action(flight.Action("shoal.session", b""), options)
        assert b'"ann"' in answer.body.to_pybytes()
    with connect(username="bob", password="") as connection, connection.cursor() as cursor:
        assert works(cursor)


def test_a_closed_session_is_closed():
    with flight.connect(URI) as client:
        options = flight.FlightCallOptions(headers=[client.authenticate_basic_token("ann", "")])
        list(client.do_action(flight.Action("CloseSession", b""), options))
        with pytest.raises(FLIGHT_ERRORS, match="connect again"):
            list(client.do_action(flight.Action("shoal.notices", b""), options))
