"""Into pandas and polars, and back."""

import pandas
import polars
import pyarrow


def test_a_query_becomes_a_pandas_frame(connection, people):
    frame = pandas.read_sql(f"SELECT id, name, weight FROM {people} ORDER BY id", connection)
    assert list(frame.columns) == ["id", "name", "weight"]
    assert frame["id"].tolist() == [1, 2, 3]
    assert frame["weight"].sum() == 120.5
    assert frame["name"].isna().tolist() == [False, False, True]


def test_a_cursor_becomes_a_pandas_frame(cursor, people):
    cursor.execute(f"SELECT id FROM {people} WHERE id < ? ORDER BY id", (3,))
    assert cursor.fetch_df()["id"].tolist() == [1, 2]


def test_a_pandas_frame_becomes_a_table(connection, table):
    frame = pandas.DataFrame({"n": [1, 2], "t": ["a", None]})
    assert frame.to_sql(table, connection, index=False) == 2
    assert pandas.read_sql(f"SELECT n FROM {table} ORDER BY n", connection)["n"].tolist() == [1, 2]


def test_a_query_becomes_a_polars_frame(connection, people):
    frame = polars.read_database(f"SELECT id, name, weight FROM {people} ORDER BY id", connection)
    assert frame.schema == {"id": polars.Int64, "name": polars.String, "weight": polars.Float64}
    assert frame.rows() == [(1, "ann", 50.5), (2, "bob", None), (3, None, 70.0)]


def test_a_polars_frame_becomes_a_table(connection, cursor, table):
    frame = polars.DataFrame({"n": [1, 2], "t": ["a text of more than twelve", None]})
    frame.write_database(table, connection, engine="adbc", if_table_exists="replace")
    cursor.execute(f"SELECT * FROM {table} ORDER BY n")
    assert cursor.fetch_polars().equals(frame)


def test_rows_are_read_as_they_come(cursor, table):
    cursor.adbc_ingest(table, pyarrow.table({"n": range(100_000)}), mode="create")
    cursor.execute(f"SELECT n FROM {table}")
    reader = cursor.fetch_record_batch()
    assert sum(batch.num_rows for batch in reader) == 100_000
