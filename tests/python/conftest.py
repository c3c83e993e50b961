"""Fixtures: the coordinator under test, connections to it, and names for
tables that are gone afterwards. The suite starts nothing; see run.sh."""

import os
import uuid

import adbc_driver_flightsql.dbapi as flightsql
import pyarrow
import pytest
from adbc_driver_flightsql import DatabaseOptions
from pyarrow import flight

URI = os.environ.get("SHOAL_TEST_URI", "grpc+tcp://127.0.0.1:7400")
# Above the rows of 20 MB that a test sends; the driver takes 16 MiB by itself.
MESSAGE_BYTES_MAX = 64 * 1024 * 1024
# What pyarrow raises: some statuses become errors of Flight, others of Arrow.
FLIGHT_ERRORS = (flight.FlightError, pyarrow.ArrowException)


def connect(**options):
    """A connection of ADBC with autocommit, as Shoal has no transactions."""
    options = {DatabaseOptions.WITH_MAX_MSG_SIZE.value: str(MESSAGE_BYTES_MAX), **options}
    return flightsql.connect(URI, db_kwargs=options, autocommit=True)


def pytest_sessionstart(session):
    """Without a coordinator every test would fail in its own way."""
    try:
        with flight.connect(URI) as client:
            list(client.list_actions())
    except FLIGHT_ERRORS as error:
        pytest.exit(f"no coordinator answers at {URI}: {error}", returncode=2)


@pytest.fixture
def connection():
    """A connection of ADBC."""
    with connect() as connection:
        yield connection


@pytest.fixture
def cursor(connection):
    """A cursor of ADBC."""
    with connection.cursor() as cursor:
        yield cursor


@pytest.fixture
def client():
    """A client of plain Flight."""
    with flight.connect(URI) as client:
        yield client


@pytest.fixture
def table():
    """The name of a table that does not exist, and is dropped afterwards."""
    name = f"t_{uuid.uuid4().hex}"
    yield name
    with connect() as connection, connection.cursor() as cursor:
        cursor.execute(f"DROP TABLE IF EXISTS {name}")


@pytest.fixture
def people(cursor, table):
    """A table of three people: id, name and weight."""
    cursor.execute(f"CREATE TABLE {table} (id BIGINT NOT NULL, name TEXT, weight DOUBLE)")
    cursor.execute(f"INSERT INTO {table} VALUES (1, 'ann', 50.5), (2, 'bob', NULL), (3, NULL, 70.0)")
    return table
