"""A whole job from S3 to S3: the rows of a local one, whatever the store does in passing."""

import io
import re
import secrets
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import fsspec
import pytest
from object_store import ENVIRONMENT, Fault, ObjectStore, Request, object_store
from samples_on_disk import encoded

import pez
from jobs import command
from jobs.caption import CaptionJob, caption
from pez.errors import UserError
from pipeline.settings import CaptionSettings, ClusterSettings
from pipeline.table import PromptTable

STEMS = [f"{i:03d}" for i in range(3)]


@pytest.fixture(scope="module")
def served() -> Iterator[ObjectStore]:
    with object_store() as store:
        yield store


@pytest.fixture
def store(served: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": served.url}.items():
        monkeypatch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    yield served
    served.fault = lambda _: None
    served.requests.clear()


@pytest.fixture
def two_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client gives a request up after two tries, and not after five with ever longer waits."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")


@pytest.fixture(scope="module")
def source(served: ObjectStore, tmp_path_factory: pytest.TempPathFactory, images: list) -> str:
    """s3://NAME with in/000.tar to in/002.tar of one picture each."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": served.url}.items():
            patch.setenv(name, value)
        fs = fsspec.filesystem("s3")
        fs.mkdir("tars")
        for i, stem in enumerate(STEMS):
            path = tmp_path_factory.mktemp("in") / f"{stem}.tar"
            with tarfile.open(path, "w") as tar:
                for member, data in ((f"{stem}.png", encoded(images[i])), (f"{stem}.txt", b"a caption")):
                    info = tarfile.TarInfo(member)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
            fs.put_file(str(path), f"tars/in/{stem}.tar")
    return "s3://tars"


@pytest.fixture(scope="module")
def whole(served: ObjectStore, source: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The Parquet files of an undisturbed run to a local folder."""
    out = str(tmp_path_factory.mktemp("whole") / "out")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": served.url}.items():
            patch.setenv(name, value)
        assert caption(job(out)) == 0
    return parquets(out)


@pytest.fixture
def output(store: ObjectStore, source: str, whole: dict[str, bytes]) -> str:
    """s3://NAME/out of a bucket of the test's own."""
    bucket = f"b{secrets.token_hex(6)}"
    fsspec.filesystem("s3").mkdir(bucket)
    store.requests.clear()
    return f"s3://{bucket}/out"


def job(output: str, attempts: int = 3) -> CaptionJob:
    return CaptionJob(
        output=output,
        input=("s3://tars/in/*.tar",),
        local=True,
        device="cpu",
        caption=CaptionSettings(model="demo", lanes=16),
        method=pez.PezSettings(tokens=4, steps=3, swaps=1),
        cluster=ClusterSettings(attempts=attempts),
    )


def names(output: str) -> list[str]:
    return sorted(name_in(path) for path in fsspec.filesystem("s3").find(output))


def name_in(path: str) -> str:
    """In the output folder, without the hash that names the record of URLs."""
    return re.sub(r"^_inputs/\w+", "_inputs/HASH", path.split("/out/")[1])


def parquets(folder: str) -> dict[str, bytes]:
    fs, path = fsspec.core.url_to_fs(folder)
    return {stem: fs.cat_file(f"{path}/{stem}.parquet") for stem in STEMS}


DONE = sorted(
    [
        *(".huggingface.yaml", "_SUCCESS", "_inputs/HASH.json", "_run.json"),
        *(f"{s}.parquet" for s in STEMS),
        *(f"_reports/{s}.json" for s in STEMS),
    ]
)


def test_each_file_is_one_put_of_what_a_local_run_writes(
    store: ObjectStore, output: str, whole: dict[str, bytes]
) -> None:
    assert caption(job(output)) == 0
    put = Counter(name_in(path) for path in store.asked("PUT"))
    assert put == dict.fromkeys(DONE, 1)
    assert not store.asked("POST")  # no parts, no deletion of many
    assert not store.asked("DELETE")
    assert all("Credential=key-of-the-environment/" in request.signed_by for request in store.requests)
    assert names(output) == DONE
    assert parquets(output) == whole


def test_a_rerun_reads_and_writes_what_was_not_done(store: ObjectStore, output: str, whole: dict[str, bytes]) -> None:
    assert caption(job(output)) == 0
    fsspec.filesystem("s3").rm_file(f"{output}/_reports/001.json")  # as after a crash between the two
    store.requests.clear()
    assert caption(job(output)) == 0
    assert {path.rsplit("/", 1)[1] for path in store.asked("GET", ".tar")} == {"001.tar"}
    assert len(store.asked("PUT", ".parquet")) == 1
    assert parquets(output) == whole


@pytest.mark.parametrize(
    "fault", ["error", "cut", *(pytest.param(fault, marks=pytest.mark.slow) for fault in ("busy", "slow"))]
)
def test_what_goes_wrong_in_passing_changes_nothing(
    store: ObjectStore, output: str, whole: dict[str, bytes], fault: Fault
) -> None:
    store.fault = lambda request: fault if len(store.requests) % 4 == 0 else None
    assert caption(job(output)) == 0
    store.fault = lambda _: None
    assert len(store.requests) >= 15
    assert names(output) == DONE
    assert parquets(output) == whole


def test_a_put_that_the_client_gives_up_is_another_try_of_the_shard(
    two_tries: None, store: ObjectStore, output: str, whole: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    def fault(request: Request) -> Fault | None:
        report = request.method == "PUT" and request.path.endswith("_reports/001.json")
        return "error" if report and len(store.asked("PUT", "_reports/001.json")) <= 2 else None

    store.fault = fault
    assert caption(job(output)) == 0
    assert f"note: 001: cannot write {output}/_reports/001.json: told to" in capsys.readouterr().out
    assert names(output) == DONE
    assert parquets(output) == whole


def test_a_shard_that_the_store_never_takes_fails_alone(
    two_tries: None, store: ObjectStore, output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store.fault = lambda r: "error" if r.method == "PUT" and r.path.endswith("001.parquet") else None
    assert caption(job(output, attempts=1)) == 1
    [failed] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("failed: ")]
    assert failed == f"failed: s3://tars/in/001.tar: cannot write {output}/001.parquet: told to; see _failures/001.txt"
    expected = [name for name in DONE if "001" not in name and name != "_SUCCESS"]
    assert names(output) == sorted([*expected, "_failures/001.txt"])


@pytest.mark.parametrize(
    "hangs", [pytest.param(1, id="once"), pytest.param(1000, id="for ever", marks=pytest.mark.slow)]
)
def test_a_read_that_hangs_ends(store: ObjectStore, output: str, monkeypatch: pytest.MonkeyPatch, hangs: int) -> None:
    monkeypatch.setitem(
        fsspec.config.conf, "s3", {"config_kwargs": {"read_timeout": 1, "retries": {"max_attempts": 0}}}
    )

    def fault(request: Request) -> Fault | None:
        read = request.method == "GET" and request.path.endswith("001.tar")
        return "hang" if read and len(store.asked("GET", "001.tar")) <= hangs else None

    store.fault = fault
    assert caption(job(output, attempts=1)) == (0 if hangs == 1 else 1)
    assert ("001.parquet" in names(output)) == (hangs == 1)
    assert {"000.parquet", "002.parquet"} < set(names(output))


def test_of_two_first_runs_with_other_settings_one_is_refused(store: ObjectStore, output: str) -> None:
    store.fault = lambda r: "slow" if r.method == "PUT" else None  # both have seen an empty folder before either writes
    tables = [PromptTable(output, {"steps": steps}) for steps in (1, 2)]
    with ThreadPoolExecutor(2) as pool:
        claims = [pool.submit(table.claim) for table in tables]
    refused = [claim.exception() for claim in claims if claim.exception()]
    assert [type(error) for error in refused] == [UserError]
    assert re.search("steps was (1 and is 2|2 and is 1); choose another --output", str(refused[0]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"output": "s3://no-such-bucket/out"}, "cannot write s3://no-such-bucket/out/_run.json: "),
        ({"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}, "Unable to locate credentials"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "Could not connect to the endpoint URL"),
    ],
    ids=["bucket", "credentials", "endpoint"],
)
def test_a_store_that_is_not_usable_is_one_line_and_status_2(
    two_tries: None,
    output: str,
    scene_tars: list[str],
    change: dict[str, str | None],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in change.keys() - {"output"}:
        if value := change[name]:
            monkeypatch.setenv(name, value)
        else:
            monkeypatch.delenv(name)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    words = [
        "--local",
        "--model",
        "demo",
        "--steps",
        "3",
        "--input",
        scene_tars[0],
        "--output",
        change.get("output") or output,
    ]
    monkeypatch.setattr(sys, "argv", ["jobs.caption", *words])
    with pytest.raises(SystemExit) as ended:
        command.run(CaptionJob, None, caption)
    assert ended.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line
