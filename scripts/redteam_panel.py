"""Draw the red-team panel, attacks × erasers, from its records.

    overpaint table experiment=redteam … --format csv > records.csv
    python scripts/redteam_panel.py records.csv panel.png            # a heat map
    python scripts/redteam_panel.py records.csv                      # the same as a Markdown table
    python scripts/redteam_panel.py records.csv --differences uce    # one eraser with its differences to both controls

A cell shows three shares of prompts: those with the concept in at least one of the attack's images, in at least one of as many
images with fresh seeds, and in at least one of as many images with random prefixes. The colour is the paired difference to
random prefixes. A cell is framed (bold in the table) if the attack is above both controls, and italic if it is above fresh seeds
only. "Above" is a positive difference that the records mark as different, corrected for the tests of the eraser. † marks attacks
that bypass the defence.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from overpaint.grid.scope import OUTSIDE
from overpaint.report.families import DIFFERS

#: Column of a cell -> (metric, column of the record).
NEEDED = {
    "any": ("attack_success_any", "value"),
    "seeds": ("attack_success_any", "control"),
    "prefixes": ("attack_beyond_prefix", "control"),
    "difference": ("attack_beyond_prefix", "difference"),
}
#: Column of a cell -> the metric whose difference to its control it is about.
ABOVE = {"above_seeds": "attack_success_any", "above_prefixes": "attack_beyond_prefix"}


def of_metrics(records: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The records of attacks by metric, with (method, attack) as index."""
    attacks = records[(records["against"] == "control") | records["metric"].isin(["attack_floor", "attack_unrelated"])]
    return {metric: part.set_index(["method", "attack"]) for metric, part in attacks.groupby("metric", sort=False)}


def above(compared: pd.DataFrame) -> pd.Series:
    """Whether each attack is above its control: the records mark a difference, and it is positive."""
    return compared["mark"].eq(DIFFERS) & (compared["difference"] > 0)


def cells(records: pd.DataFrame) -> pd.DataFrame:
    """One row per (method, attack) with both controls, in the order of the records. Columns: `NEEDED`, `ABOVE`, ``outside``."""
    by_metric = of_metrics(records)
    found = pd.DataFrame({name: by_metric[metric][column] for name, (metric, column) in NEEDED.items()})
    for name, metric in ABOVE.items():
        found[name] = above(by_metric[metric])
    found["outside"] = by_metric["attack_beyond_prefix"]["scope"].eq(OUTSIDE)
    return found.dropna(subset=["any", "seeds", "prefixes"])


def told_apart(cell: pd.Series) -> str:
    """The controls that the attack is above: ``both``, fresh ``seeds`` only, or neither."""
    if not cell["above_seeds"]:
        return ""
    return "both" if cell["above_prefixes"] else "seeds"


def markdown(found: pd.DataFrame, methods: list[str]) -> str:
    """A Markdown table of the cells, one column per method."""
    attacks = dict.fromkeys(attack for method, attack in found.index if method in methods)
    lines = ["| attack | " + " | ".join(methods) + " |", "|---" * (len(methods) + 1) + "|"]
    for attack in attacks:
        row = [f"`{attack}`"]
        for method in methods:
            if (method, attack) not in found.index:
                row.append("")
                continue
            cell = found.loc[(method, attack)]
            mark = {"both": "**", "seeds": "*"}.get(told_apart(cell), "")
            text = f"{mark}{cell['any']:.2f}{mark} / {cell['seeds']:.2f} / {cell['prefixes']:.2f}"
            row.append(text + (" †" if cell["outside"] else ""))
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def differences(records: pd.DataFrame, method: str) -> str:
    """A Markdown table of one eraser: each attack with its differences to both controls, and its floors."""
    by_metric = {name: part.loc[method] for name, part in of_metrics(records[records["method"] == method]).items()}
    seeds, prefixes = (by_metric[metric] for metric in ABOVE.values())
    titles = "attack|any image|single image|seeds|attacked − seeds|prefixes|attacked − prefixes|unseen|unrelated".split(
        "|"
    )
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for attack in prefixes.index:
        one = {name: part.loc[attack] for name, part in by_metric.items() if attack in part.index}
        lines.append(
            f"| `{attack}`{' †' if prefixes['scope'][attack] == OUTSIDE else ''} | {interval(seeds.loc[attack], 'value')} | "
            f"{one['attack_success']['value']:.2f} | {seeds['control'][attack]:.2f} | {gap(seeds.loc[attack])} | "
            f"{prefixes['control'][attack]:.2f} | {gap(prefixes.loc[attack])} | "
            f"{one['attack_floor']['value']:.2f} | {one['attack_unrelated']['value']:.2f} |"
        )
    return "\n".join(lines)


def interval(record: pd.Series, of: str = "difference") -> str:
    """The ``difference`` of a record, or its ``value``, with its interval."""
    low, high = ("low", "high") if of == "value" else (f"{of}_low", f"{of}_high")
    text = f"{record[of]:.2f} [{record[low]:.2f}, {record[high]:.2f}]"
    return text.replace("-0.00", "0.00").replace("-", "−")


def gap(record: pd.Series) -> str:
    """A difference with its interval, bold if the records mark it."""
    return f"**{interval(record)}**" if record["mark"] == DIFFERS else interval(record)


def draw(found: pd.DataFrame, methods: list[str], path: Path) -> None:
    """Draw the cells as a heat map. Attacks are sorted by their mean difference to random prefixes, largest first."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = found[found.index.get_level_values("method").isin(methods)]
    excess = found["difference"].unstack("method")[methods]
    excess = excess.loc[excess.mean(axis=1).sort_values(ascending=False).index]
    figure, axes = plt.subplots(figsize=(1.2 + 0.82 * len(methods), 1.4 + 0.5 * len(excess)), dpi=110)
    image = axes.imshow(excess.to_numpy(), cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    for y, attack in enumerate(excess.index):
        for x, method in enumerate(methods):
            if (method, attack) in found.index:
                write(axes, x, y, found.loc[(method, attack)])
    axes.set_xticks(range(len(methods)), methods, rotation=35, ha="left", rotation_mode="anchor")
    axes.set_yticks(range(len(excess)), excess.index)
    axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, fraction=0.02, pad=0.01)
    bar.set_label("attacked − random words, prompts that show the concept")
    axes.set_xlabel(
        "large: any picture of the attack; small: as many of fresh seeds, as many behind random words\n"
        "framed: above both controls (5 %, corrected per eraser); slanted: above fresh seeds alone; † behind the defence",
        size=8,
    )
    figure.tight_layout()
    figure.savefig(path)


def write(axes, x: int, y: int, cell: pd.Series) -> None:
    """Write the figures of one cell, and its frame if the attack differs from both controls."""
    from matplotlib.patches import Rectangle

    apart, place = told_apart(cell), {"ha": "center", "va": "center"}
    place["color"] = "white" if abs(cell["difference"]) > 0.6 else "black"
    style = {"both": {"weight": "bold"}, "seeds": {"style": "italic"}}.get(apart, {})
    axes.text(x, y - 0.12, f"{cell['any']:.2f}" + ("†" if cell["outside"] else ""), **place, **style)
    axes.text(x, y + 0.26, f"{cell['seeds']:.2f}  {cell['prefixes']:.2f}", size=6.5, **place)
    if apart == "both":
        axes.add_patch(Rectangle((x - 0.47, y - 0.47), 0.94, 0.94, fill=False, edgecolor="black", linewidth=1.4))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path, help="what overpaint table --format csv printed")
    parser.add_argument(
        "picture", type=Path, nargs="?", help="PNG or SVG to draw; without it a Markdown table is printed"
    )
    parser.add_argument("--concepts", help="which concept set (the first one of the records)")
    parser.add_argument("--methods", help="which erasers, comma-separated (all but the unedited model)")
    parser.add_argument(
        "--differences", metavar="METHOD", help="print this eraser with its differences to both controls"
    )
    asked = parser.parse_args()
    records = pd.read_csv(asked.records, low_memory=False)
    sets = list(records["concepts"].unique())
    if (asked.concepts or sets[0]) not in sets:
        parser.error(f"no records of {asked.concepts} in {asked.records}: it has {', '.join(sets)}")
    records = records[records["concepts"] == (asked.concepts or sets[0])]
    found = cells(records)
    there = [method for method in found.index.get_level_values("method").unique() if method != "none"]
    methods = (asked.differences or asked.methods or ",".join(there)).split(",")
    missing = [method for method in methods if method not in there]
    if missing:
        parser.error(f"no attacked records of {', '.join(missing)} in {asked.records}: it has {', '.join(there)}")
    if asked.differences:
        print(differences(records, asked.differences))
    elif asked.picture:
        draw(found, methods, asked.picture)
    else:
        print(markdown(found, methods))


if __name__ == "__main__":
    main()
