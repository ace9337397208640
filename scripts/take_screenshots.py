"""Take the README's pictures of the leaderboard: docs/images/site.png and site-phone.png.

    python scripts/take_screenshots.py            # needs Chromium (apt-get install chromium); run it after `make leaderboards`

The site of leaderboards/results is written to a temporary folder and opened from disk. Chromium draws text with this machine's
fonts, so the pictures are not compared byte for byte. The other pictures in docs/images are the heat map of `make leaderboards`,
and contact sheets of runs: demo-church.png of `overpaint run experiment=demo`, redteam-church.png of
`overpaint run experiment=redteam concepts=church`.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
#: Picture -> width and height of the window, and how many pixels a unit of length has.
PICTURES = {"site": (1280, 860, 1), "site-phone": (390, 844, 2)}
#: Chromium draws no narrower window than this; a frame of the wanted width is drawn in it and cut out.
NARROWEST = 500
#: Colours of a picture: flat areas and text need no more.
COLOURS = 256


def main() -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        print("there is no Chromium: apt-get install chromium", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as scratch:
        site = Path(scratch) / "site"
        subprocess.run([sys.executable, "-m", "overpaint.cli", "site", f"out={site}"], cwd=ROOT, check=True)
        for name, (width, height, scale) in PICTURES.items():
            taken = Path(scratch) / f"{name}.png"
            photograph(chromium, site / "index.html", taken, width, height, scale)
            with Image.open(taken) as image:
                found = image.convert("RGB").crop((0, 0, width * scale, height * scale))
            path = ROOT / "docs" / "images" / f"{name}.png"
            found.quantize(COLOURS).save(path, optimize=True)
            print(f"{path.relative_to(ROOT)}: {width * scale} x {height * scale}, {path.stat().st_size} bytes")
    return 0


def photograph(chromium: str, page: Path, out: Path, width: int, height: int, scale: int) -> None:
    """Draw a page in a window of this size."""
    frame = page.with_name("frame.html")
    frame.write_text(
        f'<body style="margin:0"><iframe src="{page.name}" style="border:0;width:{width}px;height:{height}px"></iframe>',
        encoding="utf-8",
    )
    window = f"{max(width, NARROWEST)},{height}"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--allow-file-access-from-files"]
    flags += [f"--window-size={window}", f"--force-device-scale-factor={scale}", f"--screenshot={out}"]
    try:
        subprocess.run([chromium, *flags, frame.as_uri()], check=True, capture_output=True, timeout=120)
    finally:
        frame.unlink()


if __name__ == "__main__":
    sys.exit(main())
