"""One-line summaries of the reports of a job."""

from collections import Counter
from collections.abc import Iterable

from pipeline.rows import ShardReport

_EXTENSIONS = 6
"""number of extensions to list"""


def nothing_learned(reports: Iterable[ShardReport], noun: str = "image") -> str | None:
    """If not a single prompt was learned, a line that says so and what was found instead; else None.

    Args:
        reports: of finished shards; read up to the first one with a prompt.
        noun: what prompts are learned for.
    """
    seen: list[ShardReport] = []
    for report in reports:
        if report.ok:
            return None
        seen.append(report)
    if not seen:
        return None
    failed = Counter[str]()
    for report in seen:
        failed.update(report.failed)
    details = [line for line in (without_picture(seen), _first_reason(seen)) if line]
    others = ", ".join(f"{count} {status}" for status, count in sorted(failed.items()) if status != "no_image")
    advice = "; check --image-key" if failed["no_image"] else ""
    done = {"image": "captioned", "group": "learned"}.get(noun, "shortened")
    return "; ".join([f"not one {noun} was {done}{f': {others}' if others else ''}", *details]) + advice


def without_picture(reports: Iterable[ShardReport]) -> str | None:
    """How many keys have no image, and what they have instead: `12 keys have no picture: extensions json, npy`."""
    count, found = 0, Counter[str]()
    for report in reports:
        count += report.failed.get("no_image", 0)
        for failure in report.failures:
            if failure["reason"].startswith("no image of this key"):  # the wording of pipeline.sources.tars
                found.update(failure["reason"].partition("; found ")[2].split(", "))
    if not count:
        return None
    links = any(name.startswith("a link") for name in found)
    extensions = [name for name, _ in found.most_common() if name and " " not in name]
    more = ", ..." if len(extensions) > _EXTENSIONS else ""
    what = [f"extensions {', '.join(extensions[:_EXTENSIONS])}{more}"] if extensions else []
    what += ["captions alone"] if "a caption" in found else []
    what += ["links"] if links else []
    keys = "1 key has" if count == 1 else f"{count} keys have"
    return f"{keys} no picture" + (f": {', '.join(what)}" if what else "")


def _first_reason(reports: Iterable[ShardReport]) -> str | None:
    reasons = (f["reason"] for report in reports for f in report.failures)
    return next((f"the first: {r}" for r in reasons if not r.startswith("no image of this key")), None)
