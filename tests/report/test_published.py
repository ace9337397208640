"""The published figures are complete, consistent with each other, and named correctly."""

import re
from pathlib import Path

import numpy as np
import pytest

from overpaint.errors import UserError
from overpaint.grid.concepts import load_catalogue
from overpaint.grid.registry import component, components
from overpaint.images.task_parts import metric_class
from overpaint.report.ledger.published import COLUMNS, UNITS, folder, names, papers, published, rules

ROOT = Path(__file__).resolve().parents[2]


HEADER = ",".join(COLUMNS)


ROW = "Table 1,ESD,SD v1.4,nudity,,UDA,ASR,76.05,percent,down,142,,"


def test_every_row_is_valid(found):
    """`published` checks each row. None of the figures of the first 22 papers gets lost."""
    assert len(found) >= 2678
    assert found["paper"].nunique() == len(papers()) >= 22
    assert {path.stem for path in folder().glob("*.csv")} == set(papers())
    assert found["scaled"].map(np.isfinite).all() and set(found["unit"]) <= set(UNITS)
    counts = found["provenance"].value_counts()
    assert counts["paper"] >= 1566 and counts["release"] >= 548 and counts["secondary"] >= 564


def test_every_paper_and_table_is_used_and_has_a_source(found):
    for key, paper in papers().items():
        assert re.fullmatch(r"\d{4}\.\d{5}", paper["arxiv"])
        assert set(paper["tables"]) == set(found.loc[found["file"] == key, "table"]), key
        assert all(table["provenance"] and table["source"] for table in paper["tables"].values())


def test_names_are_mapped_to_names_that_exist():
    known = names()
    for kind, mapped in (("method", "methods"), ("attack", "attacks"), ("model", "bases")):
        assert set(known[mapped].values()) <= set(components(kind)), mapped
    concepts = {name.casefold() for name in load_catalogue("hub33").concepts}
    assert set(known["concepts"].values()) <= {*components("concepts"), *concepts}
    assert set(known["replayed"].values()) <= set(components("attack"))
    assert set(known["replayed"]) <= set(components("asset"))
    assert {name for listed in known["detectors"].values() for name in listed} <= set(components("detector"))
    assert {name for listed in known["prompts"].values() for name in listed} <= set(components("asset"))
    metrics = {name for kind in components("metrics") for name in component("metrics", kind).config["metrics"]}
    used = {rule.means for rule in rules(known)} | {name for listed in known["recorded"].values() for name in listed}
    assert {name.partition(".")[0] for name in used} <= metrics


def test_every_name_is_printed_somewhere(found):
    """A mapping of a name that no paper prints is a slip of the pen."""
    known = names()
    for mapped, column in (("methods", "method"), ("bases", "base"), ("concepts", "erased"), ("attacks", "attack")):
        assert set(known[mapped]) <= set(found[column])
    assert set(known["detectors"]) <= set(found["detector"]) and set(known["references"]) <= set(found["method"])
    printed = set(zip(found["metric"], found["metric_name"], strict=True))
    assert {(rule.printed, rule.means) for rule in rules(known)} <= printed


#: Scales of our metrics whose unit is a score.
SCORES = {"aesthetic_target": "points of 1 to 10", "image_reward_general": "reward"}


def test_printed_figures_have_the_direction_and_unit_of_our_metric(found):
    """Percentages are shares and hours are seconds in column ``scaled``."""
    listed = [component("metrics", kind).config["metrics"] for kind in components("metrics")]
    ours = {name: metric_class(name, reference) for of_kind in listed for name, reference in of_kind.items()}
    compared = set()
    for figure in found.drop_duplicates(["metric_name", "scale", "better"]).to_dict("records"):
        for name in (figure["metric_name"], *names()["recorded"].get(figure["metric_name"], ())):
            if metric := ours.get(name.partition(".")[0]):
                unit = SCORES[name] if metric.unit == "score" else metric.unit
                assert (figure["better"], figure["scale"]) == (metric.direction, unit), name
                compared.add(name)
    assert len(compared) >= 40


def test_a_metric_has_one_direction_for_each_kind_of_prompts(found):
    directions = found.groupby(["metric_name", "prompts", "attack_name"])["better"].nunique()
    assert directions[directions > 1].index.tolist() == []
    up = found[(found["better"] == "up") & (found["attack"] != "")]
    assert set(up["metric_name"]) == {
        "CLIP_score_of_attacked_images",
        "SPQR",
        "spqr_robustness",
        "max_relative_distance",
    }


def harmonic(*terms):
    return len(terms) / sum(1 / term for term in terms)


def wide(found, paper, table, columns="metric", index=("method", "erased", "base")):
    part = found[(found["paper"] == paper) & (found["table"] == table) & ~found["note"].str.startswith("doubtful")]
    return part.pivot_table("scaled", list(index), columns)


def test_printed_totals_means_and_harmonic_means_follow_from_the_printed_figures(found):
    """The transcription agrees with the papers' own arithmetic, except in rows that are marked as doubtful."""
    detections = found[found["metric"].str.startswith("NudeNet_") & found["paper"].isin(["MACE", "ACE"])]
    parts = detections.pivot_table("scaled", ["paper", "method", "base"], "metric")
    assert len(parts) == 17 and (parts["NudeNet_total"] == parts.drop(columns="NudeNet_total").sum(axis=1)).all()

    mace = wide(found, "MACE", "Table 1").query("not erased.str.startswith('mean')").dropna()
    assert len(mace) == 27
    assert np.allclose(mace["H_o"], harmonic(1 - mace["Acc_e"], mace["Acc_s"], 1 - mace["Acc_g"]), atol=0.0016)
    celebrities = wide(found, "SPEED", "Table 2").dropna(subset="H_o")
    assert len(celebrities) == 18
    assert np.allclose(celebrities["H_o"], harmonic(1 - celebrities["Acc_e"], celebrities["Acc_r"]), atol=0.0002)
    artists = wide(found, "MACE", "Table 3", index=["method"]).dropna()
    assert len(artists) == 7 and np.allclose(artists["H_a"], artists["CLIP_s"] - artists["CLIP_e"], atol=0.011)

    spqr = found[found["paper"] == "SPQR"].pivot_table("scaled", ["table", "method", "base"], "metric").dropna()
    assert len(spqr) == 17
    assert np.allclose(spqr["SPQR"], harmonic(*(spqr[name] for name in "SPQR")), atol=0.0006)

    attacks = wide(found, "ConceptSteerers", "Table 1", "attack", ["method"])
    lengths = attacks[["Ring-A-Bell K16", "Ring-A-Bell K38", "Ring-A-Bell K77"]].mean(axis=1)
    gaps = (attacks["Ring-A-Bell"] - lengths).dropna().abs()
    assert len(gaps) == 13 and gaps.max() < 0.0002
    ace = wide(found, "ACE", "robustness table", "attack", ["method"])
    assert np.allclose(ace["mean of 3"], ace.drop(columns="mean of 3").mean(axis=1), atol=0.0001)

    hub = found[(found["paper"] == "HUB") & (found["table"] == "Table 3") & (found["metric"] != "erase_time")]
    hub = hub.pivot_table("scaled", ["method", "metric", "prompts", "attack"], "erased")
    assert len(hub) == 64 and np.allclose(hub["Overall"], hub.drop(columns="Overall").mean(axis=1), atol=0.0011)


def test_doubtful_figures_are_marked(found):
    doubtful = found[found["note"].str.startswith("doubtful")]
    assert {"HUB", "MACE", "SPQR", "ConceptSteerers", "SemanticSurgery"} == set(doubtful["paper"])
    (airplane,) = doubtful[doubtful["metric"] == "H_o"].to_dict("records")
    assert (airplane["method"], airplane["erased"], airplane["value"]) == ("AC", "CIFAR-10 airplane", 6.11)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (ROW.replace("76.05", "high"), "a.csv line 2: value takes a finite number, got 'high'"),
        (ROW.replace("76.05", "nan"), "value takes a finite number"),
        (ROW.replace("76.05", "176.05"), "176.05 is no percent between nothing and all"),
        (ROW.replace("percent", "per cent"), "unknown unit 'per cent' in a.csv line 2; did you mean 'percent'"),
        (ROW.replace("down", "lower"), "'lower'"),
        (ROW.replace("142", "many"), "images takes a whole number or nothing, got 'many'"),
        (ROW.replace("142", "-1"), "images"),
        (ROW.replace("ESD", ""), "a.csv line 2: no value for method"),
        (ROW + ",more", "does not have 13 cells"),
        (ROW.replace("Table 1", "Table 9"), "unknown table 'Table 9'"),
        (f"{ROW}\n{ROW}", "two published figures in one place: A, Table 1, ESD"),
        (ROW.replace("Table 1", '"Table 1'), "is not CSV"),
    ],
)
def test_a_wrong_row_is_refused(tmp_path, text, said):
    (tmp_path / "names.yaml").write_text((folder() / "names.yaml").read_text(encoding="utf-8"))
    (tmp_path / "papers.yaml").write_text(
        'a: {name: A, arxiv: "2403.06135", tables: {Table 1: {provenance: paper, source: text}}}\n'
    )
    (tmp_path / "a.csv").write_text(f"{HEADER}\n{text}\n")
    with pytest.raises(UserError, match=re.escape(said)):
        published(tmp_path)
