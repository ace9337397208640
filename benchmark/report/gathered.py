"""One Parquet file of many artefacts as one table. Opening a small file costs more than reading it, so a copy is kept.

The copy lies in the store's index: the rows of every artefact that was read, and the hash of the file that they came from. Rows
count while their artefact is whole and its manifest gives that hash. All others are read from the artefacts, which are the truth:
a copy that is lost, damaged or of another version costs time and nothing else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from overpaint.run.store import CHECKING, FEW, WORTH_WRITING, Listing

#: Artefacts that are read, and written into the copy, together.
TOGETHER = 500
#: The column with the key of a row's artefact.
ARTEFACT = "artefact"
#: Key of the copy's metadata with the hash of every artefact's file.
HASHES = b"overpaint.files"

#: A column and its values that are wanted.
Wanted = tuple[str, Collection[str]]


@dataclass(frozen=True)
class Kind:
    """A Parquet file that artefacts of a stage have: its name, its columns, and a function that checks a table of such rows.

    ``check`` returns the table with these columns, or raises a `ValueError`. Files may have further columns if ``check`` keeps
    them.
    """

    file: str
    columns: Sequence[str]
    check: Callable[[pa.Table], pa.Table]
    optional: bool = False  # whether an artefact may lack the file

    def hashes(self, listing: Listing, keys: Collection[str]) -> dict[str, str]:
        """The hash of each artefact's file, as its manifest gives it. An artefact that must have the file and lacks it has ""."""
        files = listing.column("files") if keys else {}
        found = {key: json.loads(files[key]).get(self.file, {}).get("sha256", "") for key in keys}
        return {key: hash_ for key, hash_ in found.items() if hash_ or not self.optional}


def gathered(
    listing: Listing, kind: Kind, keys: Collection[str], columns: Sequence[str] | None, *only: Wanted
) -> pa.Table:
    """These columns of the files of the artefacts ``keys``, and the column `ARTEFACT`; text is dictionary-encoded.

    ``None`` stands for all columns of all files; a file that lacks one of them has nulls there. The rows of an artefact are
    together and in order. ``only`` restricts them to values of a column. Artefacts without the file have no rows.

    Raises:
        CorruptArtefact: if an artefact is damaged.
    """
    hashes, copy = kind.hashes(listing, keys), _Copy(listing, kind)
    known, tables = copy.hashes if len(hashes) >= FEW else {}, []
    wanted = None if columns is None else [*columns, ARTEFACT]
    try:
        held = {key for key, found in hashes.items() if known.get(key) == found}
        tables = list(copy.rows(wanted, (ARTEFACT, held), *only)) if held else []
    except (OSError, ValueError, KeyError):  # there is none, or it is damaged
        known, held = {}, set()
    new = sorted(hashes.keys() - held)
    keep = len(new) >= max(WORTH_WRITING, len(known) // 10)
    fresh = []
    for start in range(0, len(new), TOGETHER):
        table = _read(listing, kind, new[start : start + TOGETHER])
        tables.append(_chosen(table.select(wanted) if wanted else table, *only))
        fresh += [table] if keep else []
    if keep:
        copy.write(fresh, {key: hashes[key] for key in new}, listing.keys - set(new))
    if not tables:
        return pa.table({name: pa.nulls(0) for name in wanted or [ARTEFACT]})
    return pa.concat_tables(tables, promote_options="permissive").unify_dictionaries()


def _read(listing: Listing, kind: Kind, keys: Sequence[str]) -> pa.Table:
    """All columns of the artefacts' files, from the artefacts themselves. Files of one schema are checked together."""

    def read(key: str) -> pa.Table:
        with listing.store.reading(listing.stage, key) as folder:
            return pq.ParquetFile(folder / kind.file).read(use_threads=False).replace_schema_metadata()

    with ThreadPoolExecutor(CHECKING) as threads:
        tables = dict(zip(keys, threads.map(read, keys), strict=True))
    groups: dict[pa.Schema, list[str]] = {}
    for key, table in tables.items():
        groups.setdefault(table.schema, []).append(key)
    found = []
    for group in groups.values():
        try:
            table = kind.check(pa.concat_tables([tables[key] for key in group]).combine_chunks())
        except ValueError:
            for key in group:
                with listing.store.reading(listing.stage, key):
                    kind.check(tables[key])
            raise
        places = np.repeat(np.arange(len(group), dtype=np.int32), [tables[key].num_rows for key in group])
        table = table.append_column(ARTEFACT, pa.DictionaryArray.from_arrays(places, pa.array(group, pa.string())))
        encoded = [
            column.dictionary_encode() if pa.types.is_string(column.type) else column for column in table.columns
        ]
        found.append(pa.table(encoded, names=table.column_names))
    return pa.concat_tables(found, promote_options="permissive").unify_dictionaries()


def _chosen(table: pa.Table, *only: Wanted) -> pa.Table:
    """The rows with wanted values."""
    for name, values in only:
        if name in table.column_names:
            table = table.filter(pc.is_in(table.column(name), pa.array(values, pa.string())))
    return table


def as_frame(table: pa.Table) -> pd.DataFrame:
    """A gathered table with its text as text."""
    columns = [column.cast(pa.string()) if pa.types.is_dictionary(column.type) else column for column in table.columns]
    return pa.table(columns, names=table.column_names).to_pandas()


class _Copy:
    """The copy of one kind of file."""

    def __init__(self, listing: Listing, kind: Kind):
        layout = hashlib.sha256(" ".join([kind.file, *kind.columns]).encode()).hexdigest()[:8]
        self._store, self._path = listing.store, listing.index.file.with_name(f"{listing.stage}.{layout}.parquet")
        self._opened: pq.ParquetFile | None = None

    @property
    def hashes(self) -> dict[str, str]:
        """The hash of every artefact's file; empty if there is no copy that can be read."""
        try:
            self._opened = self._opened or pq.ParquetFile(self._path, page_checksum_verification=True)
            return json.loads(self._opened.schema_arrow.metadata[HASHES])
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def rows(self, columns: Sequence[str] | None, *only: Wanted) -> Iterator[pa.Table]:
        """The rows of the copy with wanted values."""
        if self._opened is not None:
            for group in range(self._opened.num_row_groups):
                yield _chosen(self._opened.read_row_group(group, columns), *only)

    def write(self, new: Sequence[pa.Table], hashes: Mapping[str, str], kept: Collection[str]) -> None:
        """Write the new tables, and the old rows of the kept artefacts. Where nothing can be written the old copy stays."""
        try:
            old = {key: found for key, found in self.hashes.items() if key in kept}
            tables = [*self.rows(None, (ARTEFACT, old)), *new]
        except (OSError, ValueError, KeyError):
            old, tables = {}, list(new)
        schema = pa.unify_schemas([table.schema.remove_metadata() for table in tables], promote_options="permissive")
        schema, buffer = schema.with_metadata({HASHES: json.dumps({**old, **hashes})}), BytesIO()
        with pq.ParquetWriter(buffer, schema, compression="zstd", write_page_checksum=True) as writer:
            for table in tables:
                writer.write_table(table.select(schema.names).cast(schema))
        with suppress(OSError):
            self._path.parent.mkdir(exist_ok=True)
            self._store.write(self._path, buffer.getvalue())
