"""What clients ask about the catalog and the server."""

import pyarrow
import pytest
from adbc_driver_flightsql import dbapi as flightsql

from conftest import connect


def objects(connection, depth, **filters):
    """get_objects as plain lists."""
    return connection.adbc_get_objects(depth=depth, **filters).read_all().to_pylist()


def tables_of(catalogs, schema):
    """The tables of one schema, by name."""
    for catalog in catalogs:
        for entry in catalog["catalog_db_schemas"] or []:
            if entry["db_schema_name"] == schema:
                return {table["table_name"]: table for table in entry["db_schema_tables"] or []}
    return {}


def test_there_is_one_catalog(connection):
    assert [catalog["catalog_name"] for catalog in objects(connection, "catalogs")] == ["shoal"]


def test_schemas_are_listed(connection):
    (catalog,) = objects(connection, "db_schemas")
    schemas = [schema["db_schema_name"] for schema in catalog["catalog_db_schemas"]]
    assert {"public", "system", "information_schema"} <= set(schemas)


def test_tables_are_listed_with_their_type(connection, cursor, people):
    cursor.execute(f"CREATE VIEW v_{people} AS SELECT id FROM {people}")
    tables = tables_of(objects(connection, "tables"), "public")
    assert tables[people]["table_type"] == "TABLE"
    assert tables[f"v_{people}"]["table_type"] == "VIEW"
    cursor.execute(f"DROP VIEW v_{people}")


def test_tables_can_be_filtered(connection, people):
    assert set(tables_of(objects(connection, "tables", table_name_filter=people), "public")) == {people}
    assert set(tables_of(objects(connection, "tables", table_name_filter=f"{people[:20]}%"), "public")) == {people}
    assert not tables_of(objects(connection, "tables", table_types_filter=["VIEW"]), "public").get(people)


def test_columns_are_listed(connection, people):
    tables = tables_of(objects(connection, "all", table_name_filter=people), "public")
    columns = tables[people]["table_columns"]
    assert [column["column_name"] for column in columns] == ["id", "name", "weight"]


def test_the_schema_of_a_table_is_told(connection, people):
    schema = connection.adbc_get_table_schema(people)
    assert schema.names == ["id", "name", "weight"]
    assert schema.field("id").type == pyarrow.int64() and not schema.field("id").nullable
    assert schema.field("name").type == pyarrow.string() and schema.field("name").nullable


def test_the_schema_of_a_missing_table_is_an_error(connection):
    with pytest.raises(flightsql.Error):
        connection.adbc_get_table_schema("no_such_table")


def test_table_types_are_told(connection):
    assert connection.adbc_get_table_types() == ["EXTERNAL TABLE", "SYSTEM TABLE", "TABLE", "VIEW"]


def test_the_server_says_what_it_is(connection):
    info = connection.adbc_get_info()
    assert info["vendor_name"] == "Shoal"
    assert info["driver_arrow_version"]


def test_transactions_are_refused_with_a_warning():
    with pytest.warns(Warning, match="autocommit"):
        with flightsql.connect(connect.__globals__["URI"]) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            assert cursor.fetchall() == [(1,)]


def test_the_current_catalog_and_schema_are_told_and_set(connection, cursor):
    assert connection.adbc_current_catalog == "shoal"
    assert connection.adbc_current_db_schema == "public"
    connection.adbc_current_db_schema = "system"
    assert connection.adbc_current_db_schema == "system"
    with pytest.raises(flightsql.Error):
        connection.adbc_current_catalog = "elsewhere"
