"""Trackers send figures to other services. A tracker only reads records; it does not affect what is computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from overpaint.errors import AssetMissing
from overpaint.report.records import CELL


@dataclass(kw_only=True)
class StoreOnly:
    """Figures stay in the store."""

    def send(self, records: pd.DataFrame, folder: str) -> None:
        """Do nothing."""


@dataclass(kw_only=True)
class WandB:
    """Weights & Biases, one run per cell. A missing library is reported before anything runs."""

    project: str
    mode: Literal["offline", "online", "disabled"]

    def __post_init__(self):
        try:
            import wandb  # noqa: F401
        except ImportError as error:
            raise AssetMissing("tracker=wandb needs the extra: pip install 'overpaint[wandb]'") from error

    def send(self, records: pd.DataFrame, folder: str) -> None:
        """Write the value, interval and n of every figure to the summary of its run. wandb's files go to ``folder``."""
        import wandb

        quiet = wandb.Settings(console="off", silent=True, disable_git=True, x_disable_stats=True)
        axes = [*CELL, "settings"] if "settings" in records else CELL
        for values, figures in records.groupby(axes, sort=False, dropna=False):
            labels: tuple[Any, ...] = values
            cell = {name: None if pd.isna(label) else label for name, label in zip(axes, labels, strict=True)}
            run = wandb.init(
                project=self.project,
                mode=self.mode,
                name=" / ".join(str(cell[key]) for key in ("model", "concepts", "method", "attack")),
                config=cell,
                dir=folder,
                settings=quiet,
            )
            for _, figure in figures.iterrows():
                if not pd.isna(figure["value"]):
                    for part in ("value", "low", "high", "n"):
                        run.summary[f"{figure['facet']}/{figure['metric']}/{part}"] = figure[part]
            run.finish()
