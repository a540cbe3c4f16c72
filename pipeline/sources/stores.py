"""What fsspec needs to open a URL, and what to say where it cannot."""

from pipeline.addresses import redact
from pipeline.sources.base import UnitError

_NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError", "TokenRetrievalError")
_REFUSED = ("403", "401", "Forbidden", "Unauthorized", "Access Denied", "AccessDenied", "gated", "Anonymous caller")
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID or AWS_PROFILE",
    "s3a": "AWS_ACCESS_KEY_ID or AWS_PROFILE",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or gcloud auth application-default login",
    "gcs": "GOOGLE_APPLICATION_CREDENTIALS, or gcloud auth application-default login",
    "hf": "HF_TOKEN, or hf auth login",
    "http": "whether the address needs a login, or its signature has expired",
    "https": "whether the address needs a login, or its signature has expired",
}


def missing_driver(url: str, error: ImportError) -> str:
    """What to install for a URL, in one line."""
    protocol = url.split("://", 1)[0]
    extra = {"s3a": "s3", "gcs": "gs", "https": "http"}.get(protocol, protocol)
    advice = f"pip install -e '.[{extra}]'" if extra in ("s3", "gs", "hf", "http") else "install it"
    return f"{redact(url)!r}: the driver of {protocol}:// is missing ({one_line(error)}); {advice}"


def listing_options(url: str) -> dict[str, bool]:
    """fsspec caches listings; ours must be fresh."""
    return {"use_listings_cache": False} if "://" in url else {}


def one_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def unreadable(source: str, url: str, error: BaseException) -> UnitError:
    """The error of a file that cannot be opened or read, with the credentials to check if it is refused.

    Args:
        source: what was opened.
        url: its public URL.
    """
    # fsspec says "not found" of a server that refuses, and keeps what the server said as the cause.
    cause = error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error
    reason = words_of(cause, source)
    if isinstance(cause, FileNotFoundError) and cause.errno is None:  # of a store; its words are the path alone
        reason = "there is no such file"
    return UnitError(f"cannot read {url}: {reason}{_credentials(source, cause, reason)}")


def words_of(error: BaseException, source: str) -> str:
    """What an error says, in one line and without the secrets of the URL that was opened."""
    return redact(" ".join(str(error).split()), source) or type(error).__name__


def _credentials(source: str, error: BaseException, reason: str) -> str:
    """What to check where there are no credentials, or they do not open the file."""
    where = _CREDENTIALS.get(source.split("://", 1)[0].lower()) if "://" in source else None
    if where is None:
        return ""
    if type(error).__name__ in _NO_CREDENTIALS:
        return f"; no credentials are set: {where}"
    if isinstance(error, PermissionError) or any(word in reason for word in _REFUSED):
        return f"; it is refused: check {where}"
    return ""
