"""The scheduler without store, clock or processes: the order of tasks, and tasks blocked by failures."""

import heapq
import itertools
import random
import time

import pytest
from counting_track import grid

from overpaint.run.plan import Plan
from overpaint.run.scheduler import TRIES, Scheduler
from overpaint.run.tasks import Task

pytestmark = pytest.mark.usefixtures("counting")


def diamonds(count):
    """``count`` diamonds (a top task, two middle tasks and a bottom task), and a final task that needs all bottoms."""
    plan, bottoms = Plan("counting"), {}
    for n in range(count):
        top = plan.add(Task("top", {"n": n}, label=f"top {n}"))
        middles = {
            side: plan.add(Task(side, {}, {"in": top.key}, label=f"{side} {n}")).key for side in ("left", "right")
        }
        bottoms[str(n)] = plan.add(Task("bottom", {}, middles, label=f"bottom {n}")).key
    plan.cells.append((None, plan.add(Task("all", {}, bottoms, label="all"))))
    return plan


def scheduler(plan):
    return Scheduler(plan, plan.tasks.values())


def label(bundle):
    return bundle and bundle[0].label


def test_tasks_come_after_their_inputs_in_the_order_of_the_plan():
    plan = diamonds(2)
    found, order = scheduler(plan), []
    while bundle := found.next():
        order.append(bundle[0].label)
        found.made(bundle)
    assert order == [t.label for t in plan.tasks.values()] and found.left == 0


def test_what_is_in_hand_is_not_handed_out_again():
    found = scheduler(diamonds(1))
    top = found.next()
    assert found.next() is None
    found.made(top)
    assert [label(found.next()), label(found.next()), found.next()] == ["left 0", "right 0", None]


def test_a_plan_narrows_if_no_more_bundles_follow_than_are_being_made():
    plan = diamonds(1)
    found = scheduler(plan)
    found.wait_for(found.next())
    assert not found.narrows, "two middle tasks follow one top task"
    found.look_again()
    found.made(found.next())
    for _ in range(2):
        found.wait_for(found.next())
    assert found.narrows
    bundled = diamonds(1)
    bundled.bundle([task for task in bundled.tasks.values() if task.stage in ("left", "right")], 2)
    found = scheduler(bundled)
    found.wait_for(found.next())
    assert found.narrows


def test_any_order_of_answers_makes_every_task_once():
    """Random results with several bundles in progress: made, lost, made elsewhere, and damage (a new list of missing tasks)."""
    plan, chance = diamonds(6), random.Random(0)
    for _ in range(30):
        found, stored, hands = scheduler(plan), set(), []
        while found.left:
            if bundle := found.next():
                assert all(set(task.inputs.values()) <= stored for task in bundle)
                hands.append(bundle)
                continue
            if not hands:
                found.look_again()
                continue
            bundle = hands.pop(chance.randrange(len(hands)))
            answer = chance.random()
            if answer < 0.6:
                assert bundle[0].key not in stored
                stored.add(bundle[0].key)
                found.made(bundle)
            elif answer < 0.8:
                found.wait_for(bundle)
            elif not found.put_back(bundle):
                stored.add(bundle[0].key)
                found.made(bundle)
            if chance.random() < 0.1:
                found.update(task for key, task in plan.tasks.items() if key not in stored)
        assert stored == set(plan.tasks)


def test_a_failure_blocks_what_needs_it_and_nothing_else():
    plan = diamonds(2)
    found = scheduler(plan)
    found.fail(found.next(), "no")
    rest = []
    while bundle := found.next():
        rest.append(bundle[0].label)
        found.made(bundle)
    assert rest == ["top 1", "left 1", "right 1", "bottom 1"] and found.left == 0
    named = {plan.tasks[key].label for key in found.blocked}
    assert named == {"left 0", "right 0", "bottom 0", "all"} and list(found.failed.values()) == ["no"]
    found.update(plan.tasks.values())
    assert {plan.tasks[key].label for key in found.blocked} == named and label(found.next()) == "top 1"


def test_only_missing_tasks_are_waited_for():
    plan = diamonds(1)
    found = Scheduler(plan, [t for t in plan.tasks.values() if t.label in ("right 0", "bottom 0")])
    right = found.next()
    assert label(right) == "right 0" and found.next() is None
    found.made(right)
    assert label(found.next()) == "bottom 0"


def test_a_bundle_is_handed_out_once_and_whole_and_one_by_one_after_a_failure():
    plan = grid([1, 2, 3])
    counts = [t for t in plan.tasks.values() if t.stage == "count"]
    plan.bundle(counts, 3)
    found = Scheduler(plan, [t for t in plan.tasks.values() if t != counts[0]])
    assert label(found.next()) == "measure 1" and found.next() == counts and found.next() is None
    found.fail(counts, "no")
    assert found.failed == {} and [found.next(), found.next(), found.next()] == [[counts[1]], [counts[2]], None]


def test_a_task_that_is_never_made_is_given_up():
    found = scheduler(grid([1]))
    returned = 0
    while found.put_back(found.next()):
        returned += 1
    assert returned == TRIES - 1


def test_damage_brings_an_input_back():
    plan = diamonds(1)
    found = Scheduler(plan, [t for t in plan.tasks.values() if t.label in ("bottom 0", "all")])
    bottom = found.next()
    found.put_back(bottom)
    found.update(t for t in plan.tasks.values() if t.label in ("left 0", "bottom 0", "all"))
    left = found.next()
    assert label(left) == "left 0" and found.next() is None
    found.made(left)
    assert found.next() == bottom


def cluster_grid(methods, concepts, attacks, prompts, chance):
    """A grid with the demo's shape, and the seconds of every task: erasures, attacks prompt by prompt, generation, scores."""
    plan, seconds = Plan("counting"), {}

    def add(stage, what, inputs, cost, loads=""):
        task = plan.add(Task(stage, {"what": what}, inputs, loads=loads))
        seconds[task.key] = cost
        return task.key

    for concept, method in itertools.product(range(concepts), range(methods)):
        here = f"{concept}.{method}"
        erasure = add("top", here, {}, chance.choice([1, 2, 20, 60]), "model/")
        for attack in range(attacks):
            found = {
                str(n): add("left", f"{here}.{attack}.{n}", {"e": erasure}, chance.uniform(1, 6), f"model/{here}")
                for n in range(prompts)
            }
            made = add("right", f"{here}.{attack}", {**found, "e": erasure}, 3, f"model/{here}")
            scored = add("bottom", f"{here}.{attack}", {"images": made}, 0.5)
            add("all", f"{here}.{attack}", {"scores": scored}, 0.2)
    return plan, seconds


def simulated(plan, seconds, workers):
    """Makespan with these workers, its lower bound, and how often a worker had to load something else."""
    found = Scheduler(plan, plan.tasks.values(), lambda task: seconds[task.key], workers)
    now, busy, idle, loaded, loads = 0.0, [], [f"worker {n}" for n in range(workers)], {}, 0
    while found.left:
        for worker in idle[:]:
            if bundle := found.next(worker):
                idle.remove(worker)
                if bundle[0].loads and loaded.get(worker) != bundle[0].loads:
                    loaded[worker], loads = bundle[0].loads, loads + 1
                heapq.heappush(busy, (now + seconds[bundle[0].key], worker, bundle))
        now, worker, bundle = heapq.heappop(busy)
        found.made(bundle)
        idle.append(worker)
    ends = {}
    for task in plan.tasks.values():
        ends[task.key] = seconds[task.key] + max((ends[key] for key in task.inputs.values()), default=0)
    return now, max(sum(seconds.values()) / workers, *ends.values()), loads


@pytest.mark.parametrize("workers", [1, 2, 4, 8])
def test_the_makespan_is_near_its_lower_bound(workers):
    plan, seconds = cluster_grid(4, 3, 6, 8, random.Random(0))
    makespan, bound, loads = simulated(plan, seconds, workers)
    assert bound <= makespan <= 1.05 * bound
    assert loads <= 13 + 6 * workers  # 12 erasures and the unedited model


def test_the_longest_path_comes_first_when_it_is_urgent():
    """A chain of 10 steps among 30 short tasks: a worker begins with the chain, although it is last in the plan."""
    plan = Plan("counting")
    for n in range(30):
        plan.add(Task("top", {"n": n}))
    last = {}
    for n in range(10):
        last = {"in": plan.add(Task("left", {"n": n}, last)).key}
    makespan, bound, _ = simulated(plan, dict.fromkeys(plan.tasks, 1.0), 4)
    assert makespan == bound == 10


def test_a_worker_keeps_what_it_has_loaded():
    plan = Plan("counting")
    for n in range(6):
        plan.add(Task("top", {"n": n}, loads="even" if n % 2 == 0 else "odd"))
    found = Scheduler(plan, plan.tasks.values(), workers=2)
    given = {"a": [], "b": []}
    for worker in "ababab":
        (task,) = found.next(worker)
        given[worker].append(task.loads)
        found.made([task])
    assert given == {"a": ["even"] * 3, "b": ["odd"] * 3}


def test_processes_that_schedule_for_themselves_begin_at_different_places():
    plan, firsts = diamonds(4), []
    for number in range(4):
        found = Scheduler(plan, plan.tasks.values(), start=number / 4)
        order = []
        while bundle := found.next():
            order.append(bundle[0].label)
            found.made(bundle)
        assert sorted(order) == sorted(task.label for task in plan.tasks.values())
        firsts.append(order[0])
    assert firsts == ["top 0", "top 1", "top 2", "top 3"]


@pytest.mark.slow
def test_hundreds_of_thousands_of_tasks_are_scheduled_in_seconds():
    plan, seconds = cluster_grid(100, 10, 20, 17, random.Random(0))
    assert len(plan.tasks) == 401_000
    start = time.process_time()
    makespan, bound, _ = simulated(plan, seconds, 8)
    assert makespan <= 1.001 * bound and time.process_time() - start < 20  # 10 on a quiet machine
