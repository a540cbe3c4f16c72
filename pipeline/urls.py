"""Canonical URLs and paths: one spelling per file, without secrets.

A URL is anything that fsspec opens: a local path, s3://, gs://, hf://, http(s)://. One file can be spelled in many ways,
and a presigned URL changes with each signature. The canonical form, `public_url`, identifies a file and is shown in rows,
reports and messages; the URL as given is only used to open it.
"""

import hashlib
import os
import posixpath
import re
from urllib.parse import SplitResult, quote, unquote, urlsplit

TAR_EXTENSIONS = (".tar", ".tar.gz", ".tgz")
TABLE_EXTENSIONS = (".parquet", ".jsonl", ".jsonl.gz")
IMAGE_TABLE_EXTENSIONS = (*TABLE_EXTENSIONS, ".csv", ".csv.gz", ".tsv", ".tsv.gz")
TEXT_EXTENSIONS = (*IMAGE_TABLE_EXTENSIONS, ".txt", ".txt.gz")
INPUT_EXTENSIONS = (*TAR_EXTENSIONS, *TEXT_EXTENSIONS)

_PROTOCOLS = {"s3a": "s3", "s3n": "s3", "gcs": "gs"}
_CONTAINERS = ("abfs", "abfss", "wasb", "wasbs")
_PORTS = {"http": 80, "https": 443, "ftp": 21}
_HF_REVISION = re.compile(r"^((?:(?:datasets|spaces|buckets)/)?[^/@]+(?:/[^/@]+)?)@main(?=/|$)")

# Parameters of signatures, which change with each signing: Amazon, Google, Azure, CloudFront, Alibaba, Tencent, Huawei,
# Baidu, Backblaze, Akamai, Bunny, and common custom names.
_SIGNED = re.compile(
    r"""(?xi) ^(
        x-(amz|goog|oss|cos|obs|bce|tos|ms)-.* | q-(sign|ak|key|header|url|signature).* |
        (aws|google|oss|cos|obs)?_?access_?(key)?_?id | .*signature.* | sig | sign | key-pair-id | hash-algorithm |
        expires? | expiry | expiration | authorization | (.*[-_]|temp)?auth | auth[-_]?key | hdn(ea|ts|tl) | __gda__ |
        .*token(_.*)? | .*secret.* | pass(word|wd|phrase)? | pwd | credentials? | (sub|subscription-)?api[-_]?key | jwt |
        (.*[-_])?hmac | bcdn_.* | temp_url_(sig|expires|prefix|ip_range) | rlkey | resourcekey | bearer | ticket | delegation
    )$"""
)
_BESIDE_A_SIGNATURE = {
    *("sv", "ss", "srt", "sp", "st", "se", "spr", "sip", "sr", "si", "sdd", "ses"),
    *("skoid", "sktid", "skt", "ske", "sks", "skv", "saoid", "suoid", "scid"),
    *("e", "exp", "t", "ts", "policy", "verify", "h", "s", "hash", "md5", "ip", "wstime"),
}
"""parameters that belong to a signature if there is one (the first two lines are Azure's), and otherwise may name a file"""
_SIGNATURE = re.compile(r"(?i)^(sig|sign|signature|key-pair-id|md5|expires?|.*token.*|wssecret|hdn(ea|ts|tl))$")
_MASKED = re.compile(r"(?i)^(key|code|hash|md5|policy|verify|session(_?id)?|user(name)?|login|.*[-_]key)$")
"""parameters that may be secret or name the file: replaced by a short hash, so that two files stay distinct"""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>]+")
_PARAMETER = re.compile(r"([?&;])([\w%.-]+)=([^&;\s'\"<>)]+)")
_SESSION = re.compile(r"(?i);jsessionid=[^/;]*")


def public_url(url: str) -> str:
    """The canonical spelling of a URL, without user, password and signature.

    A local path becomes absolute, with links resolved; `file://` and `~` are handled as in fsspec.
    """
    if "::" in url and "://" in url:  # an fsspec chain, as in simplecache::s3://bucket/key
        return "::".join(public_url(part) if "://" in part else part for part in url.split("::"))
    if is_local(url):
        return local_path(url)
    protocol, _, rest = url.partition("://")
    protocol = _PROTOCOLS.get(protocol.lower(), protocol.lower())
    if protocol == "hf":
        return "hf://" + _HF_REVISION.sub(r"\1", rest)
    if protocol == "memory":
        return "memory://" + rest.lstrip("/")
    if protocol not in _PORTS:  # an object store: a key may contain any character
        bucket, slash, key = rest.partition("/")
        user, _, host = bucket.rpartition("@")
        if protocol in _CONTAINERS and ":" not in user:  # abfs://container@account
            host = bucket
        key, mark, query = key.partition("?")
        kept = _public_query(query) if mark else ""
        return f"{protocol}://{host}{slash}{key}{f'?{kept}' if kept else ''}"
    try:
        parts = urlsplit(url)
        return _public_web_url(parts, protocol)
    except ValueError:  # not a URL: opening it gives the error
        return re.sub(r"://[^/@]*@", "://", url.split("?", 1)[0])


def is_local(url: str) -> bool:
    return "://" not in url or url.lower().startswith(("file://", "local://"))


def local_path(url: str) -> str:
    """The absolute path of a local url.

    Links are resolved, except for a link to a file without a known extension: caches that name files by content use those.
    """
    path = os.path.abspath(os.path.expanduser(re.sub(r"(?i)^(file|local)://", "", url)))
    whole = os.path.realpath(path)
    if whole.lower().endswith(INPUT_EXTENSIONS) or not os.path.basename(path):
        return whole
    return os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))


def redact(text: str, source: str = "") -> str:
    """Remove the secrets of URLs from a text, such as an error message of a store.

    Args:
        source: an opened url, which may occur in the text verbatim.
    """
    if source and not is_local(source):
        text = text.replace(source, public_url(source))
    text = _URL.sub(lambda found: _redacted(found[0]), text)
    return _PARAMETER.sub(_without_value, text)


def _without_value(found: re.Match[str]) -> str:
    return f"{found[1]}{found[2]}=..." if _SIGNED.match(unquote(found[2])) else found[0]


def _redacted(url: str) -> str:
    end = len(url.rstrip(").,;:]}"))
    return url if is_local(url) else public_url(url[:end]) + url[end:]


def _public_web_url(parts: SplitResult, protocol: str) -> str:
    host = (parts.hostname or "").lower()
    host = f"[{host}]" if ":" in host else host
    port = f":{parts.port}" if parts.port not in (None, _PORTS[protocol]) else ""
    path = quote(_unquoted_unreserved(_SESSION.sub("", parts.path)), safe="/%:@!$&'()*+,;=~-._")
    if "/." in path:
        path = posixpath.normpath(path) + ("/" if path.endswith(("/", "/.", "/..")) else "")
    query = _public_query(parts.query)
    return f"{protocol}://{host}{port}{path or '/'}{f'?{query}' if query else ''}"


def _unquoted_unreserved(path: str) -> str:
    """Decode unnecessary percent-encodings and capitalize the others (RFC 3986, 6.2.2)."""

    def normal(found: re.Match[str]) -> str:
        character = unquote(found[0])
        return character if re.fullmatch(r"[A-Za-z0-9~._-]", character) else found[0].upper()

    return re.sub(r"%[0-9A-Fa-f]{2}", normal, path)


def _public_query(query: str) -> str:
    pairs = [pair for pair in re.split("[&;]", query) if pair]
    names = [unquote(pair.partition("=")[0]) for pair in pairs]
    signed = any(_SIGNATURE.match(name) for name in names) or {"st", "e"} <= set(names)  # the latter are nginx's
    kept = []
    for name, pair in zip(names, pairs, strict=True):
        if _SIGNED.match(name) or (signed and name.lower() in _BESIDE_A_SIGNATURE):
            continue
        value = pair.partition("=")[2]
        if _MASKED.match(name) and value:
            pair = f"{pair.partition('=')[0]}=~{hashlib.sha256(value.encode()).hexdigest()[:8]}"
        kept.append(pair)
    return "&".join(sorted(kept))
