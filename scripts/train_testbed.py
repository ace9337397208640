"""Trains the testbed from nothing: renders the world, then autoencoder, denoiser and oracles, then exports and checks.

    python scripts/train_testbed.py all --out work/testbed

Every stage continues from its last checkpoint in --out, so an interrupted run is resumed by the same command."""

import argparse
from pathlib import Path

from overpaint.testbed import stages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=[*stages.STAGES, "all"])
    parser.add_argument("--out", type=Path, required=True, help="working folder: pictures, checkpoints, log")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="single-thread training processes")
    parser.add_argument("--to", type=Path, default=Path("datasets/testbed"), help="where export and check put results")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    for stage in stages.STAGES if given.stage == "all" else [given.stage]:
        stages.STAGES[stage](given.out, given.to, given.workers, given.seed)


if __name__ == "__main__":
    main()
