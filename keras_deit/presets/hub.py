"""Downloads from the Hugging Face Hub through `huggingface_hub`, with its cache, progress bars,
offline mode and HF_ENDPOINT.
"""

import functools
import hashlib
import os
import pathlib
import re


def download(repository, file, revision=None):
    """Returns the path of a repository's file in the local cache, after downloading it if needed.

    Args:
        repository: string, "owner/repo".
        file: string, the file's name.
        revision: string, a commit, tag or branch. A cached file of a commit is used without asking
            the hub. Defaults to the newest commit.

    Returns:
        The path, or `None` if the repository has no such file.

    Raises:
        ValueError: if there is no such repository, or you may not read it.
        ConnectionError: if the hub cannot be reached and the file is not in the cache.
    """
    # Imported here so that `import keras_deit` stays fast.
    import huggingface_hub
    from huggingface_hub import constants, errors

    where = f"{file} of {repository!r} on the Hugging Face Hub"
    cached = huggingface_hub.try_to_load_from_cache(repository, file, revision=revision)
    is_known_to_be_missing = cached is not None and not isinstance(cached, str)
    if is_known_to_be_missing and revision is not None:
        return None
    try:
        if not isinstance(cached, str):
            _reach(constants.ENDPOINT)
        path = huggingface_hub.hf_hub_download(repository, file, revision=revision)
    except errors.GatedRepoError as error:
        raise ValueError(
            f"{where} is gated. Request access on its page, then run `hf auth login`. {error}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ValueError(
            f"Repository {repository!r} on the Hugging Face Hub has no revision {revision!r}. Use "
            f"a commit, tag or branch that its page lists. {error}"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ValueError(
            f"Repository {repository!r} on the Hugging Face Hub does not exist or is private. "
            "Check "
            f"the name. For a private repository, run `hf auth login` or set HF_TOKEN. {error}"
        ) from error
    except (errors.LocalEntryNotFoundError, ConnectionError) as error:
        if is_known_to_be_missing:
            return None
        raise ConnectionError(
            f"{where} is not in the cache and cannot be downloaded. Check the connection, "
            f"HF_ENDPOINT and HF_HUB_OFFLINE. {error}"
        ) from error
    except errors.EntryNotFoundError:
        return None
    # From the HTTP library (time-outs, refused connections, other status codes) and from the Xet
    # storage.
    except (errors.HTTPError, RuntimeError) as error:
        raise ConnectionError(
            f"The download of {where} failed: {error}. Load again: the download resumes."
        ) from error
    return path


@functools.cache
def _reach(endpoint):
    """Raises a ConnectionError unless the hub answers. A hub that answered once is not asked again.

    Without this check, `huggingface_hub` retries for half a minute for each file.
    """
    import huggingface_hub
    from huggingface_hub import constants, errors

    try:
        huggingface_hub.get_session().head(endpoint, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except errors.HTTPError as error:
        raise ConnectionError(f"{endpoint} does not answer: {error}") from error


def cached_revision(repository, file):
    """The commit that an offline download of `file` would use, or `None` if it is not cached."""
    import huggingface_hub

    path = huggingface_hub.try_to_load_from_cache(repository, file)
    return revision_of(path) if isinstance(path, str) else None


def revision_of(path):
    """The commit of a cached file, from its path: .../snapshots/<commit>/<file>."""
    return pathlib.Path(path).parent.name


def verify(content, path, where):
    """Checks the content of a cached file; the cache has large files under their SHA-256.

    Args:
        content: bytes.
        path: what `download` returned. A file whose content differs is removed from the cache.
        where: string, the file in errors.

    Raises:
        OSError: if the content does not match the hub's checksum.
    """
    blob = os.path.realpath(path)
    promised = os.path.basename(blob)
    if not re.fullmatch(r"[0-9a-f]{64}", promised):
        return  # a small file, or a cache without symbolic links
    found = hashlib.sha256(content).hexdigest()
    if found != promised:
        for name in (path, blob):
            pathlib.Path(name).unlink(missing_ok=True)  # another process may have removed it
        raise OSError(
            f"The checksum of {where} is wrong: expected SHA-256 {promised}, received {found}. "
            "The file was removed from the cache. Load again."
        )
