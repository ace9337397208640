"""Rows of many artefacts at once: the copy in the index gives what the artefacts give, or is not used."""

import shutil

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from overpaint.report import gathered as reading
from overpaint.report.records import NUMBERS, OUTCOME_COLUMNS, RECORD_COLUMNS, stored_outcomes, stored_records
from overpaint.run.store import CorruptArtefact, Store


@pytest.fixture(autouse=True)
def _eager(monkeypatch):
    """Write a copy after the first artefact, in several parts."""
    monkeypatch.setattr("overpaint.run.store.WORTH_WRITING", 1)
    monkeypatch.setattr(reading, "WORTH_WRITING", 1)
    monkeypatch.setattr(reading, "TOGETHER", 2)
    monkeypatch.setattr(reading, "FEW", 0)


@pytest.fixture
def store(tmp_path):
    found = Store(tmp_path / "store")
    found.prepare()
    return found


def record(key, value, **columns):
    said = dict.fromkeys(RECORD_COLUMNS, "x") | dict.fromkeys(NUMBERS, 0.5)
    said |= {"value": value, "n": 10, "seed": 0, "version": 1, "direction": "down", "settings": key, "given": "{}"}
    return {name: (said | {"versions": "{}"} | columns)[name] for name in RECORD_COLUMNS}


def measure(store, key, *rows, outcomes=0):
    """Publish a measurement with records, and with as many outcomes of each metric."""
    with store.workspace() as folder:
        pd.DataFrame(rows).to_parquet(folder / "records.parquet")
        if outcomes:
            table = pd.DataFrame({"metric": ["a", "b"] * outcomes, "value": range(2 * outcomes)})
            table = table.assign(prompt_id=key, seed=0, label="", cluster=key, stratum="", other=None)
            table.reindex(columns=OUTCOME_COLUMNS).to_parquet(folder / "outcomes.parquet")
        store.publish("measure", key, folder, {})


def values(store):
    return dict(stored_records(store)[["artefact", "value"]].itertuples(index=False))


def opened(monkeypatch):
    """The artefacts that are read from now on."""
    found, read = [], Store.reading
    monkeypatch.setattr(Store, "reading", lambda self, stage, key: found.append(key) or read(self, stage, key))
    return found


def copies(store):
    """The files of the index that hold rows."""
    return [file for file in (store.root / "index").iterdir() if ".1." not in file.name]


def test_what_was_read_once_is_not_opened_again(store, monkeypatch):
    for number, key in enumerate("abcde"):
        measure(store, key, record(key, number), outcomes=3)
    wanted = {key: float(number) for number, key in enumerate("abcde")}
    first = stored_records(store)
    assert values(store) == wanted
    found = opened(monkeypatch)
    other = Store(store.root)
    pd.testing.assert_frame_equal(stored_records(other), first)
    assert found == []
    measure(store, "f", record("f", 9.0))
    assert values(other) == wanted | {"f": 9.0} and found == ["f"]


def test_records_come_in_the_order_of_their_artefacts_whenever_they_were_read(store):
    for key in "ca":
        measure(store, key, record(f"{key}1", 1), record(f"{key}2", 2))
    stored_records(store)
    measure(store, "b", record("b1", 1), record("b2", 2))
    for place in (store, Store(store.root)):
        assert stored_records(place)["settings"].tolist() == ["a1", "a2", "b1", "b2", "c1", "c2"]


def test_a_copy_of_a_result_that_was_made_again_is_not_used(store):
    measure(store, "a", record("a", 1.0)), measure(store, "b", record("b", 2.0))
    assert values(store) == {"a": 1.0, "b": 2.0}
    store.remove("measure", "a")
    assert values(store) == {"b": 2.0}
    measure(store, "a", record("a", 3.0))
    assert values(store) == values(Store(store.root)) == {"a": 3.0, "b": 2.0}


@pytest.mark.parametrize("spoil", [b"", b"hello", None])
def test_a_damaged_copy_is_made_again(store, spoil):
    for key in "abc":
        measure(store, key, record(key, 1.0, metric="a"), outcomes=2)
    records = stored_records(store)
    stored_outcomes(store, records)
    assert len(copies(store)) == 2
    for file in copies(store):
        content = file.read_bytes()
        file.write_bytes(bytes(b ^ 1 if 4 < i < 200 else b for i, b in enumerate(content)) if spoil is None else spoil)
    other = Store(store.root)
    pd.testing.assert_frame_equal(stored_records(other), records)
    assert stored_outcomes(other, records).num_rows == 6
    assert all(pq.read_table(file).num_rows for file in copies(store))


def test_damage_is_named_with_its_artefact_among_many(store):
    for key in "abcd":
        measure(store, key, record(key, 1.0, direction="sideways" if key == "c" else "up"))
    with pytest.raises(CorruptArtefact, match=r"measure/c is damaged .*a direction other than up, down, zero"):
        stored_records(store)
    store.remove("measure", "c")
    assert values(store).keys() == {"a", "b", "d"}


def test_files_of_different_versions_are_put_together(store):
    measure(store, "a", record("a", 1.0))
    measure(store, "b", {k: v for k, v in record("b", 2).items() if k not in ("aggregation", "p_equivalence")})
    measure(store, "c", record("c", 3, detector=None, low=None, failed=0))
    for place in (store, Store(store.root)):
        found = stored_records(place, older=True).set_index("artefact")
        assert found["value"].tolist() == [1.0, 2.0, 3.0]
        assert found["low"].isna().tolist() == [False, False, True]
        assert found["detector"].isna().tolist() == [False, False, True]
        assert found["p_equivalence"].isna().tolist() == [False, True, False]


def test_outcomes_are_read_by_metric_and_artefact(store):
    for key in "abc":
        measure(store, key, record(key, 1.0, metric="a"), outcomes=0 if key == "c" else 2)
    records = stored_records(store)
    for _ in range(2):
        some = stored_outcomes(store, records[records["artefact"] != "b"]).to_pydict()
        assert some["artefact"] == ["a", "a"] and some["metric"] == ["a", "a"] and some["value"] == [0, 2]
        assert stored_outcomes(store, records).num_rows == 4
        assert stored_outcomes(store, records[:0]).num_rows == 0
        assert stored_outcomes(store, records.assign(metric="c")).num_rows == 0


def test_text_of_outcomes_takes_a_few_bytes_a_row(store):
    measure(store, "a", record("a", 1.0, metric="a"), outcomes=5000)
    for _ in range(2):
        table = stored_outcomes(store, stored_records(store))
        assert table.num_rows == 5000 and table.nbytes < 60 * table.num_rows
        assert all(
            pa.types.is_dictionary(table.schema.field(name).type) for name in ("prompt_id", "cluster", "artefact")
        )


def test_a_store_without_index_folder_that_cannot_be_written_to_is_read(store, monkeypatch):
    measure(store, "a", record("a", 1.0))
    shutil.rmtree(store.root / "index")

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Store, "write", refuse)
    assert values(store) == {"a": 1.0} and copies(store) == []
