"""The files of a gallery, in an order in which it never looks whole before it is.

to/index.html, gallery.css, gallery.js, panels.js    the page
to/rows-000.js, ...                       rows, so many a file; a page from a disk cannot fetch, so they are scripts with data
to/units.js                               one line a unit
to/thumbs/000/000012.webp                 the image of row 12; 000012-r.webp is what a generator made of its prompt
to/_gallery.json                          marks the folder as ours
"""

import json
from collections.abc import Iterable
from importlib.resources import files
from typing import Any

import jinja2

import pez
from pez.errors import UserError
from pipeline.errors import OutputError
from pipeline.folder import DamagedError, OutputFolder
from pipeline.gallery.pictures import Which
from pipeline.gallery.selection import UNIT, Selection

MARK = "_gallery.json"
_ROWS_A_FILE = 1000
_LONGEST_TEXT = 2000  # characters of a caption or a reason
_FIELDS = (
    *("key", UNIT, "status", "prompt", "caption", "similarity", "caption_similarity", "regenerated_similarity"),
    *("error_message", "width", "height", "token_similarity", "steps", "seed"),
)
"""of a row, in the order in which gallery.js reads them; then come the pictures that it has, and its alternatives, if any"""


class Site:
    """A gallery that is being written.

    Args:
        folder: where it goes.

    Raises:
        UserError: the folder holds something else.
    """

    def __init__(self, folder: OutputFolder) -> None:
        self.folder = folder
        self.pictures: dict[int, set[Which]] = {}
        try:
            ours = folder.read_json(MARK) is not None
        except DamagedError:
            ours = False
        if not ours and folder.names("", ""):
            raise UserError(f"{folder.url} holds other files; expected a new or empty folder, or an earlier gallery")
        self._earlier = ours

    def begin(self) -> None:
        """Remove an earlier gallery and mark the folder."""
        self._put(MARK, json.dumps({"pez": pez.__version__}).encode())
        if self._earlier:
            self.folder.remove("index.html")
            self.folder.remove("thumbs")
            for name in self.folder.names("", ".js"):
                self.folder.remove(f"{name}.js")

    def add_picture(self, row: int, which: Which, data: bytes) -> None:
        """Write a picture of a row."""
        self._put(thumbnail_name(row, which), data)
        self.pictures.setdefault(row, set()).add(which)

    def finish(self, title: str, selection: Selection, failures: dict[str, str], settings: dict[str, Any]) -> None:
        """Write the data, then the page.

        Args:
            failures: what is known of units that failed, by their stem.
            settings: of the run, nested, for people.
        """
        starts = range(0, len(selection.rows), _ROWS_A_FILE)
        for number, start in enumerate(starts):
            rows = [self._row(start + i, row) for i, row in enumerate(selection.rows[start : start + _ROWS_A_FILE])]
            self._put(f"rows-{number:03d}.js", script("rows", number, rows))
        self._put("units.js", script("units", _units(selection), sorted(failures.items())))
        for name in ("gallery.css", "gallery.js", "panels.js"):
            self._put(name, files(__package__).joinpath(name).read_bytes())
        environment = jinja2.Environment(
            loader=jinja2.PackageLoader(__package__, "."), autoescape=True, undefined=jinja2.StrictUndefined
        )
        page = environment.get_template("index.html").render(
            title=title,
            version=pez.__version__,
            about=about(title, selection, len(failures), len(starts)),
            settings=list(flat(settings)),
        )
        self._put("index.html", page.encode())

    def _row(self, index: int, row: dict[str, Any]) -> list[Any]:
        values = [_short(row.get(name)) for name in _FIELDS]
        there = self.pictures.get(index, set())
        others = (each for each in row.get("alternatives") or () if each["prompt"] != row["prompt"])
        alternatives = [[_short(each["prompt"]), _short(each["similarity"])] for each in others]
        return [
            *values,
            ("original" in there) + 2 * ("regenerated" in there),
            *([alternatives] if alternatives else []),
        ]

    def _put(self, name: str, data: bytes) -> None:
        path = f"{self.folder.path}/{name}"
        try:
            if self.folder.local:
                self.folder.fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            self.folder.fs.pipe_file(path, data)
        except Exception as error:  # each filesystem has its own errors
            raise OutputError(f"cannot write {self.folder.url}/{name}: {error}") from error


def thumbnail_name(row: int, which: Which) -> str:
    """The file of a row's picture: a thousand a folder."""
    return f"thumbs/{row // 1000:03d}/{row:06d}{'-r' if which == 'regenerated' else ''}.webp"


def script(kind: str, *values: Any) -> bytes:
    """A script that hands data to gallery.js; no text in it can end a script or begin markup."""
    text = ", ".join(json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":")) for value in values)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return f"gallery.{kind}({text});\n".encode()


def about(title: str, selection: Selection, failed: int, chunks: int) -> dict[str, Any]:
    """What the page says of the whole output."""
    reports = selection.reports
    ok = sum(report.ok for report in reports)
    similarity = sum((report.mean_similarity or 0.0) * report.ok for report in reports)
    return {
        "title": title,
        "rows": selection.total,
        "shown": len(selection.rows),
        "ok": ok,
        "failed": selection.total - ok,
        "units": len(reports),
        "units_shown": len({row[UNIT] for row in selection.rows}),
        "units_failed": failed,
        "warnings": sum(len(report.warnings) for report in reports),
        "similarity": similarity / ok if ok else None,
        "chunks": chunks,
        "rows_a_file": _ROWS_A_FILE,
    }


def flat(settings: dict[str, Any], before: str = "") -> Iterable[tuple[str, str]]:
    """Nested settings as lines."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from flat(value, f"{before}{name}.")
        elif value not in (None, (), [], ""):
            yield f"{before}{name}", ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _units(selection: Selection) -> list[list[Any]]:
    return [
        [
            report.stem,
            report.shard,
            report.rows,
            report.ok,
            report.failed,
            _short(report.mean_similarity),
            report.seconds,
            [_short(f"{failure['key']}: {failure['reason']}") for failure in report.failures[:20]],
            [_short(text) for text in report.warnings[:20]],
            report.left_out,
        ]
        for report in selection.reports
    ]


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4) if value == value and abs(value) != float("inf") else None
    if isinstance(value, str) and len(value) > _LONGEST_TEXT:
        return value[:_LONGEST_TEXT] + "…"
    return value
