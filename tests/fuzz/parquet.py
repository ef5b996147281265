"""Parquet files of others: ours with a column gone wrong, and those that were made to do harm."""

import base64
import io
import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.fuzz.mutate import STRANGE, json_of, tree_of

TYPES = (
    pa.string(), pa.large_string(), pa.int8(), pa.int64(), pa.uint64(), pa.float32(), pa.float64(),
    pa.bool_(), pa.null(), pa.binary(), pa.date32(), pa.timestamp("ns"), pa.decimal128(38, 4),
    pa.list_(pa.float64()), pa.list_(pa.string()), pa.struct([("x", pa.int64())]),
    pa.dictionary(pa.int8(), pa.string()), pa.map_(pa.string(), pa.int64()), pa.duration("s"),
)  # fmt: skip


PLANTED = (
    "a pickle", "a pickle for an extension type", "a pickle as metadata",
    "a long word four thousand times", "a hundred million equal numbers", "long lists",
    "a deep schema", "three thousand columns", "no column", "no row", "metadata that is deep",
    "nothing", "its ends alone", "encrypted",
)  # fmt: skip


COSTLY = ("a hundred million equal numbers", "long lists")
"""To make: some seconds."""


class Payload:
    """What runs code where it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        import os

        return os.mkdir, (f"{self.folder}/made",)


def written(table, **options):
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def changed(table, steps, json_keys=()):
    """A table with columns dropped, doubled, cast, emptied, swapped; or its JSON changed."""
    for kind, where, what in steps:
        names = table.column_names
        at = where % max(1, len(names))
        try:
            if kind in (0, 1) and json_keys:
                metadata = dict(table.schema.metadata or {})
                key = json_keys[where % len(json_keys)]
                tree = tree_of(
                    json.loads(metadata.get(key, b"{}")), [(what % 12, where, what // 12)]
                )
                metadata[key] = json_of(tree).encode(errors="surrogatepass")
                table = table.replace_schema_metadata(metadata)
            elif kind == 2:
                table = table.remove_column(at)
            elif kind == 3:
                table = table.append_column(names[at], table[at])
            elif kind == 4:
                table = table.rename_columns(
                    [f"{n}x" if i == at else n for i, n in enumerate(names)]
                )
            elif kind in (5, 6):
                new = table[at].cast(TYPES[what % len(TYPES)], safe=False)
                table = table.set_column(at, names[at], new)
            elif kind == 7:
                values = table[at].to_pylist()
                values[what % len(values)] = None
                table = table.set_column(at, names[at], pa.array(values, table[at].type))
            elif kind in (8, 9):
                values = table[at].to_pylist()
                strange = STRANGE[what % len(STRANGE)]
                values[where // 7 % len(values)] = strange
                table = table.set_column(at, names[at], pa.array(values, table[at].type))
            elif kind == 10:
                table = pa.concat_tables([table, table.slice(what % 5, where % 5)])
            elif kind == 11:
                values = table[at].to_pylist()
                if values and isinstance(values[what % len(values)], list):
                    values[what % len(values)] = values[what % len(values)] * (where % 3) + [0]
                table = table.set_column(at, names[at], pa.array(values, table[at].type))
        except (pa.ArrowException, ValueError, TypeError, OverflowError, IndexError, KeyError,
                ZeroDivisionError, AttributeError, UnicodeEncodeError):  # fmt: skip
            continue  # What Arrow itself will not make needs no reader.
    return table


def planted(table, what, outside):
    """One of `PLANTED`: files that would do harm to a reader that trusts them."""
    harm = pickle.dumps(Payload(outside))
    long_ = pa.array(["x" * 2**20])
    metadata = dict(table.schema.metadata or {})

    def all_but(name, column):
        size = len(column)
        repeated = pa.concat_tables([table.slice(0, 1)] * 1).take(pa.array([0] * size, pa.int32()))
        return repeated.set_column(table.column_names.index(name), name, column)

    def told(schema):
        """With a schema of Arrow's own of which Parquet knows nothing."""
        text = base64.b64encode(schema.serialize().to_pybytes())
        return {**metadata, b"ARROW:schema": text}

    extension = pa.schema(
        [
            pa.field(
                name, table.schema.field(name).type,
                metadata={
                    b"ARROW:extension:name": b"arrow.py_extension_type",
                    b"ARROW:extension:metadata": harm,
                },
            )
            for name in table.column_names
        ]
    )  # fmt: skip
    word = pa.DictionaryArray.from_arrays(pa.array([0] * 4000, pa.int32()), long_)

    def deep():
        column = pa.array([1.0])
        for _ in range(60):
            column = pa.ListArray.from_arrays(pa.array([0, 1], pa.int32()), column)
        return pa.table({"a": column})

    def many():
        numbers = pa.array(np.zeros(2**24))
        return pa.table(dict.fromkeys("abcdefg", numbers))

    def lists():
        numbers = pa.array(np.zeros(2**24))
        column = pa.ListArray.from_arrays(pa.array([0, 2**23, 2**24], pa.int32()), numbers)
        return pa.table(dict.fromkeys("abcdefg", column))

    first = table.column_names[0]

    def with_word():
        if table.schema.field(first).type == pa.string():
            return all_but(first, word)
        return pa.table({first: word})

    made = {
        "a pickle": lambda: harm,
        "a pickle for an extension type": lambda: table.replace_schema_metadata(told(extension)),
        "a pickle as metadata": lambda: table.replace_schema_metadata(
            {**metadata, b"pandas": harm, b"PANDAS": harm}
        ),
        "a long word four thousand times": with_word,
        "a hundred million equal numbers": many,
        "long lists": lists,
        "a deep schema": deep,
        "three thousand columns": lambda: pa.table({f"c{i}": [0] for i in range(3000)}),
        "no column": lambda: pa.table({}),
        "no row": lambda: table.slice(0, 0),
        "metadata that is deep": lambda: table.replace_schema_metadata(
            {k: v if b"version" in k else b"[" * 100_000 for k, v in metadata.items()}
        ),
        "nothing": lambda: b"",
        "its ends alone": lambda: b"PAR1\xff\xff\xff\x7fPAR1",
        "encrypted": lambda: b"PARE" + bytes(40) + b"\x08\x00\x00\x00PARE",
    }[what]()
    if isinstance(made, bytes):
        return made
    if not made.schema.metadata:
        made = made.replace_schema_metadata(metadata)
    return written(made, compression="zstd")
