"""Made-up reviews for the page's tests: what a builder would write, of smooth noise, as many pairs as are wanted.

python tests/reviews_made.py FOLDER PAIRS      (to look at such a review in a browser)
"""

import io
import json
import os
import shutil
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from commands import ROOT
from PIL import Image

Json = dict[str, Any]

PAGE = ROOT / "curation" / "review" / "page"
DISTINCT = 8  # pairs whose pictures differ; all others are hard links to these
SIZE = (192, 192)  # X, Y
WINDOW = 32
STEP = 12
SCALE = 4.0
FIELDS = ("field_0_x144_y176_z5_MIP3", "field_1")
HOSTILE = (
    "<script>document.title = 'stolen'</script><img src=x onerror=\"document.title = 'stolen'\"> \"quoted\" 'too' &amp;"
)


def measure(name: str, label: str, worst: str | None, of_field: bool, digits: int, unit: str = "") -> Json:
    about = f"This is what is said about the {label}."
    return {"name": name, "label": label, "unit": unit, "worst": worst} | {
        "of_field": of_field,
        "digits": digits,
        "about": about,
    }


MEASURES = [
    measure("correlation_after", "correlation after", "low", True, 2),
    measure("correlation_before", "correlation before", "low", True, 2),
    measure("cpc_low_after", "lowest windows after", "low", True, 2),
    measure("displacement_median", "median displacement", "high", True, 1, "px"),
    measure("folded", "folded", "high", True, 2, "%"),
    measure("section", "section", None, False, 0),
    measure("valid", "valid", "low", False, 2),
]


def make_review(
    folder: Path, pairs: int = 12, fields: tuple[str, ...] = FIELDS, whole: bool = True, **changes: Any
) -> Path:
    """Write a review of `pairs` pairs; the page in it. Changes are of the top level of data.js, columns among them.

    Pairs 0 and 1, 2 and 3, and so on are each other's reverse. Pair 3 holds a hostile note, pair 4 has no number after,
    and pair 5 has a state. Not whole: later pairs are links to the first, so that they have pictures, but no details.
    """
    folder.mkdir(parents=True, exist_ok=True)
    copy_page(folder)
    data = data_of(pairs, fields)
    columns = data["columns"] | changes.pop("columns", {})
    data |= {"columns": columns, **changes}
    (folder / "data.js").write_text(f"review.load({json.dumps(data)});\n")
    wheel().save(folder / "wheel.png")
    for place in range(pairs):
        pair, alike = (folder / "pairs" / f"{at:06}" for at in (place, place % DISTINCT))
        if place >= DISTINCT and not whole:
            pair.symlink_to(alike.name)
            continue
        pair.mkdir(parents=True)
        for name, picture in pictures_of(place % DISTINCT, len(fields)).items():
            if pair == alike:
                (pair / name).write_bytes(picture)
            else:
                os.link(alike / name, pair / name)
        (pair / "detail.js").write_text(f"review.detail({place}, {detail_of(place, len(fields))});\n")
    return folder / "index.html"


def copy_page(folder: Path) -> None:
    for path in PAGE.iterdir():
        shutil.copy(path, folder / path.name)


def data_of(pairs: int, fields: tuple[str, ...] = FIELDS) -> Json:
    """What stands in data.js."""
    random = np.random.default_rng(1)
    first = np.arange(pairs) // 2
    starts = [[[144 + 64 * int(k), 176, 5 + int(k) % 40], [144 + 64 * int(k), 176, 4 + int(k) % 40]] for k in first]
    starts = [start[::-1] if place % 2 else start for place, start in enumerate(starts)]
    before = np.clip(random.normal(0.35, 0.12, pairs), -1, 1)
    numbers = [numbers_of(pairs, index, before, random) for index in range(len(fields))]
    notes = [f"point {place}" for place in range(pairs)]
    tags: list[list[str]] = [["crack"] if place % 7 == 2 else [] for place in range(pairs)]
    state = [""] * pairs
    if pairs > 5:
        notes[3] = HOSTILE
        state[5] = "the aligner failed"
    return {
        "name": "x144_y176_z5_MIP3.h5",
        "key": "3f2a",
        "version": "0.3.0",
        "unfinished": 0,
        "mip": 3,
        "size": SIZE,
        "picture": SIZE,
        "fields": fields,
        "window": WINDOW,
        "no_link": "the volume cannot be reached",
        "serve": [],
        "measures": MEASURES,
        "columns": {
            "place": list(range(pairs)),
            "pair": list(range(pairs)),
            "start": starts,
            "note": notes,
            "tags": tags,
            "state": state,
        },
        "general": {
            "section": [start[0][2] for start in starts],
            "valid": rounded(1 - random.exponential(0.03, pairs).clip(0, 1)),
        },
        "numbers": numbers or [{"correlation_before": rounded(before)}],
    }


def numbers_of(pairs: int, index: int, before: np.ndarray, random: np.random.Generator) -> Json:
    """The numbers of one field."""
    after: list[float | None] = [*rounded(np.clip(before + 0.3 + 0.1 * index + random.normal(0, 0.1, pairs), -1, 1))]
    if pairs > 4:
        after[4] = None
    return {
        "correlation_before": rounded(before),
        "correlation_after": after,
        "cpc_low_after": rounded(np.clip(before + random.normal(0, 0.1, pairs), -1, 1)),
        "displacement_median": rounded(random.gamma(2, 1.5, pairs)),
        "folded": rounded(100 * np.where(random.random(pairs) < 0.1, random.exponential(0.01, pairs), 0)),
    }


def rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 4) for value in values]


def detail_of(place: int, fields: int) -> str:
    """What stands in a pair's detail.js, as JSON."""
    note = HOSTILE + " " + "long " * 20_000 if place == 3 else f"point {place}\n\nA second paragraph of the note."
    detail = {
        "rows": [
            ["start", f"{144 + 64 * place}, 176, 5", f"{144 + 64 * place}, 176, 4"],
            ["translation", "8, -16", "0, 0"],
        ],
        "note": note,
        "link": "https://neuroglancer-demo.appspot.com/#!%7B%7D" if place % 2 == 0 else None,
        "invalid": [place % DISTINCT % 2 == 0, False],
    }
    return f"{json.dumps(detail)[:-1]}, {maps_of(place % DISTINCT, fields)}"


@cache
def maps_of(seed: int, fields: int) -> str:
    """The rest of a pair's details, as JSON without its first brace."""
    random = np.random.default_rng(seed)
    n = SIZE[0] // WINDOW
    before = map_of(random.uniform(-0.2, 0.6, (n, n)))
    return json.dumps({"before": before, "fields": [field_detail(seed, random) for _ in range(fields)]})[1:]


def map_of(values: np.ndarray) -> Json:
    flat: list[float | None] = [*rounded(values.ravel())]
    flat[-1] = None
    return {"nx": values.shape[1], "ny": values.shape[0], "values": flat}


def field_detail(place: int, random: np.random.Generator) -> Json:
    n, m = SIZE[0] // WINDOW, SIZE[0] // STEP
    y_of, x_of = vectors(place)
    at = ((np.arange(m) + 0.5) * STEP).astype(int)
    x, y = (component[np.ix_(at, at)].ravel() for component in (x_of, y_of))
    return {
        "after": map_of(random.uniform(0.3, 1, (n, n))),
        "scale": SCALE,
        "arrows": {"nx": m, "ny": m, "step": STEP, "x": [None, *rounded(x[1:])], "y": [None, *rounded(y[1:])]},
        "folds": [[2, 1], [3, 1]] if place % 3 == 0 else [],
        "invalid": place % 2 == 0,
    }


# Pictures: arrays of rows here, (Y, X), as Pillow wants them


def smooth(seed: int, width: float, shape: tuple[int, int] = SIZE) -> np.ndarray:
    """Periodic noise of mean 0 and deviation 1, whose details measure about `width` pixels."""
    noise = np.random.default_rng(seed).normal(size=shape)
    waves = np.hypot(*np.meshgrid(np.fft.fftfreq(shape[1]), np.fft.fftfreq(shape[0])))
    found = np.fft.ifft2(np.fft.fft2(noise) * np.exp(-((waves * width) ** 2))).real
    return (found - found.mean()) / found.std()


def vectors(seed: int) -> np.ndarray:
    """A field in pixels, (2, Y, X): y, then x."""
    return np.stack([smooth(1000 + seed, 60), smooth(2000 + seed, 60)]) * 1.5


def tissue(seed: int) -> np.ndarray:
    """Grey values 1 to 255 that look a little like membranes and organelles."""
    membranes = np.abs(smooth(seed, 18)) < 0.16
    grey = 165 + 22 * smooth(seed + 50, 3) + 14 * smooth(seed + 70, 40) - 95 * membranes
    grey -= 60 * (smooth(seed + 90, 12) > 1.9)
    return grey.clip(1, 255)


def shifted(image: np.ndarray, field: np.ndarray) -> np.ndarray:
    rows, columns = np.indices(image.shape)
    at = np.round(rows + field[0]).astype(int) % image.shape[0], np.round(columns + field[1]).astype(int)
    return image[at[0], at[1] % image.shape[1]]


def grey_files(name: str, grey: np.ndarray, valid: np.ndarray) -> dict[str, bytes]:
    found = {f"{name}.jpg": encoded(Image.fromarray(grey.clip(1, 255).astype(np.uint8)))}
    return found if valid.all() else {**found, f"{name}_invalid.png": marked(~valid, np.zeros(SIZE, np.uint8))}


def marked(shown: np.ndarray, grey: np.ndarray) -> bytes:
    """A picture of grey values that is transparent where nothing is to be shown."""
    return encoded(Image.fromarray(np.dstack([grey, grey, grey, shown * np.uint8(255)])), "PNG")


def encoded(picture: Image.Image, form: str = "JPEG") -> bytes:
    stream = io.BytesIO()
    picture.save(stream, form, quality=90)
    return stream.getvalue()


def coloured(field: np.ndarray) -> np.ndarray:
    """Hue for the direction, saturation for the length: (Y, X, 3) uint8."""
    hue = (np.arctan2(field[0], field[1]) / (2 * np.pi)) % 1
    strength = np.clip(np.hypot(*field) / SCALE, 0, 1)
    sector = (hue * 6)[..., None]
    pure = np.clip(np.abs((sector + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    return ((1 - strength[..., None] * (1 - pure)) * 255).astype(np.uint8)


def wheel() -> Image.Image:
    y, x = (np.indices((160, 160)) - 79.5) / 79.5
    colours = coloured(np.stack([y, x]) * SCALE)
    return Image.fromarray(np.dstack([colours, np.where(np.hypot(x, y) <= 1, 255, 0).astype(np.uint8)]))


@cache
def pictures_of(seed: int, fields: int) -> dict[str, bytes]:
    """The pictures of a pair by their names."""
    target, field = tissue(seed), vectors(seed)
    source = (shifted(target, -field) + np.random.default_rng(seed).normal(0, 6, SIZE)).clip(1, 255)
    rows, columns = np.indices(SIZE)
    valid = np.abs(rows - columns - 60 + 8 * np.sin(columns / 15)) > 5 if seed % 2 == 0 else np.ones(SIZE, bool)
    checks = ((rows // 3 + columns // 3) % 2 * 255).astype(np.uint8)
    is_folded = (rows - 50) ** 2 + (columns - 95) ** 2 < 200
    overlay = np.dstack([source, target, source]).astype(np.uint8)
    overlay[~valid] = (70, 88, 140)
    pictures = {"grid.jpg": encoded(Image.fromarray(overlay))}
    pictures |= grey_files("source", source, valid) | grey_files("target", target, np.ones(SIZE, bool))
    for index in range(fields):
        part = field * (0.6 + 0.4 * index)
        pictures |= grey_files(f"pulled_{index}", shifted(source, part), shifted(valid, part))
        pictures[f"field_{index}.jpg"] = encoded(Image.fromarray(coloured(field)))
        if seed % 3 == 0:
            pictures[f"folds_{index}.png"] = marked(is_folded, checks)
    return pictures


if __name__ == "__main__":
    print(make_review(Path(sys.argv[1]), int(sys.argv[2])))
