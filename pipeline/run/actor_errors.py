"""What the texts of Ray's errors say: of much, Ray keeps no more than a text."""

import re

LOW_ON_MEMORY = "running low on memory"


def memory_shortage(text: str) -> str:
    """What to say when Ray's memory monitor ended an actor, because its node had too little left."""
    node = re.search(r"IP: ([^,\s)]+)", text)
    used = re.search(r"was ([\d.]+ ?[KMGT]?B) used / ([\d.]+ ?[KMGT]?B)", text)
    threshold = re.search(r"exceeded threshold of \d+B? \(([\d.]+%)", text)
    where = f" on node {node[1]}" if node else ""
    details = [f"{used[1]} of {used[2]} used"] if used else []
    details += [f"Ray ends actors above {threshold[1]}"] if threshold else []
    return f"memory ran short{where}" + (f" ({', '.join(details)})" if details else "")


def raised_at_start(text: str) -> str | None:
    """What an actor's constructor raised, from the traceback; None where the text has none."""
    if "creation task" not in text:
        return None
    return [line for line in text.splitlines() if line.strip()][-1].strip()
