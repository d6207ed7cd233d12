"""Objects of a bucket in S3, or in a store that speaks its language; every error is one line."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from pyids.errors import ConfigError

ADDRESS = "the address of a place in a bucket is written s3://bucket/name, and no more"


def is_bucket(path: str | Path) -> bool:
    """Whether a name is the address of a bucket that can be written to."""
    return str(path).startswith("s3://")


# How long a store may be silent, and how often it is asked.
CONNECT_S, READ_S, ATTEMPTS = 10, 60, 5


class Found(NamedTuple):
    """An object: its bytes, what changes when it does, and when it did, in seconds of the epoch."""

    size: int
    etag: str
    time: float


@dataclass(frozen=True)
class Bucket:
    """A folder of a bucket.

    Attributes
    ----------
    url
        ``s3://bucket/folder``.
    """

    url: str

    @cached_property
    def _place(self) -> tuple[str, str]:
        bucket, _, prefix = self.url.removeprefix("s3://").partition("/")
        prefix = prefix.strip("/")
        if not bucket or set("@?#*") & set(self.url):
            raise ConfigError(ADDRESS)
        return bucket, prefix and prefix + "/"

    @cached_property
    def _client(self) -> Any:
        try:
            import boto3
            from botocore.config import Config
        except ImportError:
            raise ConfigError(
                f"{self.url}: writing to a bucket needs boto3: pip install 'pyids-select[remote]'"
            ) from None
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        retries: Any = {"max_attempts": ATTEMPTS, "mode": "standard"}
        config = Config(retries=retries, connect_timeout=CONNECT_S, read_timeout=READ_S)
        with self._one_line("cannot be used"):
            return boto3.client("s3", region_name=region or "us-east-1", config=config)

    @contextlib.contextmanager
    def _one_line(self, what: str) -> Iterator[None]:
        """Make an error of the store's client one line."""
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "unknown")
            raise ConfigError(
                f"{self.url}: {what} (the store answers {str(code)[:60]!r}): check the bucket's "
                "name, your key and its rights"
            ) from None
        except KeyError as error:
            raise ConfigError(
                f"{self.url}: {what} (no object store answers like this, without {error}): check "
                "the address in AWS_ENDPOINT_URL"
            ) from None
        except (BotoCoreError, Boto3Error) as error:
            raise ConfigError(
                f"{self.url}: {what} ({type(error).__name__}): check the connection and your key; "
                "the same command goes on where it was"
            ) from None

    def list(self) -> dict[str, Found]:
        """Give the objects of the folder by their names inside it."""
        bucket, prefix = self._place
        with self._one_line("cannot be read"):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=bucket, Prefix=prefix
            )
            return {
                found["Key"].removeprefix(prefix): Found(
                    found["Size"], found["ETag"], found["LastModified"].timestamp()
                )
                for page in pages
                for found in page.get("Contents", ())
            }

    def get(self, name: str, path: Path) -> None:
        """Write an object to a file."""
        bucket, prefix = self._place
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._one_line(f"{name} cannot be read"):
            self._client.download_file(bucket, prefix + name, str(path))

    def get_front(self, name: str, path: Path, limit: int) -> None:
        """Write the first line of an object, and what comes with it, to a file."""
        bucket, prefix = self._place
        with self._one_line(f"{name} cannot be read"), path.open("wb") as file:
            body = self._client.get_object(Bucket=bucket, Key=prefix + name)["Body"]
            with contextlib.closing(body):
                for chunk in body.iter_chunks(1 << 20):
                    file.write(chunk)
                    if b"\n" in chunk or file.tell() > limit:
                        break

    def put(self, name: str, content: bytes | Path) -> None:
        """Write an object, whole or not at all.

        Raises
        ------
        FileNotFoundError
            The file of its content is gone.
        """
        bucket, prefix = self._place
        with self._one_line(f"{name} cannot be written"):
            if isinstance(content, bytes):
                self._client.put_object(Bucket=bucket, Key=prefix + name, Body=content)
            else:
                with content.open("rb") as file:
                    self._client.upload_fileobj(file, bucket, prefix + name)

    def delete(self, name: str) -> None:
        """Remove an object."""
        bucket, prefix = self._place
        with self._one_line(f"{name} cannot be removed"):
            self._client.delete_object(Bucket=bucket, Key=prefix + name)

    def put_if(self, name: str, content: bytes, etag: str | None) -> str | None:
        """Write an object if it is as it was, or (None) is not there; return its ETag, or None."""
        from botocore.exceptions import ClientError

        bucket, prefix = self._place
        condition = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag}
        with self._one_line(f"{name} cannot be written"):
            try:
                done = self._client.put_object(
                    Bucket=bucket, Key=prefix + name, Body=content, **condition
                )
            except ClientError as error:
                code = error.response.get("Error", {}).get("Code")
                if code not in ("NoSuchKey", "PreconditionFailed", "ConditionalRequestConflict"):
                    raise
                return self._as_sent(prefix + name, content)
            return str(done["ETag"])

    def _as_sent(self, key: str, content: bytes) -> str | None:
        """Give the ETag of an object if it is `content`: the answer to a put may get lost."""
        from botocore.exceptions import ClientError

        try:
            found = self._client.get_object(Bucket=self._place[0], Key=key)
        except ClientError:
            return None
        return str(found["ETag"]) if found["Body"].read(len(content) + 1) == content else None

    def age(self, name: str) -> tuple[float, str] | None:
        """Give how old an object is by the store's own clock, in seconds, and its ETag."""
        from botocore.exceptions import ClientError

        bucket, prefix = self._place
        with self._one_line(f"{name} cannot be read"):
            try:
                found = self._client.head_object(Bucket=bucket, Key=prefix + name)
            except ClientError as error:
                if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") == 404:
                    return None
                raise
            written: datetime = found["LastModified"]
            now = _time_there(found["ResponseMetadata"]["HTTPHeaders"].get("date", ""))
            return (now - written).total_seconds(), str(found["ETag"])


def _time_there(said: str) -> datetime:
    """Return the time that a store says it is; ours, where it says none that can be read."""
    try:
        now = parsedate_to_datetime(said)
    except ValueError:
        return datetime.now(UTC)
    return now if now.tzinfo is not None else now.replace(tzinfo=UTC)
