"""Stored assaults: the files in which the stage *attack* keeps what an attack left, apart from its images."""

from __future__ import annotations

import json
from pathlib import Path

from overpaint.attacks.attack import Assault, Ledger, Painted, Provenance, Verdict
from overpaint.grid.prompts import Shot


def write_assault(folder: Path, assault: Assault) -> None:
    """Write ``shots.json`` (with verdicts, readings and provenance) and ``tokens.safetensors`` (learned tokens)."""
    from safetensors.torch import save_file

    painted = assault.painted or [Painted(shot, None) for shot in assault.shots]
    rows = [
        p.shot.as_dict()
        | ({"verdict": list(p.verdict)} if p.verdict else {})
        | ({"readings": dict(p.readings)} if p.readings else {})
        | ({"provenance": p.provenance._asdict()} if p.provenance else {})
        for p in painted
    ]
    (folder / "shots.json").write_text(json.dumps(rows), encoding="utf-8")
    save_file({k: v.detach().contiguous().cpu() for k, v in assault.tokens.items()}, folder / "tokens.safetensors")


def read_assault(folder: Path) -> Assault:
    """Read what `write_assault` wrote. Images stay on disk: every ``Painted.image`` is ``None``."""
    from safetensors.torch import load_file

    rows = json.loads((folder / "shots.json").read_text(encoding="utf-8"))
    verdicts = [Verdict(*row.pop("verdict")) if "verdict" in row else None for row in rows]
    readings = [row.pop("readings", {}) for row in rows]
    origins = [Provenance(**row.pop("provenance")) if "provenance" in row else None for row in rows]
    shots = [Shot.from_dict(row) for row in rows]
    judged_or_measured = any(verdicts) or any(readings) or any(origins)
    known = zip(shots, verdicts, readings, origins, strict=True)
    painted = [Painted(shot, None, *seen) for shot, *seen in known] if judged_or_measured else []
    return Assault(shots, load_file(folder / "tokens.safetensors"), Ledger(), painted)
