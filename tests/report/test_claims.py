"""Result files: written from a store, read like a store, merged, and checked."""

import io
import json
import re

import pandas as pd
import pytest

import overpaint
from command_line import CommandLine
from overpaint.report.claims import COLUMNS, Claim, claims_of, file_name, merged, published, read_claim, text_of
from overpaint.report.eligibility import violations
from overpaint.report.families import marked
from overpaint.report.filters import narrowed
from overpaint.report.pooling import Outcomes
from overpaint.report.records import OUTCOME_COLUMNS, stored_outcomes, stored_records
from overpaint.report.rendering import render
from overpaint.report.statistics import VERSION, paired_difference, proportion
from overpaint.report.views import view_named
from overpaint.run.store import Store
from processes import ROOT

GRID = ["experiment=smoke", "attack=none"]
RUN = {"command": "overpaint run", "libraries": {"torch": "2"}, "models": ["aa"], "assets": {"oracle": "bb"}}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A command line in a folder with the store of a small grid."""
    cli = CommandLine(tmp_path_factory.mktemp("claims"))
    cli("run", *GRID)
    return cli


@pytest.fixture(scope="module")
def folder(run):
    run("publish", *GRID, "out=results")
    return run.folder / "results" / "smoke"


def test_a_published_grid_is_read_like_its_store(run, folder):
    """Records, outcomes and the tables of every view."""
    store = Store(run.folder / "outputs")
    records, outcomes = published(folder)
    stored = stored_records(store)
    key = ["method", "metric"]
    both = stored.merge(records, on=key, suffixes=("", "_published"))
    assert len(both) == len(stored) == len(records)
    for name in ("value", "low", "high", "n", "difference", "p_value", "settings", "versions", "why"):
        assert both[name].equals(both[f"{name}_published"].astype(both[name].dtype)), name
    assert len(outcomes) == len(stored_outcomes(store, stored)) > 0
    for view in ("methods", "facets", "efficiency"):
        shown = [render(*pair) for pair in ((records, "md", view, outcomes),)]
        assert shown == [run("table", *GRID, "--view", view, "--format", "md").stdout]
    assert run("table", "--from", str(folder), "--view", "methods", "--format", "md").stdout == run(
        "table", *GRID, "--view", "methods", "--format", "md"
    ).stdout  # fmt: skip


def test_a_published_grid_holds_what_checks_its_intervals(run, folder):
    """The outcomes in the files give every share, its interval and its paired difference again."""
    records, outcomes = published(folder)
    known, checked = Outcomes(outcomes), set()
    shares = records[records["value"].notna() & (records["unit"] == "fraction")]
    for _, record in shares.iterrows():
        table = known.together([record.to_dict()])
        assert table is not None, record["metric"]
        strata = table["stratum"] if table["stratum"].any() else None
        found = proportion(table["value"], table["cluster"], strata)
        assert found[:3] == pytest.approx((record["value"], record["low"], record["high"])), record["metric"]
        if record["method"] != "none" and table["other"].notna().all():
            gap = paired_difference(table["value"], table["other"], table["cluster"], strata)
            stored = record[["difference", "difference_low", "difference_high", "p_value"]]
            assert gap[:4] == pytest.approx(tuple(map(float, stored))), record["metric"]
            checked.add(record["metric"])
    assert {"target_proportion", "ua", "ira", "neighbour_retention"} <= checked


def test_a_store_and_its_files_are_identical_for_compare(run, folder):
    found = json.loads(run("compare", "outputs", str(folder), "--format", "json", "--fail").stdout)
    assert {name for name, count in found["groups"].items() if count} == {"identical"} and found["differs"] == []
    pairings = {figure["metric"]: figure["pairing"] for figure in found["figures"] if figure["pairing"]}
    assert pairings["target_proportion"] == pairings["ira"] == "paired"


def test_a_file_says_how_it_was_made_and_holds_no_prompt(folder):
    text = (folder / "uce.json").read_text()
    (made,) = json.loads(text)["runs"]
    assert made["command"] == "overpaint run experiment=smoke attack=none"
    assert made["models"] and all(re.fullmatch("[0-9a-f]{16}", model) for model in made["models"])
    assert made["libraries"]["torch"] and made["assets"]["oracle.safetensors"]
    assert "a picture of" not in text and "photo" not in text


def test_a_file_names_every_machine_that_made_a_part_of_its_records(run, folder):
    """Images that were made on a GPU and measured elsewhere are not attributed to the CPU that computed the figures."""
    stored = run.folder / "outputs" / "artefacts" / "generate"
    manifests = [place / "manifest.json" for place in stored.iterdir()]
    before = {path: path.read_text() for path in manifests}
    for path, text in before.items():
        manifest = json.loads(text)
        manifest["host"]["machine"] = "a GPU"
        path.write_text(json.dumps(manifest))
    try:
        run("publish", *GRID, "out=elsewhere")
    finally:
        for path, text in before.items():
            path.write_text(text)
    (own,) = {made["machine"] for made in json.loads((folder / "uce.json").read_text())["runs"]}
    named = [
        made["machine"] for made in json.loads((run.folder / "elsewhere" / "smoke" / "uce.json").read_text())["runs"]
    ]
    assert sorted(named) == sorted([own, "a GPU"])


def test_publishing_again_changes_no_byte_and_keeps_other_cells(run, folder):
    before = (folder / "uce.json").read_bytes()
    run("publish", *GRID, "out=results")
    assert (folder / "uce.json").read_bytes() == before
    claim = read_claim(folder / "uce.json")
    other = Claim([RUN], claim.records.assign(concepts="car"), claim.outcomes)
    try:
        (folder / "uce.json").write_text(text_of(other))
        run("publish", *GRID, "out=results")
        both = read_claim(folder / "uce.json")
    finally:
        (folder / "uce.json").write_bytes(before)
    assert list(both.records["concepts"].unique()) == ["car", "church"] and len(both.runs) == 2
    assert len(both.outcomes) == 2 * len(claim.outcomes)


def test_what_cannot_be_published_is_refused(run):
    assert "1 of 2 cells are not stored" in run("publish", *GRID, "concepts=church", "method=none,ca", code=2).stderr
    assert "publish needs experiment=NAME or name=NAME" in run("publish", "method=none", code=2).stderr
    assert "takes no overrides" in run("publish", "--check", "x", "method=none", code=2).stderr
    assert "cannot be written: Not a directory" in run("publish", *GRID, "out=/dev/null/x", code=2).stderr
    assert not (run.folder / "leaderboards").exists()


def test_check_prints_a_sentence_a_violation(run, folder):
    said = run("publish", "--check", str(folder), code=2).stderr.splitlines()
    assert len(said) == 2 and all("a primary endpoint needs at least 12 outcomes" in line for line in said)


def test_a_filter_takes_a_whole_label_with_commas(folder):
    records, _ = published(folder)
    label = "uce attributes=[man, woman] lamb=1.0"
    labelled = records.assign(method=records["method"].where(records["method_name"] != "uce", label))
    chosen = narrowed(labelled, [f"method={label}"], "x")
    assert set(chosen["method"]) == {label} and len(chosen) == (labelled["method"] == label).sum()
    assert set(narrowed(labelled, ["method=none, uce"], "x")["method_name"]) == {"none", "uce"}


@pytest.mark.parametrize(
    ("filter_", "given", "label"),
    [
        ("budget=smoke", {"budget.grid": 0}, "smoke grid=0"),
        ("model=testbed", {"model.dtype": "half"}, "testbed dtype=half"),
        ("concepts=church", {"concepts.anchor": "tree"}, "church anchor=tree"),
        ("protocol=testbed", {"protocol.steps": 4}, "testbed steps=4"),
    ],
)
def test_a_filter_takes_the_plain_name_of_a_label(folder, filter_, given, label):
    records, _ = published(folder)
    key, _, name = filter_.partition("=")
    edited = records["method"] == "uce"
    changed = records.assign(
        given=records["given"].mask(edited, json.dumps(given)), **{key: records[key].mask(edited, label)}
    )
    assert set(narrowed(changed[edited], [filter_], "x")["method"]) == {"uce"}
    assert set(narrowed(changed, [filter_], "x")["method"]) == {"none"}, "a label that exists is meant alone"
    assert set(narrowed(changed, [f"{key}={label}"], "x")["method"]) == {"uce"}
    with pytest.raises(overpaint.UserError, match=f"unknown {key} '{name}x' in x; did you mean '{name}'"):
        narrowed(changed[edited], [f"{key}={name}x"], "x")


def test_filters_name_what_exists(run, folder):
    records, _ = published(folder)
    assert set(narrowed(records, ["method=uce", "metric=ira,ua"], "x")["metric"]) == {"ira", "ua"}
    with pytest.raises(overpaint.UserError, match="unknown method 'uxe' in x; did you mean 'uce'"):
        narrowed(records, ["method=uxe"], "x")
    assert "unknown filter 'metod'" in run("table", "--from", str(folder), "metod=uce", code=2).stderr
    assert "there is no folder" in run("table", "--from", "nowhere", code=2).stderr
    assert "method in" in (said := run("table", "--from", str(folder), "method", code=2).stderr)
    assert "a filter takes = and values, such as method=" in said
    for place in (str(folder), "outputs"):
        said = run("table", *(("--from", place) if place != "outputs" else ()), "method=uce", "attack", code=2).stderr
        assert "attack" in said and "Traceback" not in said
    twice = run("table", "--from", str(folder), "method=uce", "method=esd", code=2).stderr
    assert "method= is given twice: give a list, method=uce,esd" in twice
    for word, said in (
        ("uce", ": give method=uce"),
        ("smoke", ": give budget=smoke"),
        ("metod", "did you mean 'method'"),
    ):
        sentence = run("table", "--from", str(folder), word, code=2).stderr
        assert f"{word} in {folder}: filters are key=value" in sentence and said in sentence
    filtered = ("table", "--from", str(folder), "--format", "csv", "method=uce")
    # Finds components, is no filter.
    assert run(*filtered, "hydra.searchpath=[file://.]").stdout == run(*filtered).stdout


@pytest.fixture
def claim(folder, tmp_path):
    """``claim(**columns)``: the violations of a good claim whose records are changed."""

    def check(method="uce", runs=(RUN,), waived=None, only=None, **columns):
        good = read_claim(folder / f"{method}.json")
        records = good.records.assign(n=24, p_adjusted=None, family="", mark="", p_value=None, p_equivalence=None)
        place = tmp_path / "claims"
        place.mkdir(exist_ok=True)
        for name in ("none", method):
            changed = records.assign(method=name, method_name=name)
            if name == method:
                rows = changed["metric"].eq(only) if only else changed["metric"].notna()
                for column, value in columns.items():
                    changed[column] = changed[column].astype(object)
                    changed.loc[rows, column] = value
                (place / file_name(name)).write_text(text_of(Claim(runs, changed, waived=waived or {})))
            else:
                (place / file_name(name)).write_text(text_of(Claim([RUN], changed)))
        return violations(place)

    return check


def test_a_good_claim_is_eligible(claim):
    assert claim() == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"runs": [{"command": "overpaint run"}]}, "runs must say their libraries, models, assets"),
        ({"runs": []}, "runs must say their command"),
        ({"versions": "{}"}, "versions of metric, components and statistics must be known"),
        ({"settings": None}, "settings and versions"),
        ({"n": 11, "only": "target_proportion"}, "needs at least 12 outcomes"),
        ({"low": None, "only": "ira"}, "a share needs an interval"),
        ({"low": 0.9, "value": 0.5, "high": 0.95, "only": "ira"}, "value is 0.5, allowed is a number from low to high"),
        ({"p_value": 0.9, "difference_low": 0.1, "difference_high": 0.2, "only": "ira"}, "contradicts its p-value"),
        ({"failed": 2, "only": "ira"}, "more than 5% of the images failed"),
        ({"against": "control", "control": None, "only": "ira"}, "an attack needs its control"),
        ({"mark": "differs", "only": "ira"}, "the mark is not the one that its p-values give"),
        ({"budget": "large"}, "no record of the unedited model"),
        ({"waived": {"luck": "none"}}, "waived names 'luck'"),
    ],
)
def test_each_rule_is_checked(claim, change, said):
    found = claim(**change)
    assert found and all(said in sentence for sentence in found), found


@pytest.mark.parametrize(
    ("column", "value"), [("value", 0.25), ("high", 0.99), ("difference_low", -0.01), ("p_value", 0.5)]
)
def test_a_number_that_was_edited_by_hand_is_found_by_its_outcomes(folder, tmp_path, column, value):
    good = read_claim(folder / "uce.json")
    assert len(good.outcomes)

    def said(records):
        (tmp_path / "uce.json").write_text(text_of(Claim([RUN], records, good.outcomes)))
        return [sentence for sentence in violations(tmp_path) if "stored outcomes" in sentence]

    assert said(good.records) == []
    edited = good.records["metric"].eq("target_proportion")
    (found,) = said(good.records.assign(**{column: good.records[column].mask(edited, value)}))
    assert "target_proportion: the figure is not that of the stored outcomes" in found


def test_older_statistics_excuse_intervals_but_no_values(folder, tmp_path):
    good = read_claim(folder / "uce.json")

    def said(**changed):
        edited = good.records["metric"].eq("target_proportion")
        records = good.records.assign(statistics=VERSION - 1)
        records = records.assign(**{name: records[name].mask(edited, value) for name, value in changed.items()})
        (tmp_path / "uce.json").write_text(text_of(Claim([RUN], records, good.outcomes)))
        return [sentence for sentence in violations(tmp_path) if "stored outcomes" in sentence]

    assert said(high=0.99) == [] and len(said(value=0.25)) == 1


def test_a_waived_rule_is_not_checked(claim):
    assert claim(n=1, waived={"n": "a pilot"}) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is not a result file"),
        ("[]", 'uce.json is not a result file of overpaint publish: it has no "format"'),
        ("{}", 'it has no "format"'),
        ('{"format": 2}', "format is 2"),
        ('{"format": 1}', 'it has no "runs"'),
        ('{"format": 1, "same": {}, "metrics": {}, "columns": ["a"], "records": [[1, 2]]}', "not a result"),
        (
            '{"format": 1, "runs": [], "waived": {}, "same": {"valu": 1}, "metrics": {"m": {}}, "columns": ["metric"], '
            '"records": [["m"]], "units": [], "outcomes": []}',
            "unknown column 'valu'.*did you mean 'value'",
        ),
        ("[" * 100_000, "is not a result file"),
    ],
    ids=lambda text: text[:40],
)  # fmt: skip
def test_a_file_that_is_no_claim_is_refused(tmp_path, text, said):
    path = tmp_path / "uce.json"
    path.write_text(text)
    with pytest.raises(overpaint.UserError, match=said):
        read_claim(path)
    assert len(violations(tmp_path)) == 1


@pytest.mark.parametrize(("column", "value"), [("versions", "{"), ("versions", '{"uce": "x"}'), ("given", "[]")])
def test_a_claim_with_a_column_that_is_no_mapping_is_refused(folder, tmp_path, column, value):
    claim = read_claim(folder / "uce.json")
    (tmp_path / "uce.json").write_text(text_of(Claim([RUN], claim.records.assign(**{column: value}))))
    (said,) = violations(tmp_path)
    assert f"in column '{column}', which takes a JSON mapping" in said


def _replaced(found, name, value):
    """The JSON of a claim with another value of a key, or of a column in its first record."""
    if name in found:
        return found | {name: value}
    number = list(found["same"]) + list(next(iter(found["metrics"].values())))
    assert name in number or name in found["columns"]
    if name in found["columns"]:
        found["records"][0][found["columns"].index(name)] = value
    for metric in found["metrics"].values():
        metric |= {name: value} if name in metric else {}
    return found | {"same": found["same"] | ({name: value} if name in found["same"] else {})}


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("runs", None, "runs takes a list of mappings"),
        ("runs", ["x"], "runs takes a list of mappings"),
        ("waived", None, "waived takes a mapping"),
        ("waived", ["n"], "waived takes a mapping"),
        ("direction", "sideways", "a direction other than up, down, zero"),
        ("method", None, "a row without 'method'"),
        ("method", 5, "method is 5, allowed is a text"),
        ("n", None, "a row without 'n'"),
        ("value", "abc", 'record 1 (church, target_proportion): value is "abc", allowed is a finite number'),
        ("value", float("nan"), "record 1 (church, target_proportion): value is NaN, allowed is a finite number"),
        ("high", float("inf"), "high is Infinity, allowed is a finite number"),
        ("value", 10**400, "allowed is a finite number"),
        ("value", True, "value is true, allowed is a finite number"),
        ("value", 7, "record 1 (church, target_proportion): value is 7.0, allowed is 0 to 1 (a share)"),
        ("difference", -1.5, "difference is -1.5, allowed is -1 to 1 (a share)"),
        ("p_value", 2, "p_value is 2.0, allowed is 0 to 1"),
        ("low", 1, "low is 1.0, allowed is a number up to high"),
        ("n", -3, "n is -3, allowed is 0 or more"),
        ("failed", -1, "failed is -1, allowed is 0 or more"),
        ("facet", "efficasy", "unknown facet 'efficasy' in"),
        ("facet", ["efficacy"], "takes a text or a whole number or a finite number or null"),
        ("seed", "x", 'seed is "x", allowed is a finite number'),
        ("columns", None, "columns takes a list of texts, got null"),
        ("records", {}, "records takes a list, got {}"),
        ("records", [5], "record 1 is 5, allowed is a list of"),
        ("records", [], "has no records"),
        ("same", [], "same takes a mapping of names to values, got []"),
        ("same", {"seed": [1]}, "same.seed takes a text or a whole number"),
        ("metrics", {}, """record 1 has metric 'target_proportion', which "metrics" does not describe"""),
        ("units", [[1]], "units takes lists of 5 values (prompt_id, seed, label, cluster, stratum)"),
        ("outcomes", [[0, [0], [1]]], "outcomes takes lists of a record, units, values and other values"),
        ("outcomes", [[999, [0], [1], [None]]], "outcomes names record 999, allowed are 0 to"),
        ("outcomes", [[0, [-1], [1], [None]]], "outcomes names unit -1, allowed are 0 to"),
        ("outcomes", [[0, [0], ["x"], [None]]], "outcomes has a value that is neither a finite number nor null"),
        ("outcomes", [[0, [0], [1], [None]]] * 2, "outcomes names a record twice"),
    ],
)
def test_a_value_that_is_no_record_s_is_one_sentence(folder, tmp_path, name, value, said):
    found = _replaced(json.loads((folder / "uce.json").read_text(encoding="utf-8")), name, value)
    (tmp_path / "uce.json").write_text(json.dumps(found), encoding="utf-8")
    (sentence,) = violations(tmp_path)
    assert "uce.json" in sentence and said in sentence and "\n" not in sentence
    with pytest.raises(overpaint.UserError, match=re.escape(sentence)):
        published(tmp_path)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda rows, columns: rows[1].pop(), "record 2 is {} fields, allowed is a list of {} fields"),
        (
            lambda rows, columns: rows.append(rows[0]),
            "(church, target_proportion) has the labels, settings and detector",
        ),
        (lambda rows, columns: columns.append("seed"), "has column 'seed' twice"),
    ],
)
def test_records_that_are_cut_or_repeated_are_refused(run, folder, tmp_path, damage, said):
    """By every command that reads the file."""
    found = json.loads((folder / "uce.json").read_text(encoding="utf-8"))
    said = said.format(len(found["columns"]) - 1, len(found["columns"]))
    damage(found["records"], found["columns"])
    (tmp_path / "uce.json").write_text(json.dumps(found), encoding="utf-8")
    for command in (["table", "--from"], ["publish", "--check"], ["site", "--from"], ["compare", str(folder)]):
        sentence = run(*command, str(tmp_path), code=2).stderr
        assert said in sentence and sentence.count("\n") == 1


def test_a_share_may_be_outside_of_its_interval_if_the_file_waives_that(claim):
    outside = {"low": 0.9, "value": 0.5, "high": 0.95, "only": "ira"}
    assert claim(**outside, waived={"intervals": "of another estimate"}) == []


def test_an_outcome_without_its_unit_is_refused(folder, tmp_path):
    found = json.loads((folder / "uce.json").read_text(encoding="utf-8"))
    found["outcomes"][0][2].pop()
    found["outcomes"][1][2].append(1)
    (tmp_path / "uce.json").write_text(json.dumps(found), encoding="utf-8")
    assert "more or fewer values than units" in violations(tmp_path)[0]


def test_cells_with_the_same_labels_and_other_settings_are_kept(folder):
    """`text=null` and `text='null'` have the same label. Records from before settings were recorded are replaced by label."""
    claim = read_claim(folder / "uce.json")
    other = Claim([RUN], claim.records.assign(settings="0123456789ab"), claim.outcomes)
    both = merged(claim, other)
    assert len(both.records) == 2 * len(claim.records) and len(both.outcomes) == 2 * len(claim.outcomes)
    assert merged(both, other).records["settings"].eq("0123456789ab").sum() == len(claim.records)
    unknown = Claim([RUN], claim.records.assign(settings=None), claim.outcomes)
    assert len(merged(unknown, claim).records) == len(claim.records)


def test_text_in_a_claim_returns_as_it_was(folder, tmp_path):
    """Hostile names, non-finite numbers, and outcomes of real numbers."""
    claim = read_claim(folder / "uce.json")
    records = claim.records.assign(concepts='a"b\\n\u202e,{}', value=float("nan"))
    outcomes = pd.DataFrame(
        [["ira", "p", 0, "x", "the prompt", "", 0.25, None]], columns=OUTCOME_COLUMNS
    ).assign(artefact=[0])  # fmt: skip
    path = tmp_path / "uce.json"
    path.write_text(text_of(Claim([RUN], records, outcomes)), encoding="utf-8")
    back = read_claim(path)
    assert set(back.records["concepts"]) == {'a"b\\n\u202e,{}'} and back.records["value"].isna().all()
    assert back.outcomes["value"].tolist() == [0.25] and back.outcomes["other"].isna().all()
    assert text_of(back) == path.read_text(encoding="utf-8")


def test_claims_merge_by_cell(folder):
    claim = read_claim(folder / "uce.json")
    assert merged(claim, claim).records.equals(claim.records)
    made = claims_of(claim.records, pd.DataFrame(), {"uce": [RUN]})
    assert (
        list(made) == ["uce"] and pd.read_csv(io.StringIO(render(made["uce"].records, "csv")))["method"].eq("uce").all()
    )


def test_of_two_files_with_one_figure_the_newest_components_count(folder, tmp_path):
    """Whatever the files are called, and even if the older method was judged by the newer statistics."""
    claim = read_claim(folder / "uce.json")
    for name, version, statistics in (("a", 2, VERSION), ("b", 1, VERSION + 1)):
        versions = [json.dumps(json.loads(text) | {"uce": version}) for text in claim.records["versions"]]
        records = claim.records.assign(versions=versions, value=version / 4, low=0.0, high=1.0, statistics=statistics)
        (tmp_path / f"{name}.json").write_text(text_of(Claim([RUN], records)), encoding="utf-8")
    records, _ = published(tmp_path)
    assert len(records) == len(claim.records) and set(records["value"]) == {0.5}


def test_merged_claims_have_the_marks_of_both_together():
    """Records of another attack join the corrections of the method, whichever command published them."""
    whole = read_claim(ROOT / "leaderboards" / "results" / "erasers" / "uce.json")
    plain = (whole.records["attack_name"] == "none").to_numpy()
    assert plain.any() and not plain.all()
    marks = view_named("facets").primary
    parts = [
        Claim([RUN], marked(whole.records[chosen].reset_index(drop=True), marks)[COLUMNS], pd.DataFrame())
        for chosen in (plain, ~plain)
    ]
    together = merged(*parts).records
    wanted = marked(together.drop(columns=["p_adjusted", "family", "mark"]), marks)
    assert together["mark"].tolist() == wanted["mark"].tolist()
    assert together["p_adjusted"].astype(float).equals(wanted["p_adjusted"].astype(float))
    apart = pd.concat([part.records for part in parts])["p_adjusted"].astype(float).tolist()
    assert together["p_adjusted"].astype(float).tolist() != pytest.approx(apart, nan_ok=True)
