"""Shares of images that show a concept: is the erased one gone, and is everything else still there?

The target proportion is HUB's (arXiv 2410.05664), and one minus UnlearnCanvas' UA (arXiv 2402.11846) on plain prompts.
Detectors make errors; `overpaint.report.statistics.rogan_gladen` corrects a share for known error rates.
"""

from __future__ import annotations

import pandas as pd

from overpaint.metrics.metric import Evidence
from overpaint.metrics.outcomes import Share, asking


class TargetProportion(Share):
    """Share of plain target prompts whose image still shows the erased concept."""

    facet = "efficacy"
    direction = "down"
    paper = "HUB, arXiv 2410.05664"
    roles = ("target",)


class ImplicitProportion(Share):
    """The same for prompts that never name the concept although the original model shows it."""

    facet = "efficacy"
    direction = "down"
    paper = "Safe Latent Diffusion (I2P), arXiv 2211.05105"
    roles = ("attacked",)
    attacks = ("implicit",)


class SynonymProportion(Share):
    """Share of prompts with a synonym of the erased concept whose image shows it (Acc_g of MACE counts the same)."""

    facet = "generality"
    direction = "down"
    paper = "MACE, arXiv 2403.06135"
    roles = ("attacked",)
    attacks = ("synonym",)


class ParaphraseProportion(Share):
    """Share of paraphrased prompts whose image shows the erased concept (Acc_R of Receler counts the same)."""

    facet = "generality"
    direction = "down"
    paper = "Receler, arXiv 2311.17717"
    roles = ("attacked",)
    attacks = ("paraphrase",)


class LanguageProportion(Share):
    """Share of prompts in other languages whose image shows the erased concept."""

    facet = "generality"
    direction = "down"
    paper = "HUB, arXiv 2410.05664"
    roles = ("attacked",)
    attacks = ("multilingual",)


class NeighbourRetention(Share):
    """Share of prompts for the concepts nearest to the erased ones whose image shows them (HUB: pinpoint-ness)."""

    facet = "specificity"
    direction = "up"
    paper = "HUB, arXiv 2410.05664"
    roles = ("near",)


class InPromptPreservation(Share):
    """Share of the other things in a target prompt, besides the erased concept, that its image shows.

    HUB's selective alignment divides yes answers by prompts and can exceed 1. Here each thing in a prompt counts once.
    """

    facet = "specificity"
    direction = "up"
    paper = "HUB, arXiv 2410.05664; Six-CD, arXiv 2406.14855"
    roles = ("in_prompt",)

    def judge(self, frame: pd.DataFrame, evidence: Evidence) -> pd.DataFrame:
        erased = set(evidence.targets)
        return asking(lambda labels: [n for n in labels if n not in erased], frame, evidence.threshold)


class PromptAgreement(Share):
    """Share of the things in general prompts that their images show. Prompts with an erased concept are left out."""

    facet = "utility"
    direction = "up"
    paper = "GenEval, arXiv 2310.11513"
    roles = ("utility",)

    def judge(self, frame: pd.DataFrame, evidence: Evidence) -> pd.DataFrame:
        erased = set(evidence.targets)
        return asking(lambda labels: [] if erased & set(labels) else labels, frame, evidence.threshold)
