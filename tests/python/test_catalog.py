"""What clients ask about the catalog and the server."""

import pyarrow
import pytest
from adbc_driver_flightsql import dbapi as flightsql
from pyarrow import flight

import sql_messages
from conftest import URI


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
        with flightsql.connect(URI) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            assert cursor.fetchall() == [(1,)]


def test_the_current_catalog_and_schema_are_told_and_set(connection, cursor):
    assert connection.adbc_current_catalog == "shoal"
    assert connection.adbc_current_db_schema == "public"
    connection.adbc_current_db_schema = "system"
    assert connection.adbc_current_db_schema == "system"
    with pytest.raises(flightsql.Error):
        connection.adbc_current_catalog = "elsewhere"


def answer(client, name, *fields):
    """The rows of a command, whose columns must be those that it announced."""
    descriptor = flight.FlightDescriptor.for_command(sql_messages.packed(name, *fields))
    info = client.get_flight_info(descriptor)
    rows = client.do_get(info.endpoints[0].ticket).read_all()
    assert rows.schema == info.schema == client.get_schema(descriptor).schema
    return rows


@pytest.mark.parametrize(
    ("command", "first_column"),
    [
        ("CommandGetPrimaryKeys", "catalog_name"),
        ("CommandGetExportedKeys", "pk_catalog_name"),
        ("CommandGetImportedKeys", "pk_catalog_name"),
        ("CommandGetCrossReference", "pk_catalog_name"),
    ],
)
def test_keys_are_tables_of_no_rows(client, people, command, first_column):
    rows = answer(client, command, (3, people))
    assert rows.num_rows == 0
    assert rows.schema.names[0] == first_column
    assert "key_sequence" in rows.schema.names


def test_sql_types_are_told(client):
    names = answer(client, "CommandGetXdbcTypeInfo")["type_name"].to_pylist()
    assert {"BIGINT", "DECIMAL", "VARCHAR", "TIMESTAMP"} <= set(names)


def test_every_other_command_about_the_catalog_answers_as_announced(client):
    for command in ["CommandGetCatalogs", "CommandGetDbSchemas", "CommandGetTables", "CommandGetTableTypes"]:
        assert answer(client, command).num_rows > 0
    assert answer(client, "CommandGetSqlInfo").num_rows > 40


def test_the_columns_of_a_query_are_told_without_running_it(client):
    command = sql_messages.statement_query("SELECT 1 AS n, 'x' AS t")
    schema = client.get_schema(flight.FlightDescriptor.for_command(command)).schema
    assert schema == pyarrow.schema([("n", pyarrow.int64()), ("t", pyarrow.string())])
