"""Trackers: where figures go besides the store. A tracker only reads records; it never decides what is computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from overpaint.errors import AssetMissing, unknown
from overpaint.tables import CELL

Tracker = Callable[[pd.DataFrame, str], None]


def tracker(config: Mapping[str, Any]) -> Tracker:
    """The tracker of the ``tracker`` group: takes the records of a finished run and a folder for its own files.

    A library that is missing is told here, before anything runs.
    """
    if config["name"] == "none":
        return lambda records, folder: None
    if config["name"] != "wandb":
        raise unknown("tracker", config["name"], ["none", "wandb"])
    try:
        import wandb
    except ImportError as error:
        raise AssetMissing("tracker=wandb needs the extra: pip install 'overpaint[wandb]'") from error
    return lambda records, folder: _to_wandb(wandb, config, records, folder)


def _to_wandb(wandb, config: Mapping[str, Any], records: pd.DataFrame, folder: str) -> None:
    """One run a cell; a figure's value, interval and n go to its summary."""
    quiet = wandb.Settings(console="off", silent=True, disable_git=True, x_disable_stats=True)
    for values, figures in records.groupby(CELL, sort=False):
        cell = dict(zip(CELL, values))
        name = " / ".join(str(cell[key]) for key in ("model", "concepts", "method", "attack"))
        run = wandb.init(
            project=config["project"],
            mode=config["mode"],
            name=name,
            config=cell,
            dir=folder,
            settings=quiet,
        )
        for _, figure in figures.iterrows():
            if not pd.isna(figure["value"]):
                for part in ("value", "low", "high", "n"):
                    run.summary[f"{figure['facet']}/{figure['metric']}/{part}"] = figure[part]
        run.finish()
