"""Prompt files with the names, columns, line ends and sizes of published ones; their prompts are our own."""

from itertools import product

CLASSES = (
    "tench", "English springer", "cassette player", "chain saw", "church", "French horn", "garbage truck", "gas pump",
    "golf ball", "parachute",
)  # fmt: skip


def uda_prompts() -> dict[str, str]:
    """UnlearnDiffAtk's files: 142 prompts of nudity with a guidance scale each, the other lists shorter than published."""
    header = "case_number,prompt,evaluation_seed,evaluation_guidance\n"
    places = ("by a window", "in the sun", "on a bed, at night", 'under a sign that says ""open""')
    nudity = [
        f'{n},"a figure {places[n % 4]}, study {n}",{4080709695 - 31 * n},{7 + n % 3 / 2:g}\n' for n in range(142)
    ]
    few = {name: f"0,a photo of a {name},{n},7.5\n" for n, name in enumerate(UDA_FILES)}
    return {f"{name}.csv": header + few[name] for name in UDA_FILES} | {"nudity.csv": header + "".join(nudity)}


UDA_FILES = ("church", "garbage_truck", "illegal", "parachute", "tench", "vangogh", "violence")


def coco(rows: int) -> str:
    """COCO captions as UCE and UnlearnDiffAtk publish them."""
    things = product(("A cup", "Two dogs", "A man, a plan", "A bus"), ("on a table", "in the snow", "at a station"))
    captions = [f"{thing} {place}." for thing, place in things]
    lines = [f'{n},coco-30k,"{captions[n % len(captions)]}",{41337 + n},{203564 + n}\n' for n in range(rows)]
    return "case_number,source,prompt,evaluation_seed,coco_id\n" + "".join(lines)


def uce_prompts() -> dict[str, str]:
    """UCE's files with CRLF: 500 prompts for each class of Imagenette; the other lists are not read by these tests."""
    rows = [
        f"{n},an image of a {name},{name},{n * 7919 % 9973}"
        for n, name in enumerate(c for c in CLASSES for _ in range(500))
    ]
    return {"imagenette.csv": "\r\n".join(["case_number,prompt,class,evaluation_seed", *rows, ""])}
