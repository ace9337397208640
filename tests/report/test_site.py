"""The site: its links, its numbers, its text from outside, and what it refuses."""

import errno
import json
import os
import re
import shutil
import signal
from collections import defaultdict
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import table_records
from PIL import Image
from site_pages import Element, Site, ids

from command_line import CommandLine
from overpaint.grid.registry import components
from overpaint.report.claims import published
from overpaint.report.figure_text import number
from overpaint.report.rendering import tables
from overpaint.report.site.cells import Slugs
from overpaint.report.site.leaderboard import board
from overpaint.report.site.pages import Content
from overpaint.report.site.plots import Point, _labels_of, heat_maps, pareto, scalings
from overpaint.report.site.results import PLACE, Results, blocks, read
from overpaint.report.tables import Entry
from overpaint.report.views import view_named

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "leaderboards" / "results"
#: Attributes whose address a browser loads on its own.
LOADED = {("script", "src"), ("img", "src"), ("link", "href"), ("button", "data-clear"), ("form", "action")}


def built(folder, *arguments):
    CommandLine(ROOT)("site", f"out={folder}", *arguments)
    return Site(folder)


#: The methods of larger experiments on the site of committed results.
FEW = ("none", "uce", "esd", "mace", "sld")

records_and_outcomes = cache(published)


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A folder with leaderboards/results: all experiments, those of more than five methods with few of them.

    The site of all methods is tested in tests/report/test_site_in_chromium.py.
    """
    folder = tmp_path_factory.mktemp("clone")
    for source in RESULTS.iterdir():
        files = list(source.glob("*.json"))
        place = folder / "leaderboards" / "results" / source.name
        place.mkdir(parents=True)
        for path in files if len(files) <= 5 else [source / f"{name}.json" for name in FEW]:
            if path.is_file():
                shutil.copy(path, place)
    return folder


@pytest.fixture(scope="module")
def known(clone):
    """Records and outcomes of each experiment on the site of committed results."""
    return {folder.name: records_and_outcomes(folder) for folder in (clone / "leaderboards" / "results").iterdir()}


@pytest.fixture(scope="module")
def committed(clone):
    """The site of leaderboards/results, which is what `overpaint site` writes in a clone."""
    CommandLine(clone)("site", "out=site")
    return Site(clone / "site")


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """The site of a store with a harmless and an unsafe concept."""
    folder = tmp_path_factory.mktemp("stored")
    grid = ["method=none,uce", "concepts=church,slime", "attack=none,synonym", "budget=smoke", "protocol.steps=2"]
    CommandLine(folder)("run", *grid, "store=store")
    return built(folder / "site", f"store={folder / 'store'}")


@pytest.fixture(params=["committed", "stored"])
def site(request):
    return request.getfixturevalue(request.param)


def test_every_link_leads_somewhere(site):
    assert site.broken_links() == []


def test_nothing_is_loaded_from_elsewhere(site):
    addresses = [
        f"{page}: {value}"
        for page, root in site.pages.items()
        for element in root.all()
        for name, value in element.attributes.items()
        if ((element.tag, name) in LOADED or name == "style") and re.search(r"//|url\(", value or "")
    ]
    assert addresses == []
    for name in ("style.css", "site.js"):
        text = (site.folder / name).read_text()
        assert not re.search(r"https?:|url\(|@import|fetch\(|XMLHttpRequest|import\(", text), name


def test_pages_can_be_read_without_seeing_them(site):
    """One h1, headings in order, texts for pictures and plots, heads for rows and columns, names for fields, unique ids."""
    for page, root in site.pages.items():
        assert next(root.all("html")).attributes["lang"] == "en"
        assert next(root.all("title")).text.strip()
        levels = [int(e.tag[1]) for e in root.all("h1", "h2", "h3", "h4", "h5")]
        nested = any("nested" in e.classes for e in root.all("article"))
        assert levels[0] == 1 and all(after <= before + 1 for before, after in pairwise(levels)), page
        assert nested or levels.count(1) == 1, page
        assert all(e.attributes.get("alt") for e in root.all("img")), page
        for plot in root.all("svg"):
            assert plot.attributes.get("aria-hidden") or next(plot.all("title")).text.strip(), page
        for table in root.all("table"):
            assert [e for e in table.all("th")], page
        named = [e.attributes["id"] for e in root.all() if "id" in e.attributes]
        assert len(named) == len(set(named)), page


def test_every_page_has_its_title(site):
    titles = [next(root.all("title")).text for page, root in site.pages.items()]
    assert len(set(titles)) == len(titles), sorted(t for t in titles if titles.count(t) > 1)


def rows(root):
    """The rows of the index: labels by head, and the cells of figures by the title of their column."""
    table = next(e for e in root.all("table") if "board" in e.classes)
    heads = [e.text.strip() for e in list(next(table.all("thead")).all("tr"))[1].all("th")]
    for row in next(table.all("tbody")).all("tr"):
        cells = [e for e in row.children if isinstance(e, Element)]
        labels = {head: cell.text.strip() for head, cell in zip(heads[:7], cells[:7], strict=True)}
        yield labels, {head.rstrip(" ↑↓"): cell for head, cell in zip(heads[7:], cells[7:], strict=True)}


def test_figures_of_the_index_are_those_of_the_records(committed, known):
    """Of one concept set: the records themselves, or the mean of their seeds. Of means: those that `overpaint table` shows."""
    columns, seen = view_named("leaderboard").columns, 0
    units = pd.concat([records for records, _ in known.values()]).drop_duplicates("metric").set_index("metric")["unit"]
    of_seeds, of_means = defaultdict(list), {}
    for name, (records, outcomes) in known.items():
        for concepts, part in records.groupby("concepts"):
            for record in part.to_dict("records"):
                for title, column in columns.items():
                    if (record["metric"], record["attack_name"]) == (column.metric, column.attack):
                        value = record["control"] if column.field == "control" else record["value"]
                        place = (name, concepts, *(record[label] for label in PLACE), record["method"], title)
                        of_seeds[place].append(np.nan if value is None else value)
        if name in ("erasers", "demo", "replacement"):
            (table,) = tables(records, "leaderboard", outcomes)
            label, place = (
                f"mean of {records['concepts'].nunique()} concepts",
                [records[name].unique().item() for name in PLACE],
            )
            for row in table.rows:
                for head, entry in zip(table.columns, row.entries, strict=True):
                    if entry is not None:
                        of_means[name, label, *place, row.names[0], head.title] = entry.value
    wanted = {place: np.mean(values) for place, values in of_seeds.items()} | of_means
    for labels, cells in rows(committed.pages["index.html"]):
        for title, cell in cells.items():
            place = (*(labels[name] for name in ("results", "concepts", *PLACE, "method")), title)
            if "none" in cell.classes:
                assert place not in wanted
            elif place in wanted or not labels["concepts"].startswith("mean"):
                value = wanted.pop(place)
                assert (cell.attributes["data-v"] == "") == (value is None or np.isnan(value)), place
                if cell.attributes["data-v"]:
                    assert float(cell.attributes["data-v"]) == pytest.approx(value, rel=1e-5), place
                    unit = units[columns[title].metric]
                    near = {
                        number(value * factor, unit) for factor in (1 - 1e-9, 1 + 1e-9)
                    }  # a mean may be half a digit
                    assert cell.of_class("v").text.removeprefix("≥ ") in near
                seen += 1
    assert seen > 2000 and wanted == {}


@pytest.mark.parametrize(("results", "method"), [("demo", "uce"), ("erasers", "esd")])
def test_a_mean_on_the_index_is_that_of_the_concepts_values(committed, known, results, method):
    records, _ = known[results]
    chosen = (records["metric"] == "target_proportion") & (records["attack"] == "none") & (records["method"] == method)
    of_concepts = records[chosen].groupby("concepts")["value"].mean()
    (cell,) = (
        cells["target"]
        for labels, cells in rows(committed.pages["index.html"])
        if (labels["results"], labels["method"]) == (results, method) and labels["concepts"].startswith("mean")
    )
    assert len(of_concepts) == {"demo": 3, "erasers": 7}[results]
    assert float(cell.attributes["data-v"]) == pytest.approx(np.mean(list(of_concepts)), rel=1e-5)


def test_a_concepts_page_has_every_record_with_n_and_interval(committed, known):
    records, _ = known["demo"]
    for concepts, part in records.groupby("concepts"):
        page = committed.pages[f"concepts/{concepts}.html"]
        headings = [e for e in page.all("h3") if e.attributes.get("id", "").startswith("figures-")]
        heading = next(e for e in headings if e.text.startswith("demo: "))
        siblings = [e for e in heading.parent.children if isinstance(e, Element)]
        table = next(e for e in siblings[siblings.index(heading) :] if e.tag == "div")
        heads = [e.text for e in next(table.all("thead")).all("th")]
        found = {}
        for row in next(table.all("tbody")).all("tr"):
            _, name, *cells = [e.text for e in row.children if isinstance(e, Element)]
            found |= {(name, head): cell for head, cell in zip(heads[2:], cells, strict=True)}
        assert len(part) == sum(bool(cell) for cell in found.values())
        for record in part.to_dict("records"):
            name = record["metric"].replace("_", " ") + (f", {record['attack']}" if record["attack"] != "none" else "")
            (text,) = [cell for (row, head), cell in found.items() if head == record["method"] and of(row, name)]
            if np.isnan(record["value"]):
                assert text.startswith("⊥")
                continue
            assert text.startswith(("", "≥ ")[text.startswith("≥")] + number(record["value"], record["unit"]))
            if not np.isnan(record["low"]):
                assert f"[{number(record['low'], record['unit'])}, {number(record['high'], record['unit'])}]" in text


def of(row, name):
    """Whether a row ``target proportion ↓ n = 24`` is of this figure."""
    return re.fullmatch(re.escape(name) + r" [↑↓]( n = \d+)?", row)


def test_a_cell_says_its_interval_n_failures_and_standing(committed):
    shown = [cells["target"] for _, cells in rows(committed.pages["index.html"])]
    measured = [cell for cell in shown if "none" not in cell.classes]
    assert len(measured) > 0.9 * len(shown)  # balance has no target
    for cell in measured:
        said = cell.of_class("sr").text
        assert re.match(r"95 % interval [\d.]+ to [\d.]+; n = \d+; \d+ failed", said)
        assert said.endswith("; best") == ("●" in cell.text) == ("best" in cell.classes)
        assert ("not shown to be worse than the best" in said) == ("○" in cell.text)
        low, value, high = (
            float(re.search(rf"--{name}:([\d.]+)", cell.of_class("bar").attributes["style"]).group(1)) for name in "lvh"
        )
        assert low <= value <= high and value == pytest.approx(100 * float(cell.attributes["data-v"]), abs=0.06)


def test_the_heat_map_is_the_panel(committed, known):
    golds = ("gold_floor", "gold_attacks", "gold_cce_steps")
    shown = [e for e in committed.pages["index.html"].all("table") if "heat" in e.classes]
    panels = {
        f"{folder}: {table.title}": table
        for folder in ("redteam", "perturbation", "benign_merge", "validity", *golds, "sweeps")
        for records, outcomes in [known[folder]]
        for concepts, of_concepts in records.groupby("concepts")
        if folder != "sweeps" or concepts == "church"  # the others have no attack, or one
        for table in tables(of_concepts, "panel", outcomes)
        if len(table.rows) > 2
    }
    assert {next(table.all("caption")).text for table in shown} == set(panels)
    for table in shown:
        panel = panels[next(table.all("caption")).text]
        wanted = {row.names[0]: row.entries for row in panel.rows}
        assert [e.text for e in next(table.all("thead")).all("th")][1:] == [head.title for head in panel.columns]
        for row in next(table.all("tbody")).all("tr"):
            attack, *cells = [e for e in row.children if isinstance(e, Element)]
            for cell, entry in zip(cells, wanted.pop(attack.text), strict=True):
                if entry is None:
                    assert "none" in cell.classes
                else:
                    assert cell.of_class("v").text.rstrip("†") == number(entry.value, entry.unit)
                    assert ("▲" in cell.text) == (entry.standing == "above all controls")
        assert wanted == {}


def test_provenance_names_commands_versions_and_hashes(committed, clone, known):
    text = committed.pages["made.html"].of_class("wide").parent.text
    for path in (clone / "leaderboards" / "results").rglob("*.json"):
        for run in json.loads(path.read_text())["runs"]:
            assert run["command"] in text
    records, _ = known["erasers"]
    hashes = " ".join(e.text for e in committed.pages["made.html"].all("p") if "hashes" in e.classes)
    assert set(records["settings"]) <= set(hashes.split())
    assert set(records["detector"]) <= set(re.findall(r"oracle v\d \w+", text))


def test_every_published_figure_is_on_a_papers_page(committed):
    pages = [root for page, root in committed.pages.items() if re.fullmatch(r"published/(?!index).+", page)]
    figures = sum(len(list(next(next(root.all("table")).all("tbody")).all("tr"))) for root in pages)
    lines = [len(path.read_text().splitlines()) - 1 for path in (ROOT / "leaderboards/published").glob("*.csv")]
    assert len(pages) == 22 and figures == sum(lines) >= 2_600


def test_every_method_has_a_page_and_its_card(committed):
    for name in components("method"):
        text = committed.pages[f"methods/{name}.html"].text
        if (ROOT / f"docs/methods/{name}.md").is_file():
            source = (ROOT / f"docs/methods/{name}.md").read_text()
            assert source.splitlines()[0].removeprefix("# ") in text
    assert "W' = W + α Rᵀ K (λI + α KᵀK + β PᵀP)⁻¹" in committed.pages["methods/uce.html"].text
    assert "<!--" not in "".join(root.text for root in committed.pages.values())


def test_every_guide_is_on_the_site_and_can_be_found(committed):
    text = (committed.folder / "search-index.js").read_text(encoding="utf-8")
    assert "</" not in text
    sections = json.loads(text.removeprefix("const SECTIONS = ").removesuffix(";\n"))
    for page, title, _ in sections:
        path, _, anchor = page.partition("#")
        assert title and (not anchor or anchor in ids(committed.pages[path])), page
    found = {page.partition("#")[0] for page, *_ in sections}
    guides = {path.relative_to(ROOT).with_suffix(".html").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert {page.removeprefix("docs/") if "docs/methods/" in page else page for page in guides} <= found


def test_unsafe_pictures_are_blurred_until_they_are_asked_for(stored):
    (button,) = [e for e in stored.pages["concepts/slime.html"].all("button") if "unsafe" in e.classes]
    blurred, clear = next(button.all("img")).attributes["src"], button.attributes["data-clear"]
    one, other = (np.asarray(Image.open(stored.folder / "concepts" / p).convert("L"), float) for p in (blurred, clear))
    sharpness = [np.abs(np.diff(picture, axis=1)).max() for picture in (one, other)]
    assert one.shape == other.shape and sharpness[0] < 8 < 100 < sharpness[1]
    assert [e for e in stored.pages["concepts/church.html"].all("button") if "unsafe" in e.classes] == []
    for page in ("concepts/church.html", "methods/uce.html"):
        shown = [
            e
            for e in stored.pages[page].all("img")
            if "church" in e.attributes["src"] and "pictures" in e.attributes["src"]
        ]
        assert shown and "rows none, uce" in shown[0].attributes["alt"]
    for page, root in stored.pages.items():
        for image in root.all("img"):
            assert "slime" not in image.attributes["src"] or "-blurred" in image.attributes["src"], page


HOSTILE = ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "</script><b>{{ 7 * 7 }}")


def test_hostile_text_stays_text(tmp_path):
    """Labels, reasons, commands and hashes of a result file that somebody else wrote."""
    script, image, template = HOSTILE
    folder = tmp_path / "claims" / "demo"
    folder.mkdir(parents=True)
    for name in ("none", "uce"):
        claim = json.loads((RESULTS / "demo" / f"{name}.json").read_text())
        place = {column: number for number, column in enumerate(claim["columns"])}
        claim["records"] = [record for record in claim["records"] if record[place["concepts"]] != "car"]
        for record in claim["records"]:
            if record[place["concepts"]] == "sketch":
                record[place["concepts"]] = script
        claim["runs"] = [{"command": image, "libraries": {script: image}, "models": [script], "machine": template}]
        claim["waived"] |= {"runs": script}
        if name == "uce":
            claim["same"] |= {"method": image, "method_name": template}
        (folder / f"{name}.json").write_text(json.dumps(claim))
    site = built(tmp_path / "site", "--from", str(tmp_path / "claims"))
    for page, root in site.pages.items():
        scripts = [e for e in root.all("script") if e.attributes.get("src") is None]
        assert [e.text for e in scripts] == ['document.documentElement.className = "js"'], page
        assert not [e for e in root.all() if any(name.startswith("on") for name in e.attributes)], page
        assert not [e for e in root.all("img") if e.attributes.get("src") == "x"], page
    texts = {page: root.text for page, root in site.pages.items()}
    assert script in texts["index.html"] and image in texts["index.html"]
    assert script in texts["made.html"] and template in texts["made.html"]
    assert all(path.name == Path(path.name).name and "<" not in path.name for path in site.folder.rglob("*"))
    assert "</" not in (site.folder / "search-index.js").read_text()


def test_different_names_have_different_files():
    slugs = Slugs()
    names = ["a/b", "a b", "A b", "..", "", "x" * 300, "x" * 301, "con", "é"]
    files = [slugs.of(name) for name in names]
    assert len({file.lower() for file in files}) == len(names)
    assert [slugs.of(name) for name in names] == files
    assert all(re.fullmatch(r"[\w-]{1,80}", file) for file in files)


def test_labels_of_a_plot_do_not_overlap_and_stay_in_the_picture():
    points = [Point(570, 16 + i * 8, 560, 570, 10, 40, name=f"method_{i}") for i in range(40)]
    labels = _labels_of(points)
    heights = [height for label in labels for height, _ in label.lines]
    assert sorted(text for label in labels for _, text in label.lines) == sorted(p.name for p in points)
    assert min(heights) >= 16 and all(after - before >= 15 for before, after in pairwise(sorted(heights)))
    few = _labels_of([Point(570, 340, 560, 570, 10, 40, name="a"), Point(560, 340, 560, 570, 10, 40, name="b")])
    assert max(height for label in few for height, _ in label.lines) < 400


def test_methods_at_one_place_of_a_plot_share_a_label():
    here = [Point(570, 16, 560, 570, 10, 40, name=f"method_{i}") for i in range(12)]
    (label,) = _labels_of(here)
    assert ", ".join(text.rstrip(",") for _, text in label.lines) == ", ".join(p.name for p in here)
    apart = _labels_of([Point(60, 50, 50, 70, 40, 60, name="one"), Point(300, 50, 290, 310, 40, 60, name="other")])
    assert [label.leader for label in apart] == [None, None]


def test_an_undefined_attack_is_in_the_heat_map():
    (results,) = read(RESULTS / "demo")
    records = results.records[results.records["concepts"] == "church"]
    failed = (records["attack_name"] == "cce") & (records["metric"] == "attack_success_any")
    records = records.assign(value=records["value"].mask(failed), why=records["why"].mask(failed, "too many failed"))
    (found,) = heat_maps(results.of(records))
    ((attack, squares),) = found.rows
    assert attack == "cce floor=false" and {square.text for square in squares} == {"⊥"}
    assert squares[0].said == "no interval; n = 24; 0 failed; undefined: too many failed"


def test_heat_maps_of_all_concepts_have_the_methods_in_one_order():
    (results,) = read(RESULTS / "demo")
    church = (results.records["concepts"] == "church").to_numpy()
    turned = pd.concat(
        [results.records[church], results.records[~church].iloc[::-1]]
    )  # other concepts: last method first
    found = list(heat_maps(results.of(turned)))
    order = [m for m in dict.fromkeys(turned["method"]) if m != "none"]
    assert len(found) == 3 and all(list(one.methods) == order for one in found)
    for one in found:
        own = turned[(turned["concepts"] == one.concepts) & (turned["attack_name"] == "cce")]
        own = own[own["metric"] == "attack_success_any"].set_index("method")
        ((_, squares),) = one.rows
        assert [square.text for square in squares] == [f"{own.loc[m, 'value']:.2f}" for m in order]


def test_a_figure_without_an_interval_says_so():
    from overpaint.report.site.cells import cell

    assert cell(None) is None
    undefined = cell(Entry(None, why="too few images", failed=3))
    assert (undefined.text, undefined.sort, undefined.bar) == ("⊥", "", None)
    assert undefined.said == "undefined: too few images; 3 failed"
    assert cell(Entry(12.0, unit="seconds", n=1)).said == "no interval; n = 1; 0 failed"
    assert cell(Entry(0.5, 0.2, 0.8, n=4, of=(2, 7))).part == "2/7"
    bound = cell(Entry(40, 20, None, "steps", n=4, bound=True, why="not reached"))
    assert bound.text == "≥ 40" and bound.bar is None
    assert bound.said == "95 % interval from 20, no upper limit; n = 4; 0 failed; a lower bound: not reached"


def test_the_same_records_give_the_same_bytes_and_replace_an_older_site(tmp_path):
    """Here behind a link, which keeps leading to the site."""
    arguments = ("--from", str(RESULTS / "demo"), "method=none,uce", "concepts=church")
    (tmp_path / "www").mkdir()
    (tmp_path / "link").symlink_to("www")
    first = built(tmp_path / "link", *arguments).files()
    (tmp_path / "www" / "old.html").write_text("old")
    assert built(tmp_path / "link", *arguments).files() == first and "index.html" in first
    assert (tmp_path / "link").is_symlink() and (tmp_path / "www" / "index.html").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"link", "www"}


def told_to_end(*_):
    os.kill(os.getpid(), signal.SIGTERM)


def on_a_full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/somewhere/.site-x/index.html")


@pytest.mark.parametrize(
    ("event", "code", "said"),
    [
        (told_to_end, 130, "interrupted"),
        (on_a_full_disk, 2, "overpaint: out=site cannot be written: No space left on device"),
    ],
)
def test_what_ends_the_command_leaves_no_temporary_folder(tmp_path, monkeypatch, event, code, said):
    monkeypatch.setattr("overpaint.commands.site.write", event)
    done = CommandLine(tmp_path)("site", "out=site", "--from", str(RESULTS / "demo"), code=code)
    assert done.stderr.strip() == said and not list(tmp_path.iterdir())


def test_filters_select_methods_and_concepts(tmp_path):
    for name in ("demo", "image_editing"):
        (tmp_path / "results" / name).mkdir(parents=True)
        for method in ("none", "uce", "esd"):
            shutil.copy(RESULTS / name / f"{method}.json", tmp_path / "results" / name)
    site = built(tmp_path / "site", "--from", str(tmp_path / "results"), "method=uce,esd", "concepts=sketch")
    (board,) = (e for e in site.pages["index.html"].all("table") if "board" in e.classes)
    methods = {link.attributes["href"] for link in board.all("a") if link.attributes["href"].startswith("methods/")}
    assert methods == {"methods/uce.html", "methods/esd.html"}
    assert {page for page in site.pages if page.startswith("concepts/")} == {
        "concepts/index.html",
        "concepts/sketch.html",
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["method=ucee"], "unknown method 'ucee'"),
        (["colour=red"], "unknown filter 'colour'"),
        (["outt=red"], "unknown filter 'outt' in demo; did you mean 'out'?"),
        (["--from", "nowhere"], "there is no folder"),
        (["store=nowhere"], "there is no store"),
        (["out=taken"], "out=taken exists and is not a site"),
        (["out=file/site"], "out=file/site cannot be written"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(tmp_path, arguments, said):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("")
    source = (
        [] if any(a in ("--from",) or a.startswith("store=") for a in arguments) else ["--from", str(RESULTS / "demo")]
    )
    done = CommandLine(tmp_path)("site", *source, *arguments, code=2)
    assert said in done.stderr.replace("\n", " ")
    assert len(done.stderr.strip().splitlines()) == 1
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "outputs") == ["file", "taken"]
    assert [p.name for p in (tmp_path / "taken").iterdir()] == ["mine.txt"]
    assert not (tmp_path / "outputs" / "site").exists()


def test_curves_show_each_manner_of_erasing_several_concepts():
    (found,) = read(RESULTS / "scaling")
    some = found.records[found.records["method"].isin(["none", "uce", "speed"])]
    merged = some.assign(concepts=some["concepts"].str.replace("in turn", "merged by sum"))
    both = found.of(pd.concat([some, merged]).drop_duplicates(["method", "concepts", "metric", "attack"]))
    lines = [line for curves in scalings(blocks(both)) for plot in curves.plots for line in plot.lines]
    paths = {manner: [line.path for line in lines if line.manner == manner] for manner in ("once", "turn", "merged")}
    assert paths["merged"] and paths["merged"] == paths["turn"] != paths["once"]


def test_concepts_that_were_named_by_hand_are_no_single_concept():
    (found,) = read(RESULTS / "demo")
    church = found.records[found.records["concepts"] == "church"]
    both = church.assign(concepts="church+car", given=json.dumps({"concepts.erase": ["church", "car"]}))
    one = church.assign(concepts="pier", given=json.dumps({"concepts.erase": "pier"}))
    means = [b for b in blocks(found.of(pd.concat([found.records, both, one]))) if b.averaged]
    assert means and all("church+car" not in b.averaged and {"church", "pier"} <= set(b.averaged) for b in means)


def test_curves_of_two_protocols_are_two_plots():
    (found,) = read(RESULTS / "scaling")
    some = found.records[found.records["method"].isin(["none", "uce"])]
    other = some.assign(protocol="dpm20", settings=some["settings"] + "x")
    (one,) = scalings(blocks(found.of(some)))
    (first, second) = scalings(blocks(found.of(pd.concat([some, other]))))
    assert len(first.plots) == len(second.plots) == len(one.plots) and first.name != second.name


def of_two_thresholds(records):
    return pd.concat([records, records.assign(threshold=0.8, settings=records["settings"] + "x")])


def test_blocks_of_two_thresholds_say_which():
    (found,) = read(RESULTS / "demo")
    some = found.records[found.records["method"].isin(["none", "uce"]) & (found.records["attack"] == "none")]
    single, split = (list(blocks(found.of(records))) for records in (some, of_two_thresholds(some)))
    assert {block.settings for block in single} == {""} and len(split) == 2 * len(single)
    assert {block.settings for block in split} == {"threshold 0.5", "threshold 0.8"}
    assert len({block.name for block in split}) == len(split)
    one, other = (board(Content([]), shown) for shown in (single, split))
    assert "settings" not in one.labels and "settings" not in one.filters
    assert other.labels[-1] == "settings" and other.filters["settings"] == ["threshold 0.5", "threshold 0.8"]
    (curves,) = read(RESULTS / "scaling")
    some = curves.records[curves.records["method"].isin(["none", "uce"])]
    first, second = scalings(blocks(curves.of(of_two_thresholds(some))))
    assert len(first.plots) == len(second.plots) and first.name != second.name


def small(*methods, concepts=("church", "car", "sketch")):
    """Results of two figures per method and concept set."""
    figures = {"target_proportion": {}, "neighbour_retention": {"direction": "up", "facet": "specificity"}}
    return Results(
        "small",
        table_records.frame(
            *(
                table_records.record(method, label, metric, 0.1 * (number + 1), 0.0, 1.0, **about)
                for number, method in enumerate(methods)
                for label in concepts
                for metric, about in figures.items()
            )
        ),
        pd.DataFrame(),
    )


def means(results):
    return {block.settings: block for block in blocks(results) if block.averaged}


def test_a_mean_counts_the_concepts_that_it_covers():
    """Values set by hand on concepts split a mean, and so does a threshold; a single concept set is no mean."""
    found = small("none", "uce")
    records = found.records
    assert {said: block.concepts for said, block in means(found).items()} == {"": "mean of 3 concepts"}
    labels = {"church": "church anchor=house", "car": "car anchor=house", "sketch": "sketch"}
    given = {
        name: {"concepts.erase": [name]} | ({"concepts.anchor": "house"} if name != "sketch" else {}) for name in labels
    }
    by_hand = records.assign(
        concepts=records["concepts"].map(labels),
        given=[json.dumps(given[name]) for name in records["concepts"]],
    )
    (mean,) = means(found.of(by_hand)).values()
    assert (mean.concepts, mean.settings) == ("mean of 2 concepts", "concepts.anchor=house")
    assert mean.averaged == ("church anchor=house", "car anchor=house")
    apart = found.of(records.assign(threshold=records["concepts"].map({"church": 0.4, "car": 0.5, "sketch": 0.6})))
    assert means(apart) == {}
    assert {block.concepts: block.settings for block in blocks(apart)}["car"] == "threshold 0.5"
    other = records["metric"].where(records["concepts"] != "sketch", "a_metric_without_a_column")
    (mean,) = means(found.of(records.assign(metric=other))).values()
    assert mean.averaged == ("church", "car") and mean.concepts == "mean of 2 concepts"


def test_the_front_leaves_out_means_over_fewer_concepts():
    found = small("none", "uce", "esd", "mace", concepts=("church", "car"))
    records = found.records
    fewer = found.of(records[(records["method"] != "uce") | (records["concepts"] == "church")])
    whole, partial = (pareto(*means(results).values()) for results in (found, fewer))
    assert whole.left_out == "" and "uce" in whole.front
    assert {point.name for point in partial.points} == {"none", "esd", "mace"} and "uce" not in partial.front
    assert partial.left_out == "Left out, because their means are over fewer concepts: uce (1 of 2)."
