"""Signatures and passwords open files and stand nowhere else: not in a table, a report, a record or a line of output."""

import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image
from samples_on_disk import MakeTar, encoded
from weak_server import WeakServer

from jobs import main
from pipeline.sources.streams import ByteStream

SECRET = "T0pS3cr3t"
DEMO = ("--model", "demo", "--steps", "3", "--swaps", "1", "--local", "--attempts", "1")


def test_no_secret_of_an_address_is_stored_or_shown(
    make_tar: MakeTar,
    images: list[Image.Image],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(ByteStream, "waits", (0.01,))
    tars = {}
    for name in ("0.tar", "1.tar"):
        members = [(f"{name}-{i}.png", encoded(images[i])) for i in range(2)]
        tars[name] = Path(make_tar(f"in/{name}", members)).read_bytes()

    def run(*words: str) -> tuple[int, str]:
        """Exit status, and all that a person sees."""
        monkeypatch.setattr(sys, "argv", ["pez", *words])
        with pytest.raises(SystemExit) as ended:
            main.main()
        assert isinstance(ended.value.code, int)
        return ended.value.code, "".join(capfd.readouterr())

    def signed(number: int) -> dict[str, str]:
        return {name: f"{name}?X-Amz-Credential=AKIA{SECRET}&X-Amz-Signature={SECRET}{number}" for name in tars}

    files = {path: tars[name] for number in (1, 2) for name, path in signed(number).items()}
    files |= {f"damaged.tar?sig={SECRET}": b"\x01" * 2000}
    out = tmp_path / "out"
    with WeakServer(files).running() as server:
        with_password = server.url.replace("://", f"://user:{SECRET}@")
        first = [f"{with_password}/{path}" for path in signed(1).values()]
        broken = [f"{server.url}/{name}?sig={SECRET}" for name in ("damaged.tar", "gone.tar")]
        status, seen = run("caption", "--input", *first, *broken, "--output", str(out), *DEMO)
        assert status == 1, seen
        again = [f"{server.url}/{path}" for path in signed(2).values()]
        status, seen_again = run("caption", "--input", *again, "--output", str(out), *DEMO)
        assert status == 0, seen_again
        verification = ("verify", str(out), "--verify", "demo", "--verify-steps", "1", "--local")
        status, unsigned = run(*verification)
        assert status == 1, unsigned
        assert "--input" in unsigned, "it says how to give fresh signatures"
        status, verified = run(*verification, "--input", *again)
        assert status == 0, verified
        _, no_such = run("caption", "--input", f"foo://user:{SECRET}@host/a.tar", "--output", str(out), *DEMO)
    shards = [row["shard"] for row in pq.read_table(out).to_pylist()]
    assert sorted(shards) == [f"{server.url}/0.tar"] * 2 + [f"{server.url}/1.tar"] * 2
    for text in (seen, seen_again, unsigned, verified, no_such):
        assert SECRET not in text
        assert "Traceback" not in text
    for path in tmp_path.rglob("*"):
        assert SECRET not in str(path)
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path
