"""Hub repositories: what they hold, at which commit, and its bytes, checked against the hub's own digests.

Files come through huggingface_hub, which resumes what was interrupted. Commit, sizes and digests are the
hub's metadata of this moment; nothing is assumed about them.
"""

import hashlib
import json
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage]  (of the HTTP library it happens to use)
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from stillmotion.errors import WeightsMissing
from stillmotion.lockfile import digest
from stillmotion.models.selection import pipeline_files
from stillmotion.profiles import INDEX, Source


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """One file of a repository at one commit."""

    source: Source
    name: str
    commit: str
    size: int
    #: SHA-256 of large files; small ones are known by their git blob id (SHA-1) alone.
    sha256: str | None
    blob_id: str | None

    @property
    def path(self) -> str:
        return self.source.place(self.name)


class Hub:
    """The hub as one account sees it; endpoint and token default to huggingface_hub's own settings."""

    def __init__(self, token: str | None = None, endpoint: str | None = None) -> None:
        self._api = HfApi(endpoint=endpoint, token=token)

    def describe(self, source: Source, variant: str) -> list[RemoteFile]:
        """Resolve a source's files, or those of its pipeline in a variant, to commit, size and digest."""
        with self._explained(source):
            info = self._api.model_info(source.repository, files_metadata=True)
        known = {sibling.rfilename: sibling for sibling in info.siblings or ()}
        if absent := [name for name in source.files or (INDEX,) if name not in known]:
            raise WeightsMissing(
                f"Repository {source.repository} no longer holds {', '.join(absent)}; "
                "its owner has changed it. See whether a newer Stillmotion knows the new files."
            )
        if info.sha is None:
            raise WeightsMissing(f"The hub names no commit for {source.repository}; try again later.")
        commit = info.sha

        def remote(name: str) -> RemoteFile:
            told = known[name]
            sha256 = told.lfs.sha256 if told.lfs else None
            return RemoteFile(
                source=source,
                name=name,
                commit=commit,
                size=told.size or 0,
                sha256=sha256,
                blob_id=told.blob_id,
            )

        names = source.files or pipeline_files(self._read(remote(INDEX)), list(known), variant)
        return [remote(name) for name in names]

    def _read(self, file: RemoteFile) -> Any:
        with TemporaryDirectory() as folder:
            text = self.fetch(file, Path(folder)).read_bytes()
        try:
            return json.loads(text)
        except ValueError as error:
            raise WeightsMissing(f"{file.source.repository}/{file.name} is no JSON: {error}.") from error

    def fetch(self, file: RemoteFile, staging: Path) -> Path:
        """Download one file, resuming; raises WeightsMissing when its bytes are not those the hub names."""
        folder = staging / file.source.repository.replace("/", "--")
        api: Any = self._api  # its download has partly unknown types
        with self._explained(file.source):
            told = api.hf_hub_download(
                file.source.repository, file.name, revision=file.commit, local_dir=folder
            )
        path = Path(told)
        if not is_genuine(path, file):
            path.unlink()
            raise WeightsMissing(
                f"{file.source.repository}/{file.name} arrived with other bytes than the hub names; "
                "what came is deleted, pull again."
            )
        return path

    @contextmanager
    def _explained(self, source: Source) -> Generator[None]:
        """Say of each way the hub refuses what the person can do about it."""
        page = f"{self._api.endpoint}/{source.repository}"
        try:
            yield
        except GatedRepoError as error:
            raise WeightsMissing(
                f"{source.repository} is gated. Open {page}, sign in, accept its licence, make a token with "
                "read access, and pull again with --token or HF_TOKEN set."
            ) from error
        except RepositoryNotFoundError as error:
            raise WeightsMissing(
                f"The hub shows no repository {source.repository}: it was moved or removed, or the token is "
                f"wrong. Open {page}; without a token, unset HF_TOKEN."
            ) from error
        except EntryNotFoundError as error:
            raise WeightsMissing(f"{source.repository} lacks a file it listed: {error}.") from error
        except (OfflineModeIsEnabled, HTTPError, OSError) as error:
            raise WeightsMissing(
                f"{page} could not be read: {error}. What has arrived is kept; pull again to go on, or copy "
                "the files from a machine that has them and run `stillmotion models import`."
            ) from error


def is_genuine(path: Path, file: RemoteFile) -> bool:
    """Compare a file with the digest the hub names for it."""
    if path.stat().st_size != file.size:
        return False
    if file.sha256 is not None:
        return digest(path) == file.sha256
    data = path.read_bytes()
    # git names a blob by the SHA-1 of a header and its bytes; the hub tells nothing stronger of small files.
    name = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    return name == file.blob_id


def total_size(files: Sequence[RemoteFile]) -> int:
    return sum(file.size for file in files)
