"""Files from the Hugging Face Hub, with its own client: cache, progress bars, offline mode and HF_ENDPOINT are as users know them."""

import os
import re

from keras_deit.presets.weights import checksum


def download(repository, file):
    """The path of a repository's file in the hub's cache, downloaded where it is not there yet; `None` if the hub has no such file.

    Large files are stored under their SHA-256, which is compared with the content; a file that differs is removed from the cache.

    Raises:
        ValueError: no such repository, or no right to read it.
        ConnectionError: the hub cannot be reached and the file is not in the cache.
        OSError: the content is not what the hub promises.
    """
    # On demand: `import keras_deit` should not pay for it.
    import huggingface_hub
    from huggingface_hub import errors

    where = f"{file} of {repository!r} on the Hugging Face Hub"
    try:
        path = huggingface_hub.hf_hub_download(repository, file)
    except errors.GatedRepoError as error:
        raise ValueError(f"{where} needs its authors' consent: ask on its page, then `hf auth login`. {error}") from error
    except errors.RepositoryNotFoundError as error:
        raise ValueError(
            f"There is no {where}, or it is private. Check the name; for a private one, `hf auth login` or set HF_TOKEN. {error}"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        cached = huggingface_hub.try_to_load_from_cache(repository, file)
        if cached is not None and not isinstance(cached, str):
            return None  # the cache knows that the repository has no such file
        raise ConnectionError(
            f"{where} is not in the cache and cannot be downloaded. Check the connection, HF_ENDPOINT and HF_HUB_OFFLINE. {error}"
        ) from error
    except errors.EntryNotFoundError:
        return None
    except errors.HTTPError as error:  # of the HTTP library: time-outs, refused connections, other status codes
        raise ConnectionError(f"The download of {where} failed: {error}. What arrived is kept: load again to go on.") from error
    _verify(path, where)
    return path


def _verify(path, where):
    blob = os.path.realpath(path)
    promised = os.path.basename(blob)
    if not re.fullmatch(r"[0-9a-f]{64}", promised):
        return  # a small file, or a cache without symbolic links
    found = checksum(blob)
    if found != promised:
        os.remove(path)
        if os.path.exists(blob):
            os.remove(blob)
        raise OSError(
            f"{where} came with SHA-256 {found}, and the hub promises {promised}. It was removed from the cache: load again."
        )
