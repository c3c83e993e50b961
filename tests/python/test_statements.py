"""Statements, parameters and row counts through ADBC."""

import datetime
import decimal

import adbc_driver_flightsql.dbapi as flightsql
import pyarrow
import pytest

from conftest import connect

CALL_HEADER = "adbc.flight.sql.rpc.call_header."


def rows(cursor, sql, parameters=None):
    """All rows of a query."""
    cursor.execute(sql, parameters)
    return cursor.fetchall()


def test_a_query_gives_its_rows(cursor, people):
    assert rows(cursor, f"SELECT id, name, weight FROM {people} ORDER BY id") == [
        (1, "ann", 50.5),
        (2, "bob", None),
        (3, None, 70.0),
    ]
    assert [column[0] for column in cursor.description] == ["id", "name", "weight"]


def test_a_query_without_rows_still_has_columns(cursor, people):
    cursor.execute(f"SELECT id, name FROM {people} WHERE id > 100")
    result = cursor.fetch_arrow_table()
    assert result.num_rows == 0
    assert result.schema.names == ["id", "name"]
    assert result.schema.field("id").type == pyarrow.int64()


def test_text_arrives_as_plain_text(cursor, people):
    cursor.execute(f"SELECT name, upper(name) AS loud, 'x' AS literal FROM {people}")
    assert [field.type for field in cursor.fetch_arrow_table().schema] == [pyarrow.string()] * 3


def test_literals_of_every_type_arrive(cursor):
    sql = """SELECT true AS b, 1 AS i, 2.5 AS f, CAST(1.25 AS DECIMAL(10, 2)) AS d, 'x' AS t,
        DATE '1994-01-01' AS day, TIMESTAMP '1994-01-01 12:30:00' AS moment, NULL AS nothing,
        [1, 2] AS items, X'00ff' AS bytes"""
    assert rows(cursor, sql) == [
        (
            True,
            1,
            2.5,
            decimal.Decimal("1.25"),
            "x",
            datetime.date(1994, 1, 1),
            datetime.datetime(1994, 1, 1, 12, 30),
            None,
            [1, 2],
            b"\x00\xff",
        )
    ]


def test_ddl_and_dml_run_exactly_once_whether_or_not_they_are_fetched(cursor, table):
    cursor.execute(f"CREATE TABLE {table} (n BIGINT)")
    cursor.execute(f"INSERT INTO {table} VALUES (1)")
    cursor.execute(f"INSERT INTO {table} VALUES (2)")
    assert cursor.fetch_arrow_table().num_columns == 0
    assert rows(cursor, f"SELECT n FROM {table} ORDER BY n") == [(1,), (2,)]


def test_an_insert_tells_how_many_rows_it_wrote(cursor, table):
    cursor.execute(f"CREATE TABLE {table} (n BIGINT)")
    cursor.execute(f"INSERT INTO {table} VALUES (1), (2), (3)")
    assert cursor.rowcount == 3
    cursor.adbc_statement.set_sql_query(f"INSERT INTO {table} SELECT n + 10 FROM {table}")
    assert cursor.adbc_statement.execute_update() == 3


def test_an_update_without_preparing_runs_once(cursor, table):
    statement = cursor.adbc_statement
    statement.set_sql_query(f"CREATE TABLE {table} (n BIGINT)")
    statement.execute_update()
    statement.set_sql_query(f"INSERT INTO {table} VALUES (1), (2)")
    assert statement.execute_update() == 2
    assert rows(cursor, f"SELECT count(*) FROM {table}") == [(2,)]


def test_a_query_without_preparing_gives_its_rows(cursor):
    cursor.adbc_statement.set_sql_query("SELECT 1 AS n UNION ALL SELECT 2 ORDER BY n")
    handle, _ = cursor.adbc_statement.execute_query()
    assert pyarrow.RecordBatchReader._import_from_c(handle.address).read_all().to_pydict() == {"n": [1, 2]}


@pytest.mark.parametrize("placeholders", [("?", "?"), ("$1", "$2")])
def test_parameters_take_their_places(cursor, people, placeholders):
    first, second = placeholders
    sql = f"SELECT id FROM {people} WHERE id >= {first} AND weight < {second} ORDER BY id"
    assert rows(cursor, sql, (1, 60.0)) == [(1,)]
    assert rows(cursor, sql, (1, 100.0)) == [(1,), (3,)]
    assert rows(cursor, sql, (2, 60.0)) == []


def test_a_parameter_is_compared_by_its_value_and_not_cut_to_the_column(cursor, people):
    sql = f"SELECT id FROM {people} WHERE id < $1 ORDER BY id"
    assert rows(cursor, sql, (1.5,)) == [(1,)]
    assert rows(cursor, sql, (3,)) == [(1,), (2,)]


def test_text_parameters_are_values_and_never_sql(cursor, people):
    sql = f"SELECT id FROM {people} WHERE name = ?"
    assert rows(cursor, sql, ("ann",)) == [(1,)]
    assert rows(cursor, sql, ("ann' OR 1 = 1 --",)) == []


def test_a_null_parameter_equals_nothing(cursor, people):
    assert rows(cursor, f"SELECT id FROM {people} WHERE name = ?", (None,)) == []


def test_dates_are_bound_as_dates(cursor, table):
    cursor.execute(f"CREATE TABLE {table} (day DATE, moment TIMESTAMP, price DECIMAL(10, 2))")
    row = (datetime.date(2024, 2, 29), datetime.datetime(2024, 2, 29, 1, 2, 3), decimal.Decimal("1.25"))
    cursor.execute(f"INSERT INTO {table} VALUES (?, ?, ?)", row)
    assert rows(cursor, f"SELECT * FROM {table} WHERE day = ?", (row[0],)) == [row]


def test_the_wrong_number_of_parameters_is_an_error(cursor, people):
    sql = f"SELECT id FROM {people} WHERE id = $1 AND weight = $2"
    with pytest.raises(flightsql.Error, match="2 parameters"):
        cursor.execute(sql, (1,))
    with pytest.raises(flightsql.Error, match="2 parameters"):
        cursor.execute(sql)


def test_executemany_runs_once_for_each_row_in_order(cursor, table):
    cursor.execute(f"CREATE TABLE {table} (n BIGINT, t TEXT)")
    cursor.executemany(f"INSERT INTO {table} VALUES (?, ?)", [(1, "one"), (2, None), (3, "three")])
    assert cursor.rowcount == 3
    assert rows(cursor, f"SELECT n, t FROM {table} ORDER BY n") == [(1, "one"), (2, None), (3, "three")]


def test_executemany_of_no_rows_writes_nothing(cursor, table):
    cursor.execute(f"CREATE TABLE {table} (n BIGINT)")
    cursor.executemany(f"INSERT INTO {table} VALUES (?)", [])
    cursor.executemany(f"INSERT INTO {table} VALUES (?)", pyarrow.table({"n": pyarrow.array([], pyarrow.int64())}))
    assert rows(cursor, f"SELECT count(*) FROM {table}") == [(0,)]


def test_executemany_of_values_is_one_write(cursor, table):
    cursor.execute(f"CREATE TABLE {table} (n BIGINT, t TEXT, d DOUBLE) WITH (shards = 4)")
    cursor.executemany(f"INSERT INTO {table} VALUES (? + 1, ?, 0.5)", [(n, f"row {n}") for n in range(1000)])
    assert cursor.rowcount == 1000
    assert rows(cursor, f"SELECT count(*), sum(n), sum(d) FROM {table}") == [(1000, 500500, 500.0)]
    assert rows(cursor, f"SELECT count(*) FROM {table} WHERE t = 'row ' || (n - 1)") == [(1000,)]
    segments = rows(cursor, f"SELECT count(*) FROM system.segments WHERE \"table\" LIKE '%{table}'")
    assert 1 <= segments[0][0] <= 4


def test_executemany_of_other_statements_runs_once_for_each_row(cursor, table):
    cursor.execute(f"CREATE TABLE {table} (n BIGINT)")
    cursor.executemany(f"INSERT INTO {table} SELECT v.n + ? FROM (VALUES (1), (2)) v(n)", [(10,), (20,)])
    assert cursor.rowcount == 4
    assert rows(cursor, f"SELECT n FROM {table} ORDER BY n") == [(11,), (12,), (21,), (22,)]


def test_executemany_names_the_row_that_fails(cursor, table):
    cursor.execute(f"CREATE TABLE {table} (n BIGINT NOT NULL)")
    with pytest.raises(flightsql.Error, match="row 2"):
        cursor.executemany(f"INSERT INTO {table} VALUES (?)", [(1,), (None,), (3,)])
    assert rows(cursor, f"SELECT count(*) FROM {table}") == [(0,)]


def test_settings_stay_with_their_connection(connection, cursor):
    cursor.execute("SET datafusion.execution.batch_size = 1234")
    with connection.cursor() as other:
        assert rows(other, "SHOW datafusion.execution.batch_size")[0][-1] == "1234"


def test_a_new_connection_starts_with_default_settings(cursor):
    cursor.execute("SET datafusion.execution.batch_size = 1234")
    with connect() as connection, connection.cursor() as other:
        assert rows(other, "SHOW datafusion.execution.batch_size")[0][-1] != "1234"


def test_a_write_that_is_sent_twice_happens_once(cursor, table):
    cursor.execute(f"CREATE TABLE {table} (n BIGINT)")
    with connect(**{CALL_HEADER + "shoal-write-id": f"first-{table}"}) as connection, connection.cursor() as named:
        for _ in range(2):
            named.execute(f"INSERT INTO {table} VALUES (1), (2)")
            assert named.rowcount == 2
    with connect(**{CALL_HEADER + "shoal-write-id": f"many-{table}"}) as connection, connection.cursor() as named:
        for _ in range(2):
            named.executemany(f"INSERT INTO {table} VALUES (?)", [(3,), (4,)])
            assert named.rowcount == 2
    assert rows(cursor, f"SELECT n FROM {table} ORDER BY n") == [(1,), (2,), (3,), (4,)]


def test_a_statement_whose_table_changed_says_to_prepare_again(cursor, table):
    sql = f"SELECT * FROM {table}"
    with connect() as connection, connection.cursor() as other:
        cursor.execute(f"CREATE TABLE {table} (n BIGINT)")
        assert rows(other, sql) == []
        cursor.execute(f"DROP TABLE {table}")
        cursor.execute(f"CREATE TABLE {table} (t TEXT, n BIGINT)")
        with pytest.raises(flightsql.Error, match="prepare the statement again"):
            rows(other, sql)
    with connect() as connection, connection.cursor() as fresh:
        assert rows(fresh, sql) == []
        assert len(fresh.description) == 2


def test_a_schema_is_told_without_running(cursor, people):
    schema = cursor.adbc_execute_schema(f"SELECT id, name FROM {people}")
    assert schema.names == ["id", "name"]


def test_explain_gives_rows(cursor, people):
    assert rows(cursor, f"EXPLAIN SELECT * FROM {people}")
