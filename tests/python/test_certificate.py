"""The certificate behind the rows: there for who asks, in nobody's way."""

import json

import pandas
import polars
import pyarrow
from pyarrow import flight

import sql_messages


def certified(client, sql):
    """Rows, and the metadata of each message."""
    info = client.get_flight_info(flight.FlightDescriptor.for_command(sql_messages.statement_query(sql)))
    reader = client.do_get(info.endpoints[0].ticket)
    rows, words = 0, []
    for chunk in reader:
        rows += chunk.data.num_rows
        words.append(chunk.app_metadata and json.loads(chunk.app_metadata.to_pybytes()))
    return json.loads(info.app_metadata)["query_id"], rows, words


def test_the_last_message_carries_the_certificate(client, cursor, table):
    cursor.adbc_ingest(table, pyarrow.table({"n": range(100_000)}), mode="create")
    for sql, expected in [(f"SELECT n FROM {table}", 100_000), (f"SELECT n FROM {table} WHERE n < 0 AND n % 2 = 0", 0)]:
        query, rows, words = certified(client, sql)
        assert rows == expected
        assert not any(words[:-1])
        assert words[-1]["query_id"] == query
        certificate = words[-1]["certificate"]
        assert certificate["attempts"] == 1 and certificate["lost"] == [] and certificate["snapshot"] > 0
        for read in certificate["tables"]:
            assert read["table"] == f"public.{table}"
            assert read["segments"] == read["segments_planned"]
        (answer,) = client.do_action(flight.Action("shoal.certificate", query.encode()))
        assert json.loads(answer.body.to_pybytes()) == certificate


def test_clients_that_do_not_ask_see_only_rows(connection, cursor, people):
    sql = f"SELECT id FROM {people} ORDER BY id"
    cursor.execute(sql)
    assert cursor.fetchall() == [(1,), (2,), (3,)]
    cursor.execute(sql)
    assert [cursor.fetchone() for _ in range(4)] == [(1,), (2,), (3,), None]
    cursor.execute(sql)
    assert cursor.fetchmany(2) == [(1,), (2,)] and cursor.fetchmany(2) == [(3,)] and cursor.fetchmany(2) == []
    cursor.execute(sql)
    assert cursor.fetch_arrow_table().column("id").to_pylist() == [1, 2, 3]
    cursor.execute(f"{sql} LIMIT 0")
    assert cursor.fetchall() == []
    cursor.execute(f"{sql} LIMIT 0")
    assert cursor.fetch_arrow_table().schema.names == ["id"]
    assert pandas.read_sql(sql, connection)["id"].tolist() == [1, 2, 3]
    assert polars.read_database(sql, connection).rows() == [(1,), (2,), (3,)]
