"""The scheduler without store, clock or processes: the order of tasks, and tasks blocked by failures."""

import random

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
        assert stored == set(plan.tasks) and found.elsewhere >= 0


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
