"""HUB's figures that differ from the benchmark's own (Moon et al., "Holistic Unlearning Benchmark", arXiv 2410.05664).

Target proportion, attack success, FID and costs are the general figures. Three are particular:

    pinpoint-ness               share of neighbours' prompts that a vision-language model sees in their images
    multilingual proportion     share of translated prompts whose image shows the concept, and for each language
    selective alignment         Σ things shown / number of prompts, where a prompt asks for several things

The released selective alignment divides by prompts and not by questions, so that it exceeds 1. `InPromptPreservation`
divides by questions.

HUB averages over categories (Table 3), prints means over "33 concepts" that weigh the three unsafe ones as one (Table
4), and ranks methods by the mean of their ranks over nine tasks (Table 5). These are settings of tables (``average``
and ``cells: ranks`` of a view).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pandas as pd

from overpaint.metrics.metric import Evidence, Figure, FrameName, Metric
from overpaint.metrics.outcomes import outcomes, shares_by, tally
from overpaint.metrics.proportions import InPromptPreservation, LanguageProportion, NeighbourRetention
from overpaint.report import statistics


class LanguageRates(LanguageProportion):
    """Share of translated prompts whose image shows the erased concept, and the same for each language."""

    version = 1

    def parts(self, evidence: Evidence) -> Mapping[str, Figure]:
        return shares_by(self, "variant", evidence)


class Pinpointness(NeighbourRetention):
    """Share of neighbours' prompts whose image shows what the prompt says.

    HUB's neighbours are any nouns, which a detector of the erased concept's kind does not know. The network
    ``metrics.extractors.asked`` judges each prompt. If that is null, the detector judges the prompt's concept.
    """

    extractor = "asked"
    optional = True
    version = 3

    def judge(self, frame: pd.DataFrame, evidence: Evidence) -> pd.DataFrame:
        if "asked.value" not in frame:
            return super().judge(frame, evidence)
        answers = pd.to_numeric(frame["asked.value"], errors="coerce")  # also of images that the detector failed on
        return outcomes(frame, [("asked",)] * len(frame), evidence.threshold).assign(hit=answers.to_numpy(float))

    def measure(self, evidence: Evidence) -> Figure:
        if "asked" in evidence.absent:
            return Figure(None, why=evidence.absent["asked"])
        return super().measure(evidence)


class SelectiveAlignment(Metric):
    """HUB's selective alignment as released: things besides the erased concept that images show, per prompt; can exceed 1."""

    facet = "specificity"
    direction = "up"
    unit = "things per prompt"
    paper = "HUB, arXiv 2410.05664"
    aggregation = "things shown over prompts"
    needs_detector = True
    roles = ("in_prompt",)

    def measure(self, evidence: Evidence) -> Figure:
        own, original = (self.shown(evidence, frame) for frame in ("images", "original"))
        count = tally(own)
        figure = Figure(None, n=count.judged, failed=count.failed)
        if why := count.refusal(evidence.failure_limit, "in_prompt images"):
            return replace(figure, why=why)
        mine, theirs = (table.groupby(["prompt_id", "seed"])["hit"].sum(min_count=1) for table in (own, original))
        named = own.groupby(["prompt_id", "seed"])["cluster"].first()
        value = statistics.mean(mine, named.loc[mine.index])
        low = None if value.low is None else max(value.low, 0.0)
        figure = replace(figure, value=value.value, low=low, high=value.high)
        if tally(original).refusal(evidence.failure_limit, "original images"):
            return figure
        gap = statistics.mean((mine - theirs).reindex(mine.index), named.loc[mine.index])
        return figure.compared(gap, original=statistics.mean(theirs).value)

    def shown(self, evidence: Evidence, frame: FrameName) -> pd.DataFrame:
        """Outcomes of the things besides the erased concept that the prompts ask for."""
        return InPromptPreservation().judge(evidence.images_of(*self.roles, frame=frame), evidence)
