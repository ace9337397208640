"""The index of a stage: one Parquet file with the contents of the manifests of its complete artefacts, so that they stay closed.

The index is a copy, never the truth. `overpaint.run.store.Store.listed` compares it with the folders that are there: a row counts
while its folder has the time of change that it had when all its files were checked. Every other folder is checked again, and a
lost, damaged or older index costs time and nothing else. Two processes that write it replace each other's file whole.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

#: Number of this layout, in the name of the file: other versions of this package keep an index of their own beside it.
LAYOUT = 1


class Entry(NamedTuple):
    """A whole artefact.

    ``changed`` is the time of change (``st_ctime_ns``) of its folder, taken before its files were checked. ``inputs`` (keys),
    ``sources`` (component → source) and ``files`` (name → size and hash) are JSON, as in the manifest.
    """

    key: str
    changed: int
    bytes: int
    seconds: float
    label: str
    inputs: str
    sources: str
    files: str

    @classmethod
    def of(cls, key: str, changed: int, manifest: Mapping[str, Any]) -> Entry:
        """The entry of an artefact with this manifest. Values of another type than this package writes are left out."""
        files, inputs, sources = (_mapping(manifest.get(name)) for name in ("files", "inputs", "sources"))
        seconds = manifest.get("seconds")
        return cls(
            key,
            changed,
            int(sum(entry["bytes"] for entry in files.values())),
            float(seconds) if isinstance(seconds, int | float) else 0.0,
            str(manifest.get("label", "")).encode(errors="replace").decode(),
            json.dumps([name for name in inputs.values() if isinstance(name, str)]),
            json.dumps(sources, sort_keys=True),
            json.dumps(files, sort_keys=True),
        )


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


class Index:
    """The index of one stage: a file, whose columns are read when they are asked for, and entries that it lacks."""

    def __init__(self, file: Path):
        self.file = file
        self.added: dict[str, Entry] = {}
        self._opened: Any = None
        self._keys: list[str] | None = None  # of the open file
        self._columns: dict[str, dict[str, Any]] = {}

    def column(self, name: str) -> dict[str, Any]:
        """Values of one of the fields of `Entry` by key. A file that is missing or damaged holds none."""
        if name not in self._columns:
            try:
                if self._keys is None:
                    self._keys = self._read(["key"]).column("key").to_pylist()
                keys, values = self._keys, self._read([name]).column(name).to_pylist()
            except (OSError, ValueError, KeyError):
                keys, values = [], []
            added = {key: getattr(entry, name) for key, entry in self.added.items()}
            self._columns[name] = dict(zip(keys, values, strict=True)) | added
        return self._columns[name]

    def add(self, entries: Iterable[Entry]) -> None:
        """Add entries in memory, or replace those of the same keys."""
        for entry in entries:
            self.added[entry.key] = entry
            for name, values in self._columns.items():
                values[entry.key] = getattr(entry, name)

    def content(self, kept: Callable[[str], bool]) -> bytes:
        """The content of a file that holds the entries of the kept keys."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = self._read(list(Entry._fields))
            old = [kept(key) and key not in self.added for key in table.column("key").to_pylist()]
            table = table.filter(pa.array(old, pa.bool_()))
        except (OSError, ValueError, KeyError):
            table = _schema().empty_table()
        rows = [entry._asdict() for entry in self.added.values() if kept(entry.key)]
        table, buffer = pa.concat_tables([table, pa.Table.from_pylist(rows, _schema())]), BytesIO()
        pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
        return buffer.getvalue()

    def written(self) -> None:
        """The file holds everything now."""
        self.added, self._opened, self._keys = {}, None, None

    def _read(self, columns: list[str]) -> Any:
        """Columns of the file, which stays open: another process may put a new one in its place."""
        import pyarrow.parquet as pq

        if self._opened is None:
            self._opened = pq.ParquetFile(self.file, page_checksum_verification=True)
        table, schema = self._opened.read(columns).select(columns), _schema(columns)
        return table if table.schema.equals(schema) else table.cast(schema)  # which would import pyarrow.compute


def _schema(columns: Iterable[str] = Entry._fields) -> Any:
    import pyarrow as pa

    kinds = {"changed": pa.int64(), "bytes": pa.int64(), "seconds": pa.float64()}
    return pa.schema([(name, kinds.get(name, pa.string())) for name in columns])
