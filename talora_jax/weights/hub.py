"""Names on the Hugging Face Hub in place of paths: `user/name`, or `user/name@revision`.

A repository holds an adapter or a base under the name that a run gives it. That file and no other
is fetched, into the cache of `huggingface_hub`: safetensors, which run no code, and are read and
checked as any that lie here.
"""

import functools
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import talora_jax
from talora_jax.errors import UserError, one_line, printable

Result = TypeVar("Result")

_WORD = r"[A-Za-z0-9](?:[\w.-]*\w)?"
_NAME = re.compile(rf"({_WORD}/{_WORD})(?:@([\w./-]+))?", re.ASCII)
# What ends like a file of weights is one.
_FILES = (".safetensors", ".pth", ".pt", ".bin")
_REASON = 120  # characters


def is_name(source: str | Path) -> bool:
    """Whether this may name a repository: it has the form, and nothing lies at such a path."""
    text = str(source)
    formed = _NAME.fullmatch(text) and not text.endswith(_FILES)
    return bool(formed) and not Path(text).exists()


def repository_of(name: str) -> str:
    """A name without a revision, to write to.

    Raises:
      UserError: it is none.
    """
    match = _NAME.fullmatch(name)
    if match is None or match[2] is not None or name.endswith(_FILES):
        raise UserError(f"{printable(name)}: expected the name of a repository, user/name")
    return name


@functools.lru_cache
def fetched(name: str, file: str) -> Path:
    """Where a file of a repository lies in the cache, fetched if need be; asked once a process.

    Args:
      name: one that `is_name` knows.

    Raises:
      UserError: there is none, or the Hub cannot be asked.
    """
    repository, revision = _NAME.fullmatch(name).groups()
    try:
        path = asked(repository, lambda api: _download(api, repository, file, revision), file)
    except UserError as error:
        raise UserError(f"there is no path {name}, and {error}") from None
    return Path(path)


def _download(api: Any, repository: str, file: str, revision: str | None) -> str:
    """`hf_hub_download`, which tries for half a minute what this tries once: reaching the Hub."""
    from huggingface_hub import constants, errors, hf_hub_url

    url = hf_hub_url(repository, file, revision=revision, endpoint=api.endpoint)
    try:
        api.get_hf_file_metadata(url=url, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception as error:  # of an HTTP client, see `asked`
        try:
            return api.hf_hub_download(repository, file, revision=revision, local_files_only=True)
        except errors.LocalEntryNotFoundError as missing:
            response = getattr(error, "response", None)
            if response is not None and response.status_code < 500:
                raise error from None
            raise missing from error
    return api.hf_hub_download(repository, file, revision=revision)


def asked(repository: str, ask: Callable[[Any], Result], file: str = "such file") -> Result:
    """What the Hub answers.

    Args:
      repository: what it is asked about.
      ask: called with the `HfApi` of huggingface_hub.
      file: which is asked for.

    Raises:
      UserError: the Hub refuses, has no such thing, or cannot be reached.
    """
    try:
        from huggingface_hub import HfApi, constants, errors
    except ImportError:
        raise UserError(
            f"to ask the Hugging Face Hub for {repository} needs huggingface_hub: pip install "
            "huggingface_hub"
        ) from None
    about = {"library_name": "talora_jax", "library_version": talora_jax.__version__}
    try:
        return ask(HfApi(os.environ.get("HF_ENDPOINT"), **about))
    except errors.GatedRepoError:
        told = f"{repository} on the Hub is gated: accept its terms there, then run: hf auth login"
    except errors.RevisionNotFoundError:
        told = f"{repository} on the Hub has no such revision"
    except errors.LocalEntryNotFoundError as error:
        why = f"cannot be reached ({_reason(error.__cause__ or error)})"
        if constants.HF_HUB_OFFLINE:
            why = "may not be asked (HF_HUB_OFFLINE)"
        told = f"the Hub {why}, and its cache here has no {file} of {repository}"
    except errors.EntryNotFoundError:
        told = f"{repository} on the Hub has no {file}"
    except errors.RepositoryNotFoundError:
        told = (
            f"the Hub shows no {repository}: if it is private, run hf auth login, or set HF_TOKEN"
        )
    except errors.HFValidationError as error:
        told = f"{repository} cannot be on the Hub: {one_line(error)}"
    except errors.HfHubHTTPError as error:
        told = f"the Hub refused {repository}: {_reason(error)}"
        if error.response.status_code in (401, 403):
            told += "; to be known there, run hf auth login, or set HF_TOKEN"
    # The library's HTTP client, whose exceptions these are, is another one in each version of it.
    except Exception as error:
        told = f"the Hub cannot be reached for {repository}: {_reason(error)}"
    raise UserError(told)


def upload(name: str, contents: Mapping[str, str | bytes], *, private: bool) -> str:
    """Puts files into a repository, in one commit, and gives its address; makes it if need be.

    Args:
      name: of the repository.
      contents: by name there, paths of files here or bytes.
      private: of a new repository.

    Raises:
      UserError: as `asked`.
    """

    def send(api: Any) -> str:
        from huggingface_hub import CommitOperationAdd

        api.create_repo(name, private=private or None, exist_ok=True)
        files = [CommitOperationAdd(place, content) for place, content in contents.items()]
        api.create_commit(name, files, commit_message=f"talora_jax {talora_jax.__version__}")
        return f"{api.endpoint}/{name}"

    return asked(name, send)


def _reason(error: BaseException) -> str:
    """What went wrong, in few words: the server's, or else the exception's."""
    response = getattr(error, "response", None)
    if response is None:
        return printable(one_line(error), _REASON)
    words = getattr(error, "server_message", None) or ""
    return printable(one_line(f"status {response.status_code} {words}"), _REASON)
