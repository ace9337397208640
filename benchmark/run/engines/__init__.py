"""Engines run a plan on a store: each is a crew for the loop of `overpaint.run.runner`. ``inline`` is the default."""
