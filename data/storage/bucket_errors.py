"""What a failed request to a bucket means: whether a retry may help, and the line that users see.

The errors of obstore, the library that makes the requests, are multi-line texts; the patterns in this module match
these texts.
"""

import re

from dhkd.data.errors import StorageError
from dhkd.data.storage.urls import kind_of, where_is

# What users should check if access is refused, by scheme.
REMEDIES = {
    "s3": (
        "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and AWS_ENDPOINT_URL ('aws configure"
        " export-credentials --format env' prints what ~/.aws holds; AWS_SKIP_SIGNATURE=true reads a public bucket)"
    ),
    "gs": "check GOOGLE_APPLICATION_CREDENTIALS (GOOGLE_SKIP_SIGNATURE=true reads a public bucket)",
    "az": "check AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_KEY",
}

NO_BUCKET = ("NoSuchBucket", "ContainerNotFound", "The specified bucket does not exist")
# The first two are addresses that give credentials to cloud machines; obstore asks them if no credentials are set.
NO_CREDENTIALS = ("latest/api/token", "latest/meta-data", "token request", "Account must be specified")


def explained(location: str, key: str, error: Exception, attempts: int = 1) -> OSError:
    """Build the error to raise for a request about `key` below the URL `location` that failed `attempts` times.

    An empty `key` means that the request was about all objects, e.g. a listing.
    """
    scheme, _, path = location.partition("://")
    scheme, host = scheme.lower(), path.partition("/")[0]
    where = where_is(location, key)
    text, status, remedy = str(error), status_of(error), REMEDIES[scheme]
    address = "the endpoint (AWS_ENDPOINT_URL)" if scheme == "s3" else "the URL"
    if any(name in text for name in NO_BUCKET):
        return StorageError(f"{where}: there is no {kind_of(scheme)} {host}; make it, or check its name and {address}")
    if isinstance(error, FileNotFoundError) and key:
        return FileNotFoundError(f"{where}: no object")
    reason = reason_of(error) + (f", asked {attempts} times" if attempts > 1 else "")
    if status[:3] in ("401", "403") or any(name in text for name in NO_CREDENTIALS):
        return StorageError(f"{where}: no access ({reason}); {remedy}")
    if status and not status.startswith("5"):
        return StorageError(f"{where}: refused ({reason}); {remedy}")
    return StorageError(
        f"{where}: can't be reached ({reason}); check the network and {address}, then run the same command again"
    )


def status_of(error: Exception) -> str:
    """Return the HTTP status code with its name, or an empty string if no answer came or it broke off."""
    match = re.search(r"non-2xx status code: (\d{3}[ \w-]*)", str(error))
    return match[1].strip() if match else ""


def may_pass(error: Exception) -> bool:
    """Return whether the request that failed with `error` may succeed when it is retried."""
    text, status = str(error), status_of(error)
    if any(name in text for name in NO_CREDENTIALS):
        return False  # usually there are no credentials, and each attempt waits for the connection's time limit
    lost = "HTTP error: " in text and "builder error" not in text
    return lost or status.startswith("5") or status[:3] in ("408", "429") or isinstance(error, ConnectionError)


def reason_of(error: Exception) -> str:
    """Return in one line why a request failed, taken from obstore's error."""
    text = str(error)
    answered = [*re.findall(r"<Code>([^<]+)</Code>", text)[:1], *re.findall(r"<Message>([^<]+)</Message>", text)[:1]]
    if status := status_of(error):
        reason = ": ".join([status, *answered])
    elif "TimedOut" in text or "kind: Timeout" in text:
        reason = "no answer in time"
    elif messages := re.findall(r'(?:message|error): "([^"]+)"', text):
        reason = messages[-1]
    else:
        reason = text.partition("\n")[0].rpartition(" - ")[2]
    return " ".join(reason.split())[:200] or type(error).__name__
