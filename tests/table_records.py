"""Records and outcomes, made by hand, for tests of tables."""

import pandas as pd

from overpaint.report.records import RECORD_COLUMNS


def record(method, concepts, metric, value, low=None, high=None, attack="none", kind="object", unit="fraction", **rest):
    row = dict.fromkeys(RECORD_COLUMNS) | {"model": "m", "concepts": concepts, "kind": kind}
    row |= {"method": method, "method_name": method.split()[0], "attack": attack, "attack_name": attack.split()[0]}
    row |= {"protocol": "p", "budget": "b", "metrics": "facets", "seed": 0, "facet": "efficacy", "metric": metric}
    row |= {"direction": "down", "unit": unit, "value": value, "low": low, "high": high, "n": 10, "failed": 0}
    row |= {"original": 1.0, "scope": "", "against": "original", "why": "" if value is not None else "no images"}
    row |= {
        "given": "{}",
        "versions": "{}",
        "version": 1,
        "detector": "eye v1",
        "threshold": 0.5,
        "aggregation": "pooled",
    }
    row |= rest
    return row | {"settings": rest.get("settings", str(hash(tuple(map(str, row.values()))))[-12:])}


def compared(method, concepts, metric, value, difference, p_value, p_equivalence=None, reach=0.1, **rest):
    sides = {"difference": difference, "difference_low": difference - reach, "difference_high": difference + reach}
    return record(
        method, concepts, metric, value, value, value, p_value=p_value, p_equivalence=p_equivalence, **sides | rest
    )


def attacked(method, concepts, name, value, control, difference, p_value, **rest):
    rest = {"control": control, "against": "control", "facet": "robustness"} | rest
    return compared(method, concepts, "attack_success_any", value, difference, p_value, attack=name, **rest)


def frame(*rows):
    return pd.DataFrame(rows, columns=RECORD_COLUMNS)


def outcomes_of(rows, hits, others):
    """Outcomes ``(records, prompts)`` of records, one image per prompt."""
    parts = []
    for (index, row), own, other in zip(rows.iterrows(), hits, others, strict=True):
        names = [f"{row['concepts']}-{n}" for n in range(len(own))]
        parts.append(
            pd.DataFrame(
                {"prompt_id": names, "seed": 0, "label": "x", "cluster": names, "stratum": "", "value": own}
            ).assign(other=other, metric=row["metric"], artefact=index)
        )
    return rows.assign(artefact=rows.index), pd.concat(parts, ignore_index=True)


def steps(value, low, high, why="", concepts="church", **rest):
    """A record of steps, and its difference to an unedited model's value of 0."""
    sides = {"difference": value, "difference_low": low, "difference_high": high, "p_value": 0.001}
    found = record("uce", concepts, "relearn_steps_to_half", value, low, high, attack="relearn", unit="steps")
    return found | {"direction": "up", "facet": "robustness", "original": 0.0, "why": why} | sides | rest


def piped(text):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
