"""JSON that a stranger nested: refused where it is read, not where somebody copies it."""

import copy
import dataclasses
import json

import pytest

from pipeline import plain_file, records
from pipeline.plain_file import MOST_LEVELS
from pipeline.records import RecordError
from tests.pipeline.stored import ROWS, spool


def nested(levels, kind):
    tree = 1
    for _ in range(levels):
        tree = [tree, "x"] if kind == "lists" else {"a": tree}
    return tree


@pytest.mark.parametrize("kind", ["lists", "mappings"])
def test_the_last_level_is_read_and_the_next_is_not(tmp_path, kind):
    path = tmp_path / "a.json"
    for levels in (MOST_LEVELS, MOST_LEVELS + 1, 900):
        path.write_text(json.dumps(nested(levels, kind)))
        for read in (
            lambda: plain_file.json_of(path),
            lambda: plain_file.tree_of(path.read_text()),
            lambda: plain_file.tree_of(path.read_text().encode("utf-16")),
        ):
            if levels <= MOST_LEVELS:
                assert read() == nested(levels, kind)
                continue
            with pytest.raises(ValueError, match=r"nested (too deep|deeper than 100 levels)"):
                read()


def test_many_brackets_side_by_side_are_not_deep():
    tree = [[{"a": []}] for _ in range(1000)]
    assert plain_file.tree_of(json.dumps(tree)) == tree


def test_brackets_beyond_pythons_stack_are_no_json():
    with pytest.raises(ValueError, match="nested too deep"):
        plain_file.tree_of("[" * 100_000)


@pytest.mark.parametrize("where", ["params", "provenance", "details"])
def test_a_deep_record_is_refused_and_one_that_is_read_can_be_copied(tmp_path, where):
    record = records.read(spool(tmp_path, rows=ROWS))
    for levels in (90, 200):
        deep, made = nested(levels, "mappings"), tmp_path / f"{levels}.parquet"
        if where == "details":
            at = records.SCHEMA.get_field_index("details")
            texts = [json.dumps(deep)] * record.table.num_rows
            table = record.table.set_column(at, records.SCHEMA.field(at), [texts])
            changed = dataclasses.replace(record, table=table)
        else:
            header = dataclasses.replace(record.header, **{where: {"a": deep}}, sampled=())
            changed = dataclasses.replace(record, header=header)
        records.write(changed, made)
        if levels < MOST_LEVELS:
            found = records.read(made)
            assert copy.deepcopy(dataclasses.asdict(found.header))
            continue
        with pytest.raises(RecordError, match="nested deeper than 100 levels"):
            records.read(made)
