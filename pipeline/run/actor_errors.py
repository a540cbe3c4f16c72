"""Parsing the texts of Ray's errors, which are often all that Ray keeps."""

import re

LOW_ON_MEMORY = "running low on memory"


def memory_shortage(text: str) -> str:
    """A description of the shortage after which Ray's memory monitor killed an actor."""
    node = re.search(r"IP: ([^,\s)]+)", text)
    used = re.search(r"was ([\d.]+ ?[KMGT]?B) used / ([\d.]+ ?[KMGT]?B)", text)
    threshold = re.search(r"exceeded threshold of \d+B? \(([\d.]+%)", text)
    where = f" on node {node[1]}" if node else ""
    details = [f"{used[1]} of {used[2]} used"] if used else []
    details += [f"Ray kills actors above {threshold[1]}"] if threshold else []
    return f"memory ran short{where}" + (f" ({', '.join(details)})" if details else "")


def raised_at_start(text: str) -> str | None:
    """The error that an actor's constructor raised, from the traceback; None if there is none in the text."""
    if "creation task" not in text:
        return None
    return [line for line in text.splitlines() if line.strip()][-1].strip()
