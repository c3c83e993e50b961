"""Bulk ingest through ADBC: its four modes, and many types and rows."""

import datetime
import decimal

import adbc_driver_flightsql.dbapi as flightsql
import pyarrow
import pytest

ROWS = pyarrow.table({"n": [1, 2, 3], "t": ["one", None, "three"]})


def content(cursor, table):
    """All rows of a table, sorted."""
    cursor.execute(f"SELECT * FROM {table} ORDER BY 1")
    return cursor.fetchall()


def test_create_makes_the_table_from_the_rows(cursor, table):
    assert cursor.adbc_ingest(table, ROWS, mode="create") == 3
    assert content(cursor, table) == [(1, "one"), (2, None), (3, "three")]


def test_create_refuses_a_table_that_exists(cursor, table):
    cursor.adbc_ingest(table, ROWS, mode="create")
    with pytest.raises(flightsql.Error, match="exists"):
        cursor.adbc_ingest(table, ROWS, mode="create")
    assert len(content(cursor, table)) == 3


def test_append_adds_rows(cursor, table):
    cursor.adbc_ingest(table, ROWS, mode="create")
    assert cursor.adbc_ingest(table, ROWS, mode="append") == 3
    assert len(content(cursor, table)) == 6


def test_append_refuses_a_table_that_does_not_exist(cursor, table):
    with pytest.raises(flightsql.Error, match=table):
        cursor.adbc_ingest(table, ROWS, mode="append")


def test_replace_changes_rows_and_columns(cursor, table):
    cursor.adbc_ingest(table, ROWS, mode="create")
    assert cursor.adbc_ingest(table, pyarrow.table({"x": [1.5]}), mode="replace") == 1
    assert content(cursor, table) == [(1.5,)]


def test_replace_creates_what_does_not_exist(cursor, table):
    cursor.adbc_ingest(table, ROWS, mode="replace")
    assert len(content(cursor, table)) == 3


def test_create_append_does_either(cursor, table):
    cursor.adbc_ingest(table, ROWS, mode="create_append")
    cursor.adbc_ingest(table, ROWS, mode="create_append")
    assert len(content(cursor, table)) == 6


def test_a_table_of_no_rows_is_created(cursor, table):
    # Without any batch the driver sends nothing, not even the table's name.
    empty = pyarrow.RecordBatch.from_pylist([], schema=ROWS.schema)
    assert cursor.adbc_ingest(table, empty, mode="create") == 0
    assert content(cursor, table) == []


def test_a_schema_can_be_named(cursor, table):
    cursor.adbc_ingest(table, ROWS, mode="create", db_schema_name="public")
    assert len(content(cursor, f"public.{table}")) == 3
    with pytest.raises(flightsql.Error, match="nowhere"):
        cursor.adbc_ingest(table, ROWS, mode="create", db_schema_name="nowhere")


def test_temporary_tables_are_refused(cursor, table):
    with pytest.raises(flightsql.NotSupportedError):
        cursor.adbc_ingest(table, ROWS, mode="create", temporary=True)


def test_every_type_comes_back_as_it_was(cursor, table):
    day = datetime.date(2024, 2, 29)
    moment = datetime.datetime(2024, 2, 29, 1, 2, 3, 456789)
    rows = pyarrow.table(
        {
            "n": pyarrow.array([1, 2], pyarrow.int64()),
            "i8": pyarrow.array([-128, None], pyarrow.int8()),
            "i16": pyarrow.array([-32768, None], pyarrow.int16()),
            "i32": pyarrow.array([2**31 - 1, None], pyarrow.int32()),
            "u64": pyarrow.array([2**64 - 1, None], pyarrow.uint64()),
            "f32": pyarrow.array([0.5, None], pyarrow.float32()),
            "f64": pyarrow.array([float("inf"), None], pyarrow.float64()),
            "flag": pyarrow.array([True, None], pyarrow.bool_()),
            "text": pyarrow.array(["grüße 🐟", None], pyarrow.string()),
            "bytes": pyarrow.array([b"\x00\xff", None], pyarrow.binary()),
            "day": pyarrow.array([day, None], pyarrow.date32()),
            "moment": pyarrow.array([moment, None], pyarrow.timestamp("us")),
            "price": pyarrow.array([decimal.Decimal("-1.25"), None], pyarrow.decimal128(15, 2)),
            "items": pyarrow.array([[1, None], None], pyarrow.list_(pyarrow.int64())),
            "pair": pyarrow.array([{"a": 1, "b": "x"}, None], pyarrow.struct([("a", "int64"), ("b", "string")])),
        }
    )
    cursor.adbc_ingest(table, rows, mode="create")
    cursor.execute(f"SELECT * FROM {table} ORDER BY n")
    assert cursor.fetch_arrow_table().to_pydict() == rows.to_pydict()


def test_views_and_dictionaries_are_taken(cursor, table):
    rows = pyarrow.table(
        {
            "n": [1, 2],
            "view": pyarrow.array(["a text of more than twelve", None], pyarrow.string_view()),
            "word": pyarrow.array(["x", "x"]).dictionary_encode(),
        }
    )
    cursor.adbc_ingest(table, rows, mode="create")
    assert content(cursor, table) == [(1, "a text of more than twelve", "x"), (2, None, "x")]


def test_many_batches_arrive_whole(cursor, table):
    batch = pyarrow.record_batch({"n": range(10_000), "t": [f"text {n}" for n in range(10_000)]})
    reader = pyarrow.RecordBatchReader.from_batches(batch.schema, (batch for _ in range(30)))
    assert cursor.adbc_ingest(table, reader, mode="create") == 300_000
    cursor.execute(f"SELECT count(*), sum(n), count(DISTINCT t) FROM {table}")
    assert cursor.fetchall() == [(300_000, 30 * sum(range(10_000)), 10_000)]
    cursor.execute(f"SELECT n FROM {table}")
    assert cursor.fetch_arrow_table().num_rows == 300_000


def test_a_row_of_20_mb_goes_in_and_comes_out(cursor, table):
    wide = "w" * 20_000_000
    cursor.adbc_ingest(table, pyarrow.table({"n": [1, 2], "t": [wide, "narrow"]}), mode="create")
    cursor.execute(f"SELECT t FROM {table} ORDER BY n")
    first, second = (row[0] for row in cursor.fetchall())
    assert len(first) == len(wide) and second == "narrow"


def test_rows_that_break_off_leave_nothing(cursor, table):
    def batches():
        yield pyarrow.record_batch({"n": [1, 2, 3]})
        raise RuntimeError("the source broke")

    cursor.execute(f"CREATE TABLE {table} (n BIGINT)")
    reader = pyarrow.RecordBatchReader.from_batches(pyarrow.schema([("n", "int64")]), batches())
    with pytest.raises(Exception, match="the source broke"):
        cursor.adbc_ingest(table, reader, mode="append")
    assert content(cursor, table) == []
