"""Tables: columns of fixed types, CSV and Parquet, whole or not at all."""

import contextlib
import csv
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from microplastics.files import atomic_write
from microplastics.measurement.table import table_columns

# An image without a calibration, or without a particle, must not change the type of a column.
_ARROW = {"string": pa.string(), "int64": pa.int64(), "float64": pa.float64(), "bool": pa.bool_()}
_COLUMNS = {name: _ARROW[kind] for name, kind in table_columns(um=True, px=True).items()}
# A scale is written as it is, every other number with so many significant digits.
_EXACT = frozenset(("um_per_px",))
_DIGITS = 6
_ROWS_OF_A_GROUP = 100_000
_CODEC = "zstd"


def to_arrow(table: pd.DataFrame) -> pa.Table:
    """Give a table's columns their types: 64-bit numbers, bools, texts; missing values are null.

    Args:
        table: of one image or of a whole run.
    """
    columns = {str(name): _column(str(name), table[name]) for name in table.columns}
    return pa.table(columns)


def merge_schemas(schemas: Sequence[pa.Schema]) -> pa.Schema:
    """Give the columns of all tables: the known ones in their order, then what else there is.

    Whole numbers in one table and fractions in another become fractions.
    """
    whole = pa.unify_schemas(list(schemas), promote_options="permissive")
    known = [name for name in _COLUMNS if name in whole.names]
    other = [name for name in whole.names if name not in _COLUMNS]
    return pa.schema([whole.field(name) for name in (*known, *other)])


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Give a table the columns of a schema; those that it lacks are null."""
    columns = [
        (
            table[field.name].cast(field.type)
            if field.name in table.column_names
            else pa.nulls(len(table), field.type)
        )
        for field in schema
    ]
    return pa.table(columns, schema=schema)


@contextlib.contextmanager
def open_csv(path: Path, schema: pa.Schema) -> Iterator[Callable[[pa.Table], None]]:
    """Write a CSV table by table: UTF-8, commas, decimal points, ``\\n``, a header.

    Numbers have six significant digits and no thousands separators; truth is TRUE or FALSE, as in
    spreadsheets and R; what is missing is empty.

    Args:
        path: of the file, which is there when the block ends well.
        schema: of all tables.

    Yields:
        the function that takes the next table.

    Raises:
        UserError: the file cannot be written.
    """
    with atomic_write(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(schema.names)

        def add(table: pa.Table) -> None:
            table = conform(table, schema)
            columns = [_texts(name, table[name].to_pylist()) for name in schema.names]
            writer.writerows(zip(*columns, strict=True))

        yield add


@contextlib.contextmanager
def open_parquet(path: Path, schema: pa.Schema) -> Iterator[Callable[[pa.Table], None]]:
    """Write a Parquet file table by table, with the numbers as they are (see :func:`open_csv`)."""
    with (
        atomic_write(path, "wb") as file,
        pq.ParquetWriter(file, schema, compression=_CODEC) as writer,
    ):
        waiting: list[pa.Table] = []

        def flush() -> None:
            if waiting:
                writer.write_table(pa.concat_tables(waiting))
            waiting.clear()

        def add(table: pa.Table) -> None:
            waiting.append(conform(table, schema))
            # A group of rows an image would make the file large and slow.
            if sum(map(len, waiting)) >= _ROWS_OF_A_GROUP:
                flush()

        yield add
        flush()


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write one table as CSV (see :func:`open_csv`)."""
    arrow = to_arrow(table)
    with open_csv(path, arrow.schema) as add:
        add(arrow)


def write_parquet(table: pd.DataFrame, path: Path) -> None:
    """Write one table as Parquet (see :func:`open_parquet`)."""
    arrow = to_arrow(table)
    with open_parquet(path, arrow.schema) as add:
        add(arrow)


def _column(name: str, values: pd.Series) -> pa.Array:
    kind = _COLUMNS.get(name) or _kind(values)
    if kind == pa.string():
        return pa.array([None if pd.isna(v) else str(v) for v in values], kind)
    return pa.array(values, kind, from_pandas=True)


def _kind(values: pd.Series) -> pa.DataType:
    if pd.api.types.is_bool_dtype(values):
        return pa.bool_()
    if pd.api.types.is_integer_dtype(values):
        return pa.int64()
    return pa.float64() if pd.api.types.is_numeric_dtype(values) else pa.string()


def _texts(name: str, values: list[Any]) -> list[Any]:
    if any(isinstance(value, bool) for value in values):
        return ["" if value is None else str(value).upper() for value in values]
    if name in _EXACT or not any(isinstance(value, float) for value in values):
        return ["" if value is None else value for value in values]
    return [_number(value) for value in values]


def _number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return ""
    # Spreadsheets show exponents; large numbers keep all their digits instead.
    return f"{value:.{_DIGITS}g}" if abs(value) < 10**_DIGITS else f"{value:.0f}"
