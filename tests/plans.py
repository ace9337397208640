"""Plans for tests of what is planned."""

from overpaint.grid.cells import cell_from
from overpaint.grid.composition import compose_cells
from overpaint.images.planner import make_plan


def plan(*overrides):
    return make_plan([cell_from(c.config, c.explicit) for c in compose_cells(list(overrides))]).opened()


def stages(made, name):
    return [t for t in made.tasks.values() if t.stage == name]
