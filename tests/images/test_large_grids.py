"""Grids of many cells: cells stay lines of the plan until their tasks are needed, and all counts are exact."""

import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest

from overpaint.commands.grids import cells_of, compose
from overpaint.grid.cells import cell_from
from overpaint.grid.composition import compose_cells
from overpaint.images.planner import make_plan
from overpaint.run import plan as plans
from overpaint.run import runner
from overpaint.run.executor import Result
from overpaint.run.runner import run_plan
from overpaint.run.store import Store

GRID = [
    "method=none,uce,esd",
    "uce.lamb=0.1,0.2",
    "concepts=church,sketch",
    "attack=none,cce,synonym,uda",
    "uda.iterations=2,3",
    "seed=0,1",
]


#: The other cells compare with the images of the gold reference, whose cells they share tasks with.
GOLD = ["model=testbed_gold", "method=none,gold,uce", "metrics=gold", "concepts=church,quillan", "attack=none,synonym"]


def planned(*overrides):
    return make_plan(cells_of(compose(["budget=smoke", *overrides])))


def stages(plan):
    return Counter(task.stage for task in plan.tasks.values())


@pytest.mark.parametrize("grid", [GRID, GOLD], ids=["many methods", "gold references"])
def test_the_counts_of_lines_are_those_of_their_tasks(grid):
    lines, opened = planned(*grid), planned(*grid).opened()
    assert not lines.tasks and lines.asked == opened.asked
    assert lines.unique() == stages(opened) and lines.notes == opened.notes
    assert [task.key for _, task in lines.cells] == [task.key for _, task in opened.cells]


def test_cells_that_differ_in_their_method_share_an_outline():
    plan = planned("method=uce", "uce.lamb=0.1,0.2,0.3", "attack=none,cce")
    assert len({id(line.outline) for line in plan.lines.values()}) == 2 < len(plan.lines) == 6
    alone = planned("method=uce", "uce.lamb=0.2", "attack=cce")
    assert set(alone.lines) < set(plan.lines)


@pytest.mark.parametrize(
    "change",
    ["uce.lamb=0.7", "cce.steps=7", "budget.target_prompts=3", "protocol.steps=9", "metrics.threshold=0.4", "seed=3"],
)
def test_the_key_of_a_line_changes_with_everything_that_decides_its_records(change):
    grid = ["method=uce", "concepts=church", "attack=cce"]
    assert set(planned(*grid).lines).isdisjoint(planned(*grid, change).lines)


def test_the_key_of_a_line_changes_with_the_version_of_a_component(monkeypatch):
    from overpaint.attacks.controls import RandomPrefix
    from overpaint.methods.uce import UCE

    grid = ["method=uce", "concepts=church", "attack=cce"]
    before = set(planned(*grid).lines)
    for component in (UCE, RandomPrefix):
        with monkeypatch.context() as patched:
            patched.setattr(component, "version", component.version + 1)
            assert before.isdisjoint(planned(*grid).lines)
    assert before == set(planned(*grid).lines)


class Crew:
    """Publishes an empty artefact for every task, after its inputs, and counts."""

    size = living = 1

    def __init__(self, plan, store):
        self.plan, self.store, self.bundles, self.made, self.most = plan, store, [], Counter(), 0

    @property
    def idle(self):
        return [] if self.bundles else ["alone"]

    def give(self, worker, bundle):
        self.bundles.append(bundle)

    def results(self, timeout):
        (bundle,) = self.bundles
        self.bundles, self.most = [], max(self.most, len(self.plan.tasks))
        for task in bundle:
            assert all(self.store.has(task.stages[name], key) for name, key in task.inputs.items())
            with self.store.workspace() as folder:
                self.store.publish(task.stage, task.key, folder, {})
            self.made[task.key] += 1
        return [(bundle, Result("made", tuple(task.key for task in bundle), 0.1))]


class Watcher:
    def __getattr__(self, name):
        return lambda *_: None


def test_a_grid_runs_with_few_tasks_in_memory(monkeypatch, tmp_path):
    """Each task is made once, whatever was forgotten meanwhile; a second run finds nothing to do."""
    for module in (plans, runner):
        monkeypatch.setattr(module, "HORIZON", 60)
    everything = planned(*GRID).opened()
    plan, store = planned(*GRID), Store(tmp_path)
    store.prepare()
    monkeypatch.setattr(plan, "advance", lambda store, most=60: type(plan).advance(plan, store, most))
    crew = Crew(plan, store)
    outcome = run_plan(plan, store, crew, Watcher())
    assert set(crew.made) == set(everything.tasks) and set(crew.made.values()) == {1}
    assert outcome.done == len(everything.tasks) > 4 * crew.most
    again = planned(*GRID)
    assert again.missing(store) == [] and not again.unopened(store) and not again.tasks


def test_a_grid_of_which_only_the_last_tasks_are_missing_is_not_planned_cell_by_cell(monkeypatch, tmp_path):
    for module in (plans, runner):
        monkeypatch.setattr(module, "HORIZON", 100)
    grid = ["method=uce", "uce.lamb=" + ",".join(str(0.1 + n / 1000) for n in range(40)), "protocol.steps=2"]
    plan, store, calls = planned(*grid), Store(tmp_path), []
    store.prepare()
    for task in planned(*grid).opened().tasks.values():
        if task.stage != "measure":
            with store.workspace() as folder:
                store.publish(task.stage, task.key, folder, {"inputs": dict(task.inputs)})

    def advance(store, most=100):
        calls.append(most)
        return type(plan).advance(plan, store, most)

    monkeypatch.setattr(plan, "advance", advance)
    assert run_plan(plan, store, Crew(plan, store), Watcher()).done == 40
    assert len(calls) < 20


def test_what_a_store_holds_of_unopened_cells_is_said_to_be_unknown(monkeypatch, tmp_path):
    from overpaint.commands.plan import summary
    from overpaint.run.estimates import Estimates

    monkeypatch.setattr(plans.Plan, "advance", lambda self, store, most=40: ADVANCE(self, store, 40))
    plan, store = planned(*GRID), Store(tmp_path)
    todo, more = plan.missing(store), plan.unopened(store)
    said = summary(plan, todo, more, Estimates(store))
    assert f"{sum(plan.unique().values())} tasks" in said and "up to" in said
    assert plans.by_stage(todo, more) == plan.unique() and 0 < len(todo) < plan.unique().total()


def test_what_unopened_cells_share_with_opened_ones_counts_once(monkeypatch, tmp_path):
    """Of the opened cells it is known what is stored."""
    monkeypatch.setattr(plans.Plan, "advance", lambda self, store, most=40: ADVANCE(self, store, 40))
    plan, store = planned(*GRID), Store(tmp_path)
    store.prepare()
    made = [task for task in plan.missing(store) if task.stage != "measure"][:20]
    for task in made:
        with store.workspace() as folder:
            store.publish(task.stage, task.key, folder, {})
    assert len(plan.missing(store)) + plan.unopened(store).total() == plan.unique().total() - len(made)


ADVANCE = plans.Plan.advance

LARGE = """
import resource, time
start = time.process_time()
from overpaint.commands.grids import planned
from overpaint.grid.concepts import load_catalogue

names = [name for name, concept in load_catalogue("testbed").concepts.items() if concept.label][:25]
grid = planned([
    "concepts=inline", f"concepts.erase={','.join(names)}", "concepts.anchor=null,picture",
    "method=uce", "uce.lamb=" + ",".join(f"{n / 10}" for n in range(1, 101)),
    "attack=none,uda,p4d_n,p4d_k,rab,cce,pez,mma,soft_prefix,synonym,paraphrase,multilingual,inversion,relearn,seed_search,"
    "rece_embedding,rab_embedding,p4d_uda,random_prefix,concept_arithmetic", "store=STORE",
])
unique = grid.plan.unique()
print(len(grid.plan.cells), unique["measure"], unique["erase"], unique["latency"], unique["compare"])
print(time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


@pytest.mark.slow
def test_a_hundred_thousand_cells_are_planned_in_seconds(tmp_path):
    """100 settings of a method, 50 concept sets, 20 attacks. Importing the libraries is included."""
    program = LARGE.replace("STORE", str(tmp_path))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    counts, cost = done.stdout.splitlines()
    cells, measures, erasures, latencies, comparisons = map(int, counts.split())
    assert cells == measures == 100 * 50 * 20 and erasures == latencies == 100 * 50
    assert comparisons % erasures == 0
    seconds, gibibytes = map(float, cost.split())
    assert seconds < 40 and gibibytes < 1.5  # 24 CPU seconds on a quiet machine, 4 of them imports


def test_cells_share_their_parts():
    first, second = (cell_from(c.config, c.explicit) for c in compose_cells(["method=uce,esd", "budget=smoke"]))
    assert first.budget == second.budget and replace(first, method=second.method) == second
    first, second = cells_of(compose(["method=uce,esd", "budget=smoke"]))
    assert first.budget is second.budget and first.concepts is second.concepts
