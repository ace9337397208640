"""Components whose source has changed: what is made again, what is kept, and what is said."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier

import counting_track
import pandas as pd
import pytest
from counting_track import Told

from overpaint.errors import UserError
from overpaint.grid.source_code import source_now
from overpaint.report.records import RECORD_COLUMNS, stored_records
from overpaint.run.history import History, changes
from overpaint.run.plan import Plan
from overpaint.run.runner import run_here
from overpaint.run.store import Store
from overpaint.run.tasks import Task

pytestmark = pytest.mark.usefixtures("counting")


@pytest.fixture(autouse=True)
def planned_sources(monkeypatch):
    """The sources of these tests are made up: they count as those of the modules, and the track's own is left out."""
    monkeypatch.setattr("overpaint.run.executor.source_now", lambda source: source)
    monkeypatch.setattr(Plan, "_track_source", {})


def plan(numbers=(1,), **sources):
    """``count`` tasks that depend on the components in ``sources`` (``mine="a"``), and their ``measure`` tasks."""
    made = Plan("counting")
    sources = {f"method={name}": source for name, source in sources.items()}
    for n in numbers:
        first = made.add(Task("count", {"n": n}, label=f"count {n}", sources=sources))
        made.cells.append((n, made.add(Task("measure", {"n": 100}, {"in": first.key}, label=f"measure {n}"))))
    return made


def run(made, store):
    """Run a plan like `overpaint run`; returns what it says about changes, and the number of tasks that it made."""
    said = changes(made, store, made.missing(store))
    return said, run_here(made, store, "cpu", Told()).done


def test_sources_pass_from_inputs_to_results_and_into_their_keys():
    plain, mine, other = plan(), plan(mine="pack@1"), plan(mine="pack@2")
    for made, sources in ((plain, {}), (mine, {"method=mine": "pack@1"})):
        assert all(task.sources == sources for task in made.tasks.values()) and made.sources == sources
    assert len({*plain.tasks, *mine.tasks, *other.tasks}) == 6


def test_our_own_sources_are_in_the_manifest_and_not_in_the_key(store):
    ours = plan(uce="overpaint.methods.uce@1")
    assert ours.tasks.keys() == plan().tasks.keys()
    run(ours, store)
    for task in ours.tasks.values():
        assert store.manifest(task.stage, task.key)["sources"] == {"method=uce": "overpaint.methods.uce@1"}


def test_a_changed_component_makes_its_results_again_and_says_so(store):
    assert run(plan((1, 2), mine="pack@1"), store) == ([], 4)
    assert run(plan((1, 2), mine="pack@1"), store) == ([], 0)
    said = ["method=mine has changed since its results were made: 4 tasks to make again"]
    assert run(plan((1, 2), mine="pack@2"), store) == (said, 4)
    assert run(plan((1, 2, 3), mine="pack@2"), store) == ([], 2), "the third number is new, and nothing has changed"
    assert run(plan((1,), mine="pack@1"), store) == ([], 0), "the first source's results are used again"
    assert run(plan((1, 2), mine="pack@2"), store) == ([], 0)


def test_only_what_depends_on_a_component_is_made_again(store):
    def both(version):
        made = plan((1,), mine=version)
        made.cells += plan((2,)).cells
        made.tasks |= plan((2,)).tasks
        return made

    run(both("pack@1"), store)
    said, done = run(both("pack@2"), store)
    assert said == ["method=mine has changed since its results were made: 2 tasks to make again"] and done == 2


def test_each_changed_component_is_named(store):
    run(plan(mine="pack@1", theirs="other@1"), store)
    said, _ = run(plan(mine="pack@2", theirs="other@2"), store)
    assert [line.split()[0] for line in said] == ["method=mine", "method=theirs"]


def test_a_run_that_made_nothing_leaves_no_history(store, tmp_path):
    broken = plan(mine="pack@1")
    (tmp_path / "broken").touch()
    runtime = {"broken": str(tmp_path / "broken")}
    broken.tasks = {key: replace(task, runtime=runtime) for key, task in broken.tasks.items()}
    assert run(broken, store) == ([], 0) and History(store).of("method=mine") == []
    assert run(plan(mine="pack@2"), store) == ([], 2)


def test_a_source_that_the_history_lost_is_noted_by_the_next_run(store):
    run(plan(mine="pack@1"), store)
    run(plan(mine="pack@2"), store)
    (store.root / "sources.json").write_text('{"method=mine": ["pack@1"]}')
    assert run(plan(mine="pack@2"), store) == ([], 0)
    assert History(store).of("method=mine") == ["pack@1", "pack@2"]


def test_runs_that_write_at_once_lose_nothing(store):
    names = [f"method=m{n}" for n in range(8)]
    histories, together = [History(Store(store.root)) for _ in names], Barrier(len(names))

    def add(history, name):
        together.wait()
        history.add({name: "pack@1"})

    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(add, histories, names))
    assert sorted(History(store).all) == names


def test_a_history_that_cannot_be_read_is_not_written_again(store, monkeypatch):
    history = History(store)
    history.add({"method=mine": "pack@1"})

    def stale(path):
        raise OSError(116, "Stale file handle")

    with monkeypatch.context() as broken:
        broken.setattr(Path, "read_bytes", stale)
        history.add({"method=other": "pack@1"})
        with pytest.raises(UserError, match=r"sources.json cannot be read: Stale file handle"):
            History(store)
    assert History(store).all == {"method=mine": ["pack@1"]}


OURS = "overpaint.methods.uce@"


@pytest.mark.parametrize(
    ("made_with", "now", "told"),
    [
        ("1", "2-dirty", True),  # edited since
        ("1-dirty", "2-dirty", True),  # edited again
        ("1-dirty", "2", True),  # results of an edit that was taken back
        ("1", "2", False),  # an update whose versions are right
        ("1", "1-dirty", False),  # a comment
        ("1-dirty", "1", False),  # committed
    ],
)
def test_an_edited_component_of_this_package_is_told_of_and_its_results_are_kept(made_with, now, told, store):
    run(plan((1, 2), uce=OURS + made_with), store)
    said = [
        "method=uce: its source changed since its results were made, and its version did not: 2 tasks kept; raise version "
        "if results can change"
    ]
    assert run(plan((1, 2), uce=OURS + now), store) == (said if told else [], 0)


def test_sources_are_compared_without_opening_manifests(store, monkeypatch):
    run(plan((1, 2), uce=OURS + "1"), store)
    monkeypatch.setattr(Store, "manifest", lambda *_: pytest.fail("a manifest was opened"))
    assert "2 tasks kept" in changes(plan((1, 2), uce=OURS + "2-dirty"), store, [])[0]


def test_results_that_the_present_source_made_are_not_told_of(store):
    run(plan((1,), uce=OURS + "1-dirty"), store)
    run(plan((2, 3), uce=OURS + "2"), store)
    assert changes(plan((2, 3), uce=OURS + "2"), store, []) == []
    assert "1 task kept" in changes(plan((1, 2, 3), uce=OURS + "2"), store, [])[0]


def test_code_that_changes_while_a_run_goes_on_is_not_run_under_the_planned_key(store, monkeypatch, tmp_path):
    monkeypatch.setattr("overpaint.run.executor.source_now", source_now)
    told = Told()
    outcome = run_here(plan(mine="no_such_module@1"), store, "cpu", told)
    assert told.reasons == ["method=mine has changed since this run was planned; run the same command again"]
    assert outcome.done == 0 and len(outcome.blocked) == 1


def test_the_track_of_another_package_counts(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr("overpaint.grid.registry._asked", [])
    counting_track.look_in(counting_track.CONF)
    (source,) = {task.sources["track=counting"] for task in counting_track.grid([1, 2]).tasks.values()}
    assert source.startswith("counting_track@")


@pytest.mark.parametrize("content", ["", "{", "[]", "5", "[" * 10**5, '{"method=mine": 1}', '{"method=mine": [1, {}]}'])
def test_a_damaged_history_is_written_anew(store, content):
    (store.root / "sources.json").write_text(content)
    assert run(plan(mine="pack@1"), store) == ([], 2)
    assert json.loads((store.root / "sources.json").read_text())["method=mine"] == ["pack@1"]


def test_the_sources_used_last_decide_which_record_is_current(store):
    """One cell measured with two sources; the keys of the artefacts say nothing about their order."""
    row = dict.fromkeys(RECORD_COLUMNS) | {"settings": "a" * 12, "metric": "m", "versions": "{}", "version": 1}
    row |= {"detector": "d", "threshold": 0.5, "aggregation": "x", "direction": "up", "n": 1, "seed": 0}
    row |= dict.fromkeys(("model", "concepts", "kind", "method", "attack", "budget", "facet", "unit"), "x")
    for key, source, value in (("b", "pack@1", 0.1), ("c", "pack@2", 0.2), ("a", "pack@3", 0.3)):
        with store.workspace() as folder:
            pd.DataFrame([row | {"value": value}]).to_parquet(folder / "records.parquet")
            store.publish("measure", key, folder, {"sources": {"method=mine": source, "method=uce": f"{OURS}{key}"}})
        History(store).add({"method=mine": source})
        assert stored_records(store)["value"].tolist() == [value]
    History(store).add({"method=mine": "pack@1"})
    assert stored_records(Store(store.root))["value"].tolist() == [0.1]
    assert stored_records(store, older=True)["current"].tolist() == [False, True, False]
