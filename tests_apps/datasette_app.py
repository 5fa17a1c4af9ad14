"""A database of its own, published by Datasette."""

import sqlite3
from contextlib import closing
from pathlib import Path

from datasette.app import Datasette

path = Path("cities.db")
if not path.exists():
    with closing(sqlite3.connect(path)) as database:
        database.execute("create table if not exists cities (id integer primary key, name text)")
        database.executemany(
            "insert or replace into cities values (?, ?)", [(number, f"Città {number}") for number in range(5000)]
        )
        database.commit()

app = Datasette([str(path)]).app()
