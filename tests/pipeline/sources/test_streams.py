"""Bytes that come over a bad line are those of the file, or there is an error in one line."""

import gzip
import http.server
import io
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
import s3fs
from fsspec.implementations.memory import MemoryFileSystem
from items import items_of
from PIL import Image
from samples_on_disk import MakeTar, encoded
from weak_server import WeakServer

from pipeline.sources.base import Item, Unit, UnitError
from pipeline.sources.inputs import expand_inputs
from pipeline.sources.streams import ByteStream


@pytest.fixture(autouse=True)
def small_blocks_and_short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.sources.streams._BLOCK", 2**15)
    monkeypatch.setattr(ByteStream, "waits", (0.01, 0.01, 0.01))


@pytest.fixture
def tar(make_tar: MakeTar) -> bytes:
    """A tar of 400 kB, larger than what any reader holds at once."""
    noise = np.random.default_rng(0).integers(0, 255, (12, 100, 100, 3), np.uint8)
    members = []
    for i, pixels in enumerate(noise):
        members += [(f"{i:02d}.png", encoded(Image.fromarray(pixels))), (f"{i:02d}.txt", f"noise {i}".encode())]
    return Path(make_tar("in/0.tar", members)).read_bytes()


def samples(url: str) -> list[Item]:
    return items_of(Unit(url, "0"))


@pytest.fixture
def undisturbed(tar: bytes, tmp_path: Path) -> list[Item]:
    return samples(str(tmp_path / "in" / "0.tar"))


@pytest.mark.parametrize(("ranges", "length"), [(True, True), (False, True), (False, False)])
def test_a_tar_over_http_has_the_samples_of_the_file(
    tar: bytes, undisturbed: list[Item], ranges: bool, length: bool
) -> None:
    with WeakServer({"0.tar": tar, "1.tar": tar}, ranges, length).running() as server:
        shards = expand_inputs([f"{server.url}/{{0..1}}.tar"])
        assert [s.stem for s in shards] == ["0", "1"]
        assert samples(shards[0].url) == undisturbed
        assert len(undisturbed) == 12


@pytest.mark.parametrize("break_at", [1, 700, 40_000, 200_001, 350_000])
@pytest.mark.parametrize(("ranges", "length"), [(True, True), (False, True), (False, False)])
def test_a_connection_that_breaks_loses_nothing_and_doubles_nothing(
    tar: bytes, undisturbed: list[Item], ranges: bool, length: bool, break_at: int
) -> None:
    with WeakServer({"0.tar": tar}, ranges, length, breaks=2, break_at=break_at).running() as server:
        assert samples(f"{server.url}/0.tar") == undisturbed
        assert server.breaks == 0


def test_with_ranges_only_the_missing_part_is_read_again(tar: bytes, undisturbed: list[Item]) -> None:
    with WeakServer({"0.tar": tar}, breaks=1, break_at=300_000).running() as server:
        assert samples(f"{server.url}/0.tar") == undisturbed
        assert server.sent < len(tar) + 4 * 2**15


def test_a_compressed_tar_goes_on_after_a_break(tar: bytes, undisturbed: list[Item]) -> None:
    with WeakServer({"0.tar.gz": gzip.compress(tar)}, breaks=1, break_at=200_000).running() as server:
        assert samples(f"{server.url}/0.tar.gz") == undisturbed


@pytest.mark.parametrize("ranges", [True, False])
def test_a_line_that_always_breaks_is_given_up(tar: bytes, ranges: bool) -> None:
    with (
        WeakServer({"0.tar": tar}, ranges, breaks=99, break_at=200_000).running() as server,
        pytest.raises(UnitError, match=r"cannot read http://.*/0.tar: .* \(4 attempts at byte \d+\)$"),
    ):
        samples(f"{server.url}/0.tar")


def test_a_page_that_is_not_there_says_404(tar: bytes) -> None:
    with WeakServer({}).running() as server, pytest.raises(UnitError, match="cannot read .*gone.tar: 404.*Not Found"):
        samples(f"{server.url}/gone.tar")


@pytest.mark.parametrize("status", [401, 403])
def test_an_address_that_is_refused_says_what_to_check_and_not_its_signature(status: int) -> None:
    class Refuses(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(status)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refuses)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/0.tar"
    try:
        with pytest.raises(
            UnitError, match=f"{status}.*; access is denied: check whether the URL requires a login"
        ) as error:
            items_of(Unit(url, "0", source=f"{url}?X-Amz-Signature=topsecret&X-Amz-Credential=me"))
    finally:
        server.shutdown()
        server.server_close()
    assert "topsecret" not in str(error.value)
    assert "me&" not in str(error.value)


def test_missing_credentials_are_named_as_such(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(
        UnitError, match=r"cannot read s3://bucket/0.tar: .*no credentials are set: AWS_ACCESS_KEY_ID"
    ) as error:
        samples("s3://bucket/0.tar")
    s3fs.S3FileSystem.clear_instance_cache()
    assert "\n" not in str(error.value)


def test_a_server_that_refuses_says_so() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/0.tar"
        with pytest.raises(UnitError, match="cannot read .*0.tar: Cannot connect") as error:
            samples(url)
    assert "\n" not in str(error.value)


def test_a_page_of_html_is_not_a_tar() -> None:
    page = b"<html>please log in</html>" * 100
    with (
        WeakServer({"0.tar": page}).running() as server,
        pytest.raises(UnitError, match="is an HTML page instead of the file, not a tar: it may need a login"),
    ):
        samples(f"{server.url}/0.tar")


class PassingErrors(MemoryFileSystem):
    """A store whose every file cannot be read once, at `error_at`."""

    protocol = "passing"
    store: dict = {}  # noqa: RUF012 - as in its base
    pseudo_dirs = [""]  # noqa: RUF012
    error_at = 0
    errors = 0

    def _open(self, path: str, mode: str = "rb", **_: object) -> io.BufferedIOBase:
        return _ErrorAt(self.store[path].getvalue()) if mode == "rb" else super()._open(path, mode)


class _ErrorAt(io.BytesIO):
    def read(self, size: int | None = -1) -> bytes:
        if PassingErrors.errors and self.tell() + (size or 0) > PassingErrors.error_at:
            PassingErrors.errors -= 1
            raise OSError(5, "Input/output error")
        return super().read(size)


@pytest.fixture
def passing(tar: bytes) -> Iterator[str]:
    fsspec.register_implementation("passing", PassingErrors, clobber=True)
    with fsspec.open("passing://0.tar", "wb") as file:
        file.write(tar)
    yield "passing://0.tar"
    PassingErrors.store.clear()
    PassingErrors.errors = 0


@pytest.mark.parametrize("error_at", [0, 5000, 250_000])
def test_any_store_is_asked_again(passing: str, undisturbed: list[Item], error_at: int) -> None:
    PassingErrors.error_at, PassingErrors.errors = error_at, 3
    assert samples(passing) == undisturbed
    assert PassingErrors.errors == 0


def test_a_store_that_stays_broken_is_a_failed_shard(passing: str) -> None:
    PassingErrors.error_at, PassingErrors.errors = 5000, 4
    with pytest.raises(
        UnitError, match=r"cannot read passing://0.tar: .*Input/output error \(4 attempts at byte \d+\)"
    ):
        samples(passing)


def test_a_file_that_was_replaced_is_not_read_on(tmp_path: Path) -> None:
    path = tmp_path / "0.tar"
    path.write_bytes(b"a" * 2000)
    with ByteStream(str(path)) as stream:
        assert stream.read(1000) == b"a" * 1000
        (tmp_path / "new").write_bytes(b"b" * 2000)
        os.replace(tmp_path / "new", path)
        stream.file.close()  # as when the line breaks
        with pytest.raises(OSError, match="the file was replaced while it was read, at byte 1000"):
            stream.read(1000)


def test_a_file_that_ends_too_early_is_no_end(tmp_path: Path) -> None:
    path = tmp_path / "0.tar"
    path.write_bytes(b"a" * 2000)
    with ByteStream(str(path)) as stream:
        os.truncate(path, 500)
        with pytest.raises(OSError, match="the file was replaced|it ended after 500 of 2000 bytes"):
            list(iter(lambda: stream.read(100), b""))
