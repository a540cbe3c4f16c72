"""Options of fsspec for opening URLs, and messages for URLs that cannot be opened."""

from pipeline.sources.base import UnitError
from pipeline.urls import redact

_NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError", "TokenRetrievalError")
_REFUSED = ("403", "401", "Forbidden", "Unauthorized", "Access Denied", "AccessDenied", "gated", "Anonymous caller")
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID or AWS_PROFILE",
    "s3a": "AWS_ACCESS_KEY_ID or AWS_PROFILE",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or gcloud auth application-default login",
    "gcs": "GOOGLE_APPLICATION_CREDENTIALS, or gcloud auth application-default login",
    "hf": "HF_TOKEN, or hf auth login",
    "http": "whether the URL requires a login, or its signature has expired",
    "https": "whether the URL requires a login, or its signature has expired",
}


def missing_driver(url: str, error: ImportError) -> str:
    """A message that says what to install for a URL."""
    protocol = url.split("://", 1)[0]
    extra = {"s3a": "s3", "gcs": "gs", "https": "http"}.get(protocol, protocol)
    advice = f"pip install -e '.[{extra}]'" if extra in ("s3", "gs", "hf", "http") else "install it"
    return f"{redact(url)!r}: the driver for {protocol}:// is missing ({one_line(error)}); {advice}"


def listing_options(url: str) -> dict[str, bool]:
    """Disable caching of listings, which must be fresh."""
    return {"use_listings_cache": False} if "://" in url else {}


def one_line(error: BaseException) -> str:
    """The message of an error in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def unreadable(source: str, url: str, error: BaseException) -> UnitError:
    """The error for a file that cannot be opened or read; if access is denied, it says which credentials to check.

    Args:
        source: the opened URL.
        url: its public URL.
    """
    # fsspec reports "not found" if a server denies access, with the server's message as the cause.
    cause = error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error
    reason = words_of(cause, source)
    if isinstance(cause, FileNotFoundError) and cause.errno is None:  # of a store; the message is just the path
        reason = "there is no such file"
    return UnitError(f"cannot read {url}: {reason}{_credentials(source, cause, reason)}")


def words_of(error: BaseException, source: str) -> str:
    """The message of an error in one line, without secrets of the opened URL."""
    return redact(" ".join(str(error).split()), source) or type(error).__name__


def _credentials(source: str, error: BaseException, reason: str) -> str:
    """Advice for missing or insufficient credentials."""
    where = _CREDENTIALS.get(source.split("://", 1)[0].lower()) if "://" in source else None
    if where is None:
        return ""
    if type(error).__name__ in _NO_CREDENTIALS:
        return f"; no credentials are set: {where}"
    if isinstance(error, PermissionError) or any(word in reason for word in _REFUSED):
        return f"; access is denied: check {where}"
    return ""
