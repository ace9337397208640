"""Tables in the terminal, in Markdown, LaTeX, CSV and JSON."""

import io
import json
import re
import shutil
import subprocess

import pandas as pd
import pytest
from rich.console import Console
from table_records import frame, piped, record, steps

from overpaint.report.figure_text import number
from overpaint.report.latex import latex_text
from overpaint.report.markdown import markdown_text
from overpaint.report.rendering import render
from overpaint.report.terminal import print_tables


def test_a_wide_table_is_printed_in_parts_and_no_column_is_cut():
    rows = frame(*(record(f"uce lamb={n}", "church", "target_proportion", n / 100, 0.0, 1.0) for n in range(1, 31)))
    console = Console(file=io.StringIO(), width=80)
    print_tables(rows, console=console)
    text = console.file.getvalue()
    assert all(f"{n / 100:.2f} [0.00, 1.00]" in text for n in range(1, 31)) and "columns 1 to" in text


@pytest.mark.parametrize("form", ["md", "latex"])
@pytest.mark.parametrize("view", ["facets", "methods"])
def test_failed_images_are_shown_beside_the_figure(form, view):
    one, other = (record("uce", c, "target_proportion", 0.25, 0.1, 0.5) for c in ("church", "car"))
    whole, holed = (render(frame(one, other | {"failed": n}), form, view) for n in (0, 3))
    assert "failed" not in whole and holed.count("(3 failed)") == 1


def test_many_floats_do_not_wait_for_a_place_all_at_once():
    """LaTeX stops with "Too many unprocessed floats" otherwise."""
    rows = frame(*(record("uce", f"concept {n}", "target_proportion", 0.5) for n in range(40)))
    between = render(rows, "latex").split("\\clearpage")
    assert [part.count("\\begin{table}") for part in between] == [16, 16, 8]


@pytest.mark.parametrize("form", ["terminal", "md", "latex"])
def test_a_figure_with_another_n_than_its_row_says_so(form, capsys):
    rows = frame(record("uce", "church", "ua", 0.5, n=24), record("esd", "church", "ua", 0.25, n=1))
    if form == "terminal":
        print_tables(rows)
    text = capsys.readouterr().out if form == "terminal" else render(rows, form)
    assert text.count("n=24") == text.count("(n=1)") == 1


@pytest.mark.parametrize("form", ["terminal", "md", "latex"])
def test_an_undefined_figure_says_why(form, capsys):
    rows = frame(record("uce", "church", "fid_reference", None, why="40 images, FID needs 500", failed=24))
    if form == "terminal":
        print_tables(rows)
        text = capsys.readouterr().out
    else:
        text = render(rows, form)
    assert "(1) (24 failed)" in text and "(1) 40 images, FID needs 500" in text


def test_a_lower_bound_is_marked():
    row = record("uce", "church", "relearn_steps_to_half", 40, 20, 40, attack="relearn", unit="steps")
    free, bound = (render(frame(row | {"why": why}), "md") for why in ("", "censored: not back"))
    assert "| 40 [20, 40] |" in free and "≥" not in free
    assert "| ≥ 40 [20, 40] (1) |" in bound and "≥ a lower bound" in bound and "(1) censored: not back" in bound


FORMS = {
    "md": "[20, ∞)",
    "latex": r"$^{\infty}_{20}$",
    "terminal": "[20, ∞)",
}


@pytest.mark.parametrize(("form", "text"), FORMS.items())
@pytest.mark.parametrize("why", ["", "lower bound: half is not reached"])
def test_an_interval_without_an_upper_limit_is_open_in_every_format(form, text, why, capsys):
    rows = frame(steps(40, 20, None, why))
    if form == "terminal":
        print_tables(rows, console=Console(width=200))
        shown = capsys.readouterr().out
    else:
        shown = render(rows, form)
    assert text in shown and "nan" not in shown
    assert (r"$\geq$ 40" if form == "latex" else "≥ 40") in shown or not why


def test_the_long_form_has_no_upper_limit_where_an_interval_is_open():
    rows = frame(steps(40, 20, None))
    (row,) = json.loads(render(rows, "json"))
    assert (row["low"], row["high"]) == (20, None)
    assert pd.read_csv(io.StringIO(render(rows, "csv")))["high"].isna().all()


def test_json_holds_every_digit():
    rows = frame(record("uce", "church", "ua", 1 / 3, 0.2, 0.5) | {"p_value": 1.25e-12})
    (row,) = json.loads(render(rows, "json"))
    assert (row["value"], row["p_value"], row["control"]) == (1 / 3, 1.25e-12, None)


def test_csv_and_json_hold_the_tables_of_a_view(records):
    table = pd.read_csv(io.StringIO(render(records, "csv", "methods")))
    assert table[["method", "column", "value"]].to_numpy().tolist()[0] == ["uce", "target, objects", pytest.approx(0.3)]
    assert set(table["direction"]) == {"down"} and len(table) == 3
    (read,) = json.loads(render(records, "json", "methods"))
    assert read["columns"][0] == {"title": "target, objects", "direction": "down", "n": 20} | {
        "column": "target, objects"
    }
    assert read["rows"][1]["entries"][0]["why"] == "no images" and "↓ lower is better" in read["legend"]
    assert read["provenance"]["records"] == 5 and read["provenance"]["detectors"] == ["eye v1"]


HOSTILE = [
    "[/x]",
    "[v] dog",
    "a | b",
    "*bold* _it_ `code`",
    "<script>",
    "\x1b[31mred",
    "=1+1",
    "r\u202eevil",
    "\\input{x}",
    "a\nb",
]


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("form", ["terminal", "md", "latex", "csv", "json"])
def test_names_are_printed_as_they_are(name, form):
    rows = frame(
        record("uce", name, "target_proportion", 0.25, 0.1, 0.5), record(name, "x", "target_proportion", None, why=name)
    )
    if form == "terminal":
        console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None)
        print_tables(rows, console=console)
        text = console.file.getvalue()
        assert "\x1b[31m" not in text and "\u202e" not in text
        assert name.isprintable() <= (name in text)
    else:
        text = render(rows, form)
    if form == "md":
        assert len({len(row) for row in piped(text.replace("\\|", "¦"))}) == 1 and "\x1b" not in text
    if form == "csv":
        assert pd.read_csv(io.StringIO(text))["concepts"][0] == name
    if form == "json":
        assert json.loads(text)[0]["concepts"] == name


def test_markdown_escapes_mark_up():
    assert markdown_text("*a* [b](c) <d> e|f `g` in_word _h_") == r"\*a\* \[b\](c) \<d\> e\|f \`g\` in_word \_h\_"


def test_latex_escapes_what_it_would_read_as_commands():
    assert latex_text(r"a_b {c} $d \e 50 % ≠") == r"a\_b \{c\} \$d \textbackslash{}e 50 \% $\neq$"


def test_latex_is_a_float_of_one_column(records):
    """Its structure: balanced groups and environments, and as many cells in every row as columns."""
    text = render(records, "latex", "methods")
    assert text.startswith("% These tables need \\usepackage{booktabs} and \\usepackage{graphicx}.")
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 1
    assert r"\label{tab:m-mean-over-church-car-sketch-1}" in text
    assert "0.30$^{0.44}_{0.19}$" in text and text.count("{") == text.count("}")
    assert_aligned(text)


def assert_aligned(text):
    """Every row of every tabular has as many cells as the tabular has columns; at most five of them hold figures."""
    parts = re.findall(r"\\begin\{tabular\}\{(l+)(r+)\}(.+?)\\end\{tabular\}", text, re.S)
    assert parts
    for names, figures, body in parts:
        rows = [row for row in body.splitlines() if row.endswith(r"\\")]
        assert {row.count(" & ") + 1 for row in rows} == {len(names + figures)} and len(figures) <= 5


def test_a_wide_latex_table_is_split_into_parts(three):
    rows, outcomes = three
    metrics = ("target_proportion", "neighbour_retention", "ira", "cra", "in_prompt_preservation", "prompt_agreement")
    wide = pd.concat([rows.assign(metric=metric) for metric in metrics], ignore_index=True)
    text = render(wide, "latex", "methods", outcomes)
    assert text.count(r"\begin{tabular}") == 2 and text.count(r"\begin{table}") == 1
    assert r"\textbf{0.00}" in text
    assert_aligned(text)


def compiled(table, folder):
    """What pdflatex says of a table in a document of two columns. It must not stop with an error."""
    head = r"\documentclass[twocolumn]{article}\usepackage{booktabs}\usepackage{graphicx}\begin{document}"
    (folder / "table.tex").write_text(head + table + r"\end{document}", encoding="utf-8")
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "table.tex"],
        cwd=folder, capture_output=True, text=True, errors="replace", check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
    return done.stdout


@pytest.mark.skipif(
    not shutil.which("pdflatex"), reason="needs LaTeX with booktabs (Debian: texlive-latex-recommended)"
)
@pytest.mark.parametrize("view", ["facets", "methods", "mace", "ranks", "pairs"])
def test_latex_compiles_as_it_is_printed(three, view, tmp_path):
    """In a document of two columns, with hostile names, without an overfull line."""
    rows, outcomes = three
    names = dict(zip(rows["method"], ("none", r"\input{/x} # 50% _a^b~ 教会 Ł é", "mace σ≥−±…"), strict=True))
    rows = rows.assign(method=rows["method"].map(names), method_name=rows["method"].map(names), why="⊥ € ‘x’")
    found = [rows, rows.assign(metric="acc_e"), rows.assign(metric="celebrity_s", value=None)]
    table = render(pd.concat(found, ignore_index=True), "latex", view, outcomes)
    assert r"Overfull \hbox" not in compiled(table, tmp_path) and (tmp_path / "table.pdf").is_file()


@pytest.mark.parametrize("start", "=+-@\t\r")
def test_a_spreadsheet_runs_no_cell(start):
    rows = frame(record("uce", f"{start}cmd()", "target_proportion", 0.25, difference=-0.5))
    safe = pd.read_csv(io.StringIO(render(rows, "csv", spreadsheet=True), newline=""), dtype=str, keep_default_na=False)
    assert safe["concepts"][0].startswith("'") and safe["difference"][0] == "-0.5"
    assert "'" not in render(rows, "csv")


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (-0.001, "fraction", "0.00"),
        (-0.3, "fraction", "-0.30"),
        (0.875 - 1e-15, "fraction", "0.88"),  # the same mean, summed on two CPUs
        (0.875 + 1e-15, "fraction", "0.88"),
        (421e3, "bytes", "421 kB"),
        (0.00129, "seconds", "0.00129 s"),
        (26.17, "dB", "26.2 dB"),
        (2.0, "rank", "2"),
        (141.3, "", "141"),
    ],
)
def test_numbers_are_short_and_have_their_unit(value, unit, text):
    assert number(value, unit) == text


def test_latex_prints_quotation_marks():
    assert latex_text("‘a’") == r"\textquoteleft{}a\textquoteright{}"


def large(methods, metrics):
    """Records of many methods and of as many columns of view `leaderboard`."""
    return frame(*(record(f"method{n}", "church", m, 0.5, 0.4, 0.6) for n in range(methods) for m in metrics))


LARGE = "target_proportion neighbour_retention ira cra in_prompt_preservation prompt_agreement erase_seconds".split()


def test_a_latex_table_that_fits_on_a_page_is_one_float():
    assert render(large(4, LARGE), "latex", "leaderboard").count(r"\begin{table}") == 1


def test_a_high_latex_table_becomes_several_floats():
    """All rows and columns are there once, the notes below the last part; labels differ."""
    text = render(large(90, LARGE), "latex", "leaderboard")
    floats = re.findall(r"\\begin\{table\}(.+?)\\end\{table\}", text, re.S)
    labels = re.findall(r"\\label\{(.+?)\}", text)
    assert len(floats) > 2 and len(set(labels)) == len(floats)
    assert f"(1 of {len(floats)})}}" in floats[0] and f"({len(floats)} of {len(floats)})}}" in floats[-1]
    assert [r"\scriptsize" in part for part in floats] == [False] * (len(floats) - 1) + [True]
    assert text.count("0.50$^{0.60}_{0.40}$") + text.count(r"\textbf{0.50}$^{0.60}_{0.40}$") >= 90 * (len(LARGE) - 1)
    assert_aligned(text)


@pytest.mark.skipif(
    not shutil.which("pdflatex"), reason="needs LaTeX with booktabs (Debian: texlive-latex-recommended)"
)
@pytest.mark.parametrize("methods", [20, 37, 90])
def test_no_latex_float_is_higher_than_a_page(methods, tmp_path):
    table = render(large(methods, LARGE), "latex", "leaderboard")
    assert "Float too large" not in compiled(table, tmp_path)
