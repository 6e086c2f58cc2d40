"""Files from the Hugging Face Hub, with its own client: cache, progress bars, offline mode and
HF_ENDPOINT are as users know them.
"""

import functools
import os
import pathlib
import re

from keras_deit.presets.weights import checksum


def download(repository, file, revision=None):
    """The path of a repository's file in the hub's cache, downloaded where it is not there yet;
    `None` if the hub has no such file.

    Of a `revision` (a commit) that the cache has, nothing is asked. Large files are stored under
    their SHA-256, which is compared with the content; a file that differs is removed from the
    cache.

    Raises:
        ValueError: no such repository, or no right to read it.
        ConnectionError: the hub cannot be reached and the file is not in the cache.
        OSError: the content is not what the hub promises.
    """
    # On demand: `import keras_deit` should not pay for it.
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
            f"{where} needs its authors' consent: ask on its page, then `hf auth login`. {error}"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ValueError(
            f"There is no {where}, or it is private. Check the name; for a private one, `hf auth "
            f"login` or set HF_TOKEN. {error}"
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
    # Of the HTTP library (time-outs, refused connections, other status codes), and of the Xet
    # storage.
    except (errors.HTTPError, RuntimeError) as error:
        raise ConnectionError(
            f"The download of {where} failed: {error}. What arrived is kept: load again to go on."
        ) from error
    _verify(path, where)
    return path


@functools.cache
def _reach(endpoint):
    """Raises `ConnectionError` where no hub answers. What has answered once is not asked again.

    The client itself would try for half a minute before it says so, and for each file.
    """
    import huggingface_hub
    from huggingface_hub import constants, errors

    try:
        huggingface_hub.get_session().head(endpoint, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except errors.HTTPError as error:
        raise ConnectionError(f"{endpoint} does not answer: {error}") from error


def cached_revision(repository, file):
    """The commit of the cached repository that a download would give without a connection, or
    `None`.
    """
    import huggingface_hub

    path = huggingface_hub.try_to_load_from_cache(repository, file)
    return revision_of(path) if isinstance(path, str) else None


def revision_of(path):
    """The commit that a file in the cache belongs to: .../snapshots/<commit>/<file>."""
    return pathlib.Path(path).parent.name


def _verify(path, where):
    blob = os.path.realpath(path)
    promised = os.path.basename(blob)
    if not re.fullmatch(r"[0-9a-f]{64}", promised):
        return  # a small file, or a cache without symbolic links
    found = checksum(blob)
    if found != promised:
        for name in (path, blob):
            pathlib.Path(name).unlink(missing_ok=True)  # another process may have found it, too
        raise OSError(
            f"{where} came with SHA-256 {found}, and the hub promises {promised}. It was removed "
            "from the cache: load again."
        )
