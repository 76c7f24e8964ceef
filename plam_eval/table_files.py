"""Tables as files: parquet of anybody's read within limits, parquet and CSV of ours written in one step."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plam_eval.errors import DamagedFileError
from plam_eval.files import check_size, write_in_one_step

if TYPE_CHECKING:
    import pandas as pd

_LARGEST_PARQUET = 1 << 33  # bytes
_MOST_ROWS = 1 << 25
_MOST_TEXT = 1 << 31  # bytes of a column, every row with a text of its own


def read_parquet(path: Path, columns: Sequence[str] | None, remedy: str) -> pd.DataFrame:
    """Columns of a parquet file that may be anybody's: a few thousand bytes of one can stand for any amount of memory.

    Args:
        path: of the file.
        columns: of single values; those that the file has of them are read. None: all columns of single values.
        remedy: what to do where it cannot be taken.

    Raises:
        DamagedFileError: it is none, or a column is too large, or holds lists.
        OSError: it cannot be opened.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    check_size(path, _LARGEST_PARQUET, remedy)
    try:
        file = pq.ParquetFile(path, memory_map=False)
        metadata, schema = file.metadata, file.schema_arrow
        single = [field.name for field in schema if not pa.types.is_nested(field.type)]
        wanted = single if columns is None else [name for name in columns if name in schema.names]
        if metadata.num_rows > _MOST_ROWS:
            raise ValueError(f"{metadata.num_rows} rows, of {_MOST_ROWS} at most")
        if nested := [name for name in wanted if name not in single]:
            raise ValueError(f"lists in column {', '.join(nested)}, expected single values")
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        chunks = [group.column(number) for group in groups for number in range(group.num_columns)]
        if sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema in wanted) > _LARGEST_PARQUET:
            raise ValueError(f"more than {_LARGEST_PARQUET} bytes once unpacked")
        # Texts stay as they are stored, each once, until it is known how long all rows are.
        table = pq.read_table(path, columns=wanted, read_dictionary=wanted)
        for number, name in enumerate(wanted):
            column = table.column(name)
            if not pa.types.is_dictionary(column.type):
                continue
            kind = column.type.value_type
            if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind):
                lengths = (pc.sum(pc.binary_length(each.dictionary).take(each.indices)) for each in column.chunks)
                if sum(length.as_py() or 0 for length in lengths) > _MOST_TEXT:
                    raise ValueError(f"more than {_MOST_TEXT} bytes of text in column {name}")
            table = table.set_column(number, name, column.cast(kind))
        return table.to_pandas()
    except Exception as error:  # pyarrow raises what it likes for damaged bytes
        raise DamagedFileError(f"{path}: cannot be read ({error}); {remedy}") from error


_FORMULA = tuple("=+-@\t\r\n\N{FULLWIDTH EQUALS SIGN}\N{FULLWIDTH PLUS SIGN}\uff0d\N{FULLWIDTH COMMERCIAL AT}")


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table as `path`.parquet, exactly, and as `path`.csv (`write_csv`), each in one step.

    Args:
        table: with names of columns that parquet takes.
        path: without the suffix.
    """
    write_csv(table, path.with_name(f"{path.name}.csv"))
    target = path.with_name(f"{path.name}.parquet")
    write_in_one_step(target, lambda partial: table.to_parquet(partial, index=False))


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV, in one step; a text that a spreadsheet would run as a formula gets an apostrophe before it.

    Those are texts that begin with = + - @ (or their wide forms), a tab or a line end; numbers stay as they are.

    Args:
        table: of any columns.
        path: of the file.
    """
    from pandas.api.types import is_numeric_dtype  # takes long to import

    texts = {
        name: column.astype(object).map(_no_formula)
        for name, column in table.items()
        if not is_numeric_dtype(column.dtype)
    }
    escaped = table.assign(**{str(name): column for name, column in texts.items()}) if texts else table
    # Quoted: pandas leaves a lone carriage return in an answer bare, and readers take it for a line end.
    write_in_one_step(path, lambda partial: escaped.to_csv(partial, index=False, quoting=csv.QUOTE_NONNUMERIC))


def _no_formula(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
