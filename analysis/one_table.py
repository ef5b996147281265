"""The rows of a whole sweep as one Arrow table: made in little memory, and read.

A sweep of ten thousand trials has millions of rows. They lie in one chunk a column, epoch
by epoch, and words that recur (sweep, quantity, unit, details) are kept once.
"""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import records

_WORDS = ("sweep", "quantity", "unit", "details")


def packed(tables: list[pa.Table]) -> pa.Table:
    """Tables in one piece, with words that recur once only: they are half of the bytes."""
    table = pa.concat_tables(tables).combine_chunks()
    for name in _WORDS:
        place = table.schema.get_field_index(name)
        table = table.set_column(place, name, table[name].dictionary_encode())
    return table


def in_order(pieces: list[pa.Table]) -> pa.Table:
    """All rows by epoch, then by trial; empties `pieces`, so that there are never two copies."""
    table = pa.concat_tables(pieces).unify_dictionaries()
    pieces.clear()
    order = pa.array(np.lexsort((table["trial"].to_numpy(), table["epoch"].to_numpy())))
    schema, columns, found = table.schema, list(table.columns), []
    del table
    while columns:
        found.append(columns.pop(0).combine_chunks().take(order))
    pa.default_memory_pool().release_unused()
    return pa.table(found, schema=schema)


def by_epoch(table: pa.Table) -> pa.Table:
    """The rows in one chunk, in order of their epochs; those of one epoch stay as they were."""
    if (np.diff(table["epoch"].to_numpy()) >= 0).all():
        is_whole = all(column.num_chunks <= 1 for column in table.columns)
        return table if is_whole else table.combine_chunks()
    return table.take(pa.array(np.argsort(table["epoch"].to_numpy(), kind="stable")))


def scalars(table: pa.Table) -> pd.DataFrame:
    """Rows without axes: trial, epoch, quantity (categorical), value."""
    rows = table.select(["trial", "epoch", "quantity", "values", "shape"])
    rows = rows.filter(pc.equal(pc.list_value_length(rows["shape"]), 0))
    quantity = rows["quantity"].combine_chunks().dictionary_encode()
    names = quantity.dictionary if rows.num_rows else pa.array([], pa.string())
    codes = quantity.indices.to_numpy() if rows.num_rows else np.empty(0, int)
    return pd.DataFrame(
        {
            "trial": rows["trial"].to_numpy(),
            "epoch": rows["epoch"].to_numpy(),
            "quantity": pd.Categorical.from_codes(codes, names.to_pylist()),
            "value": records.firsts(rows["values"]),
        }
    )


def kinds(rows: pa.Table) -> pd.DataFrame:
    """Of spectra: trial, epoch, k, state_size, state."""
    known = {text: json.loads(text) for text in pc.unique(rows["details"]).to_pylist()}
    k = pc.list_value_length(rows["values"]).to_numpy()
    details = [known[text] for text in rows["details"].to_pylist()]
    return pd.DataFrame(
        {
            "trial": rows["trial"].to_numpy(),
            "epoch": rows["epoch"].to_numpy(),
            "k": k,
            "state_size": [int(d.get("state_size") or n) for d, n in zip(details, k, strict=True)],
            "state": [str(d.get("state", "full")) for d in details],
        }
    )
