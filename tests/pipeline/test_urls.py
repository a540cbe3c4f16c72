"""One file has one address, however it is spelled, and no address that is shown holds a secret."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.urls import public_url, redact

SECRET = "SeCrEt0123456789"


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        (f"https://user:{SECRET}@host/a.tar", "https://host/a.tar"),
        (f"HTTPS://Host:443/a/./b/../c%7e%2f.tar?b=2&a=1&X-Amz-Signature={SECRET}", "https://host/a/c~%2F.tar?a=1&b=2"),
        (f"https://b.s3.amazonaws.com/k.tar?X-Amz-Credential={SECRET}&X-Amz-Date=1", "https://b.s3.amazonaws.com/k.tar"),
        (f"https://b.s3.amazonaws.com/k.tar?AWSAccessKeyId={SECRET}&Signature=x&Expires=1", "https://b.s3.amazonaws.com/k.tar"),
        (f"https://storage.googleapis.com/b/k.tar?X-Goog-Signature={SECRET}", "https://storage.googleapis.com/b/k.tar"),
        (f"https://a.blob.core.windows.net/c/k.tar?sv=1&se=2&sp=r&sig={SECRET}", "https://a.blob.core.windows.net/c/k.tar"),
        (f"https://d.cloudfront.net/k.tar?Policy={SECRET}&Signature=x&Key-Pair-Id=y", "https://d.cloudfront.net/k.tar"),
        (f"https://b.oss-cn.aliyuncs.com/k.tar?OSSAccessKeyId={SECRET}&Signature=x", "https://b.oss-cn.aliyuncs.com/k.tar"),
        (f"https://cdn.net/k.tar?hdnts=exp=1~hmac={SECRET}", "https://cdn.net/k.tar"),
        (f"https://cdn.net/k.tar?st={SECRET}&e=1700000000", "https://cdn.net/k.tar"),
        (f"https://zone.b-cdn.net/k.tar?token={SECRET}&expires=1", "https://zone.b-cdn.net/k.tar"),
        (f"https://host/k.tar?access_token={SECRET}&x=1", "https://host/k.tar?x=1"),
        (f"https://swift.example/v1/a/c/k.tar?temp_url_sig={SECRET}&temp_url_expires=1", "https://swift.example/v1/a/c/k.tar"),
        (f"https://www.dropbox.com/scl/fi/x/k.tar?rlkey={SECRET}&dl=1", "https://www.dropbox.com/scl/fi/x/k.tar?dl=1"),
        (f"https://o.sharepoint.com/download.aspx?UniqueId=7&tempauth={SECRET}", "https://o.sharepoint.com/download.aspx?UniqueId=7"),
        (f"https://cdn.net/k.tar?wsSecret={SECRET}&wsTime=1", "https://cdn.net/k.tar"),
        (f"https://host/k.tar?accessToken={SECRET}&x-signature={SECRET}", "https://host/k.tar"),
        (f"https://host/k.tar;jsessionid={SECRET}?a=1;token={SECRET}", "https://host/k.tar?a=1"),
        (f"webhdfs://host/k.tar?delegation={SECRET}", "webhdfs://host/k.tar"),
        (f"simplecache::https://u:{SECRET}@host/k.tar?sig={SECRET}", "simplecache::https://host/k.tar"),
        (f"s3://KEY:{SECRET}@bucket/k.tar", "s3://bucket/k.tar"),
        ("s3a://bucket/a//b.tar", "s3://bucket/a//b.tar"),
        ("gcs://bucket/k.tar", "gs://bucket/k.tar"),
        ("s3://bucket/k.tar?versionId=3", "s3://bucket/k.tar?versionId=3"),
        ("abfs://container@account.dfs.core.windows.net/k.tar", "abfs://container@account.dfs.core.windows.net/k.tar"),
        ("hf://datasets/o/r@main/k.tar", "hf://datasets/o/r/k.tar"),
        ("hf://datasets/o/r@v2/k.tar", "hf://datasets/o/r@v2/k.tar"),
        ("memory:///folder/k.tar", "memory://folder/k.tar"),
        ("http://[::1]:8080/k.tar", "http://[::1]:8080/k.tar"),
    ],
)  # fmt: skip
def test_what_is_shown_of_an_address(typed: str, shown: str) -> None:
    assert public_url(typed) == shown
    assert public_url(shown) == shown
    assert SECRET not in redact(f"403, message='Forbidden', url='{typed}'; (see {typed}).", typed)


def test_what_is_shown_of_an_address_without_its_protocol() -> None:
    shown = redact(f"GET /k.tar?x=1&wsSecret={SECRET}&temp_url_sig={SECRET} failed")
    assert shown == "GET /k.tar?x=1&wsSecret=...&temp_url_sig=... failed"
    assert SECRET not in redact(f"GET /k.tar?X%2DAmz%2DSignature={SECRET}")


def test_an_api_key_that_may_name_the_file_keeps_two_files_apart() -> None:
    one, other = (public_url(f"https://host/get?key={key}") for key in ("a.tar", "b.tar"))
    assert one != other
    assert "a.tar" not in one


def test_a_local_file_has_one_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "0.tar").touch()
    (tmp_path / "link").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "same.tar").symlink_to(tmp_path / "data" / "0.tar")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    spelled = ["data/0.tar", "./data/../data/0.tar", f"{tmp_path}//data/0.tar", f"file://{tmp_path}/data/0.tar"]
    spelled += ["~/data/0.tar", "link/0.tar", "data/same.tar"]
    assert {public_url(address) for address in spelled} == {f"{tmp_path}/data/0.tar"}


def test_a_cache_that_names_files_by_content_keeps_their_own_names(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "4f2a").touch()
    (tmp_path / "00000.tar").symlink_to(tmp_path / "blobs" / "4f2a")
    assert public_url(str(tmp_path / "00000.tar")) == f"{os.path.realpath(tmp_path)}/00000.tar"


@given(st.text(max_size=60), st.sampled_from(["", "https://", "s3://", "hf://", "file://", "x::https://"]))
def test_any_text_has_an_address_that_stays_itself(text: str, protocol: str) -> None:
    if "\0" not in text:
        once = public_url(protocol + text)
        assert public_url(once) == once
