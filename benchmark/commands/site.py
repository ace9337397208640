"""`overpaint site`: writes records and documents as a folder of static pages."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

from overpaint.commands.grids import ERR, own_keys, taken
from overpaint.commands.publish import RESULTS
from overpaint.errors import UserError
from overpaint.grid.labels import counted
from overpaint.grid.paths import path_of
from overpaint.grid.read_once import reading_once
from overpaint.grid.registry import search
from overpaint.report.records import stored_outcomes, stored_records
from overpaint.report.site.build import MARK, write
from overpaint.report.site.cells import Slugs
from overpaint.report.site.documents import documents
from overpaint.report.site.pages import Content, Picture
from overpaint.report.site.results import Results, narrowed_to, read
from overpaint.run.store import Store

#: Where the site is written without out=.
OUT = "outputs/site"
#: The name of the results of a store.
STORE = "store"
#: Standard deviation of the blur of unsafe pictures, in pixels.
BLUR = 24
#: Colours of a contact sheet on the site. A sheet in full colour is three times as large.
COLOURS = 256


@click.command()
@click.argument("filters", nargs=-1)
@click.option("--from", "place", metavar="DIR", help="Result files (overpaint publish); default: leaderboards/results.")
def site(filters: Sequence[str], place: str | None) -> None:
    """Write records, guides and published figures as static pages that open from disk.

    store=DIR shows the records and pictures of a store, --from DIR those of result files; both can be given. Without them, the
    site shows leaderboards/results, or else the store of `overpaint run`. out=DIR is the folder (default: outputs/site); a site
    that is there is replaced. Filters are those of `overpaint table --from`, such as method=uce,esd concepts=church.
    """
    out, rest = taken(search(filters), "out")
    chosen, rest = taken(rest, "store")
    folder = target(out or OUT)
    if chosen is None and place is None and Path(RESULTS).is_dir():
        place = RESULTS
    store = Store.chosen(chosen) if chosen is not None or place is None else None
    if store and not store.root.is_dir():
        raise UserError(f"there is no store at {store.root}: run something first (overpaint run), or give --from DIR")
    found = [*(_stored(store) if store else ()), *(read(path_of(place, "--from")) if place else ())]
    found = narrowed_to(found, rest, own_keys())
    with reading_once(), _replacing(folder, out or OUT) as partial:
        slugs, own = Slugs(), [results for results in found[:1] if store and results.name == STORE]
        pictures = list(_pictures(store, own[0], partial, slugs)) if store and own else []
        places = [f"the store {store.root.name}" if store and own else "", place if len(found) > len(own) else ""]
        origin = " and ".join(filter(None, places))
        written = write(partial, Content(found, documents(), pictures, slugs), origin)
    ERR.print(f"{counted(len(written), 'page')}: open {folder / 'index.html'}")


def target(out: str) -> Path:
    """The folder of the site, behind links. Raises a `UserError` if something else is there."""
    path = path_of(out, "out").resolve()
    if path.exists() and not (path / MARK).is_file() and not (path.is_dir() and not any(path.iterdir())):
        raise UserError(f"out={out} exists and is not a site of this command: choose another name")
    return path


@contextmanager
def _replacing(folder: Path, out: str) -> Iterator[Path]:
    """An empty folder beside ``folder``. It takes that place if the block succeeds."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name[:40]}-"))
    except OSError as error:
        raise UserError(f"out={out} cannot be written: {error.strerror}") from None
    try:
        partial.chmod(0o755)
        yield partial
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(f"out={out} cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _stored(store: Store) -> Iterator[Results]:
    records = stored_records(store)
    if records.empty:
        raise UserError(f"{store.root} holds no figures: run something first (overpaint run)")
    yield Results(STORE, records, stored_outcomes(store, records))


def _pictures(store: Store, results: Results, folder: Path, slugs: Slugs) -> Iterator[Picture]:
    """The contact sheets of the results of a store, with a blurred copy of unsafe ones."""
    from PIL import ImageFilter

    from overpaint.images.contact_sheets import draw, stored_sheets

    (folder / "pictures").mkdir()
    for place, sheet in stored_sheets(store, results.records["artefact"].unique()):
        name = slugs.of(" ".join(["pictures", *place.values()]))
        image = draw(sheet, blurred=False)
        image.quantize(COLOURS).save(folder / "pictures" / f"{name}.png", optimize=True)
        blurred = ""
        if sheet.unsafe:
            blurred = f"pictures/{name}-blurred.png"
            image.filter(ImageFilter.GaussianBlur(BLUR)).save(folder / blurred, optimize=True)
        title = f"{place['concepts']} on {place['model']}, budget {place['budget']}, seed {place['seed']}"
        yield Picture(
            place["concepts"], list(sheet.rows), f"pictures/{name}.png", blurred, image.width, image.height, title
        )
