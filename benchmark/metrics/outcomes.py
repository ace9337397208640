"""Outcomes of scored images, and figures from outcomes: what all metrics that are shares of images have in common.

*Outcomes* are a frame with one row for each image and label in question: ``prompt_id``, ``seed``, ``cluster``,
``label``, ``image`` (the image's row number) and ``hit`` (1 present, 0 absent, NaN unknown). If one label of an image
is unknown, all its labels are. An optional column ``stratum`` names groups whose shares are averaged with equal weight.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import pandas as pd

from overpaint.errors import UserError
from overpaint.metrics.metric import Evidence, Figure, FrameName, Metric
from overpaint.report import statistics
from overpaint.report.statistics import Estimate

KEYS = ["prompt_id", "seed", "label"]


class Tally(NamedTuple):
    """Numbers of images that were judged and of images that failed."""

    judged: int
    failed: int

    def refusal(self, limit: float, what: str) -> str:
        """The reason to refuse a figure of these images (``what``), or an empty string.

        ``limit`` is the largest share of failures.
        """
        if self.judged + self.failed == 0:
            return f"no {what}"
        if self.judged == 0:
            return f"all {self.failed} {what} failed"
        share = self.failed / (self.judged + self.failed)
        return f"{self.failed} of {self.judged + self.failed} {what} failed, limit {limit:.0%}" if share > limit else ""


def has_readings(frame: pd.DataFrame | None, column: str) -> bool:
    """Whether any image of the frame has a value in this column. Only some attacks leave such columns."""
    return frame is not None and column in frame and bool(frame[column].notna().any())


def clusters(frame: pd.DataFrame) -> pd.Series:
    """The cluster of each image: the frame's ``cluster`` column, or its prompts without one."""
    return frame["cluster"] if "cluster" in frame else frame["prompt_id"]


def outcomes(frame: pd.DataFrame, labels: Iterable[Collection[str | None]], threshold: float) -> pd.DataFrame:
    """Outcomes of the images of ``frame``; ``labels`` has one collection of labels for each row.

    An image without labels is left out. A label that the detector does not know is unknown.
    """
    asked = [[label for label in dict.fromkeys(row) if isinstance(label, str) and label] for row in labels]
    image = np.repeat(np.arange(len(frame)), [len(row) for row in asked])
    table = frame[["prompt_id", "seed"]].assign(cluster=clusters(frame)).iloc[image].reset_index(drop=True)
    table["label"] = [label for row in asked for label in row]
    table["image"] = image
    scores = np.full(len(table), np.nan)
    for label, places in table.groupby("label").indices.items():
        if label in frame:
            scores[places] = pd.to_numeric(frame[label], errors="coerce").to_numpy(float)[image[places]]
    unknown = np.isnan(scores) | frame["failed"].to_numpy(bool)[image]
    unknown = pd.Series(unknown).groupby(image).transform("any").to_numpy(bool)
    table["hit"] = np.where(unknown, np.nan, scores >= threshold)
    return table


def own_concept(frame: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """Outcomes for the concept that each image's prompt is about."""
    return outcomes(frame, [(label,) for label in frame["concept"]], threshold)


def tally(table: pd.DataFrame) -> Tally:
    """The numbers of judged and failed images among outcomes."""
    judged = table.drop_duplicates("image")["hit"].notna()
    return Tally(int(judged.sum()), int((~judged).sum()))


def tally_of(values: pd.Series) -> Tally:
    """The numbers of images with and without a number."""
    known = int(values.notna().sum())
    return Tally(known, len(values) - known)


def refusals(counts: Mapping[str, Tally], limit: float) -> str:
    """The reasons to refuse a figure of several groups of images, by what they are; an empty string if there is none."""
    return "; ".join(filter(None, (count.refusal(limit, what) for what, count in counts.items())))


def share(table: pd.DataFrame) -> Estimate:
    """The share of positive outcomes, with an interval by cluster."""
    return statistics.proportion(table["hit"], table["cluster"], table.get("stratum"))


def unjudged(table: pd.DataFrame) -> list[str]:
    """Labels without any judged image."""
    return [str(label) for label, judged in table.groupby("label")["hit"].count().items() if not judged]


def refusal(table: pd.DataFrame, limit: float, what: str) -> str:
    """The reason to refuse the share of these outcomes, or an empty string.

    A mean over labels is undefined if one label has no judged image, even if few images failed in total.
    """
    reason, unseen = tally(table).refusal(limit, what), unjudged(table)
    if unseen and (reason or "stratum" in table):
        return "; ".join(filter(None, (reason, f"none was judged for {', '.join(unseen)}")))
    return reason


def paired(these: pd.DataFrame, those: pd.DataFrame) -> pd.DataFrame | None:
    """``these`` outcomes with ``those`` of the same prompts and seeds as ``hit_other``; ``None`` if fewer than half correspond.

    The difference of few pairs would be that of other images.
    """
    keys = [*KEYS, "stratum"] if "stratum" in these else KEYS
    if these.duplicated(keys).any() or those.duplicated(keys).any():
        return None
    pairs = these.merge(those, on=keys, suffixes=("", "_other"))
    return pairs if 2 * len(pairs) >= max(len(these), len(those)) else None


def difference(these: pd.DataFrame, those: pd.DataFrame) -> Estimate:
    """The share of ``these`` outcomes minus the share of ``those``: paired if most of them correspond, unpaired
    otherwise.

    It is undefined if a stratum has no judged pair, because the mean over the other strata would be a different figure.
    """
    pairs = paired(these, those)
    if pairs is not None:
        if "stratum" in pairs and unjudged(pairs.assign(hit=pairs["hit"] + pairs["hit_other"])):
            return Estimate(None)
        return statistics.paired_difference(pairs["hit"], pairs["hit_other"], pairs["cluster"], pairs.get("stratum"))
    return statistics.unpaired_difference(these["hit"], those["hit"], these["cluster"], those["cluster"])


def compare(
    these: pd.DataFrame,
    those: pd.DataFrame | None,
    limit: float,
    what: str,
    against: Literal["original", "control"] = "original",
) -> Figure:
    """The figure of ``these`` outcomes, compared with ``those`` of the original model or the control (``against``)."""
    count = tally(these)
    if why := refusal(these, limit, what):
        return Figure(None, n=count.judged, failed=count.failed, against=against, why=why)
    own = share(these)
    figure = Figure(
        own.value,
        own.low,
        own.high,
        n=count.judged,
        failed=count.failed,
        against=against,
        outcomes=kept(these, those),
    )
    if those is None or refusal(those, limit, what):
        return figure
    return figure.compared(difference(these, those), **{against: share(those).value})


def kept(these: pd.DataFrame, those: pd.DataFrame | None) -> pd.DataFrame:
    """Outcomes as they are stored beside the records, with those of the other side if the difference is paired."""
    table = these[["prompt_id", "seed", "label", "cluster"]].assign(value=these["hit"].astype(float))
    table["stratum"] = these.get("stratum", "")
    if those is None or these.duplicated(KEYS).any() or those.duplicated(KEYS).any() or paired(these, those) is None:
        return table.assign(other=np.nan)
    other = those.set_index(KEYS)["hit"].astype(float)
    return table.assign(other=other.reindex(pd.MultiIndex.from_frame(table[KEYS])).to_numpy())


class Share(Metric):
    """A share of images (or of what they should show), compared with the original model's share.

    A subclass sets the class attributes. It overrides `judge` if outcomes other than the image's own concept count.
    """

    version = 2
    needs_detector = True
    compared: ClassVar[tuple[FrameName, FrameName]] = ("images", "original")

    def judge(self, frame: pd.DataFrame, evidence: Evidence) -> pd.DataFrame:
        """Outcomes of ``frame``, which holds the images of this metric's roles."""
        return own_concept(frame, evidence.threshold)

    def judged(self, frame: pd.DataFrame, evidence: Evidence) -> pd.DataFrame:
        """What `judge` returned. Raises `UserError` unless it has the columns of `outcomes`."""
        found, said = self.judge(frame, evidence), f"{type(self).__name__}.judge returned"
        rule = "judge returns what outcomes() returns (docs/extending.md)"
        if not isinstance(found, pd.DataFrame):
            raise UserError(f"{said} {type(found).__name__}; {rule}")
        for column in (*KEYS, "cluster", "image", "hit"):
            if column not in found:
                raise UserError(f"{said} a frame without column {column!r}; {rule}")
        if not found["hit"].dropna().isin([0, 1]).all():
            raise UserError(f"{said} other values of 'hit' than 1, 0 and NaN; {rule}")
        return found

    def measure(self, evidence: Evidence) -> Figure:
        these, those = (self.judged(evidence.images_of(*self.roles, frame=frame), evidence) for frame in self.compared)
        return compare(these, those, evidence.failure_limit, f"{'/'.join(self.roles)} images")


def shares_by(metric: Share, column: str, evidence: Evidence) -> dict[str, Figure]:
    """The metric's figure for each value of a column, if there are several values."""
    frames = [evidence.images_of(*metric.roles, frame=frame) for frame in ("images", "original")]
    if column not in frames[0]:
        return {}
    values = sorted({value for value in frames[0][column] if isinstance(value, str) and value})
    found = {}
    for value in values if len(values) > 1 else ():
        chosen = [frame[frame[column] == value].reset_index(drop=True) for frame in frames]
        these, those = (metric.judged(frame, evidence) for frame in chosen)
        found[value] = compare(these, those, evidence.failure_limit, f"{value} images")
    return found


def asking(labels: Callable[[list[str]], Collection[str]], frame: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """Outcomes of the labels that ``labels`` selects from those that each prompt expects."""
    return outcomes(frame, [labels(listed(expects)) for expects in frame["expects"]], threshold)


def listed(expects: object) -> list[str]:
    """The labels that a prompt expects, as a list. Parquet yields arrays; an empty cell is ``None`` or NaN."""
    return list(expects) if isinstance(expects, list | tuple | np.ndarray) else []
