"""Train the testbed from scratch: render the world, train autoencoder, denoiser and oracles, export and check.

    python scripts/train_testbed.py all --out work/testbed

    python scripts/train_testbed.py gold --out work/gold

trains the gold references: a trunk without four concepts, a base with all four, and golds that each lack one of them.

Every stage continues from its last checkpoint in --out. To resume an interrupted run, repeat the command."""

import argparse
from pathlib import Path

from overpaint.testbed import gold, stages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=[*stages.STAGES, "all", "gold"])
    parser.add_argument("--out", type=Path, required=True, help="working folder: pictures, checkpoints, log")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="single-thread training processes")
    parser.add_argument("--to", type=Path, help="where export and check put results (default: datasets/testbed)")
    golds = parser.add_argument_group("gold")
    golds.add_argument("--only", help=f"comma-separated models, of {', '.join((*gold.MODELS, *gold.SCRATCH))}")
    golds.add_argument(
        "--do", default="train", help="comma-separated, of train, export, agreement, ship (default: train)"
    )
    golds.add_argument("--trunk-seed", type=int, help="continue the trunk of this seed (default: --seed)")
    golds.add_argument("--pictures", help="pictures in the trunk's two legs and in a continuation: 160000,88000,60000")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    if given.stage == "gold":
        names = given.only.split(",") if given.only else list(gold.MODELS)
        legs = gold.Legs(*map(int, given.pictures.split(","))) if given.pictures else gold.Legs()
        gold.run(given.out, given.to, given.workers, given.seed, given.trunk_seed, names, given.do.split(","), legs)
        return
    for stage in stages.STAGES if given.stage == "all" else [given.stage]:
        stages.STAGES[stage](given.out, given.to or Path("datasets/testbed"), given.workers, given.seed)


if __name__ == "__main__":
    main()
