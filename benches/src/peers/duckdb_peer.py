"""DuckDB as a peer: one line of JSON for each query on standard input, one on
standard output. Arguments: threads, the list of tables."""
import json
import sys
import time

import duckdb

connection = duckdb.connect()
connection.execute(f"SET threads = {int(sys.argv[1])}")
with open(sys.argv[2]) as file:
    for table in json.load(file):
        files = ", ".join("'" + path + "/*.parquet'" for path in table["paths"])
        connection.execute(f"CREATE VIEW {table['table']} AS SELECT * FROM read_parquet([{files}])")


def say(reply):
    print(json.dumps(reply), flush=True)


say({})
for line in sys.stdin:
    request = json.loads(line)
    try:
        started = time.perf_counter()
        relation = connection.sql(request["sql"])
        fetch = getattr(relation, "to_arrow_table", None) or relation.fetch_arrow_table
        table = fetch()
        seconds = time.perf_counter() - started
        if request["answer"]:
            sql = request["sql"].rstrip().rstrip(";")
            connection.execute(f"COPY ({sql}) TO '{request['answer']}' (FORMAT parquet)")
        say({"seconds": seconds, "rows": table.num_rows})
    except Exception as error:
        say({"error": str(error)})
