"""What errors of Ray say about a try: that a shard or a model is bad, or that the try did not happen."""

import re
import socket

import ray
from ray.exceptions import ActorDiedError, NodeDiedError, OutOfMemoryError, RayError, RayTaskError

_LOW_ON_MEMORY = "running low on memory"


def memory_shortage(error: BaseException) -> str | None:
    """What to say where Ray's memory monitor ended the actor, because its node had too little left; else None."""
    text = str(error)
    if not isinstance(error, OutOfMemoryError) and _LOW_ON_MEMORY not in text:
        return None
    node = re.search(r"IP: ([^,\s)]+)", text)
    used = re.search(r"was ([\d.]+ ?[KMGT]?B) used / ([\d.]+ ?[KMGT]?B)", text)
    threshold = re.search(r"exceeded threshold of \d+B? \(([\d.]+%)", text)
    where = f" on node {node[1]}" if node else ""
    details = [f"{used[1]} of {used[2]} were used"] if used else []
    details += [f"Ray ends actors above {threshold[1]}"] if threshold else []
    message = ", ".join(details)
    return f"memory ran short{where}{f' ({message})' if message else ''}"


def not_done(error: RayError) -> str:
    """Why a try did not happen, in a few words."""
    return "its actor died" if isinstance(error, ActorDiedError) else f"its actor was lost ({one_line(error)})"


def start_failure(error: RayError) -> str | None:
    """What an actor's own code raised when it started, if that is why it is not up."""
    if isinstance(error, RayTaskError):
        return one_line(error.cause)
    if "creation task" in str(error):  # from the traceback as text, which is all that Ray keeps of it
        return [line for line in str(error).splitlines() if line.strip()][-1].strip()
    return None


def node_lost(node: str | None, error: RayError) -> bool:
    """True where the actor's node is gone, or its raylet does not answer: Ray takes some 15 s to tell that it is dead."""
    if isinstance(error, NodeDiedError):
        return True
    found = next((n for n in ray.nodes() if n["NodeID"] == node and n["Alive"]), None)
    if found is None:
        return True
    try:
        socket.create_connection((found["NodeManagerAddress"], found["NodeManagerPort"]), timeout=2).close()
    except OSError:
        return True
    return False


def one_line(error: BaseException | None) -> str:
    return " ".join(str(error).split())[:500] or type(error).__name__
