"""Selected rows as a `datasets.Dataset`, and on the hub."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from pyids.data.card import card_of
from pyids.data.exported_rows import PREFIX
from pyids.errors import ConfigError
from pyids.store.folder import Row

if TYPE_CHECKING:
    import datasets


def to_dataset(rows: Iterable[Row]) -> datasets.Dataset:
    """Give rows as a data set: the original columns, ``messages`` and ``_pyids_id``.

    What has no one schema (tools, arguments of calls) is of type ``Json``, and so comes out as it
    was: a table would fill the keys of one row into all others, or refuse them.

    Raises
    ------
    ConfigError
        The package datasets is not installed.
    """
    try:
        import datasets
    except ImportError:
        raise ConfigError(
            "rows as a data set need the package datasets: pip install 'pyids-select[train]'; "
            "`Selection.export` writes them to a file without it"
        ) from None

    whole = [{**row.record, "messages": row.messages, f"{PREFIX}id": row.row_id} for row in rows]
    names = dict.fromkeys(name for row in whole for name in row)
    columns = {name: [row.get(name) for row in whole] for name in names}
    return datasets.Dataset.from_dict(columns, on_mixed_types="use_json")


def push_to_hub(path: Path | str, repository: str, *, private: bool = True) -> str:
    """Upload exported rows as a data set, byte for byte and with their card, by the user's account.

    The credentials are those of ``hf auth login``, or HF_TOKEN; HF_ENDPOINT names another hub.

    Parameters
    ----------
    path : path
        What `export` wrote; of a trainer's folder the rows alone, for its stanza names local paths.
    repository : str
        ``owner/name``; made if it does not exist.
    private : bool, default True
        Whether a repository that is made is seen by its owner alone.

    Returns
    -------
    str
        Its address.

    Raises
    ------
    ConfigError
        The hub refuses, or cannot be reached.
    """
    try:
        from huggingface_hub import HfApi, get_token
    except ImportError:
        raise ConfigError(
            "push_to_hub needs the package huggingface-hub: pip install huggingface-hub"
        ) from None
    path = Path(path)
    rows = path / "selected.jsonl" if path.is_dir() else path
    hub = HfApi()
    try:
        address = hub.create_repo(repository, repo_type="dataset", private=private, exist_ok=True)
        files = {rows.name: rows}
        if (card := card_of(rows)) is not None:
            files["README.md"] = card
        for name, file in files.items():
            hub.upload_file(
                path_or_fileobj=file, path_in_repo=name, repo_id=repository, repo_type="dataset"
            )
    except Exception as error:  # noqa: BLE001  the transport has no one error class
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        # A hub, or a proxy before it, may repeat what it was sent: neither shown nor chained.
        if token := get_token():
            reason = reason.replace(token, "[token]")
        raise ConfigError(
            f"{repository}: the hub did not take it ({reason}): check the name, the network and "
            "`hf auth login`"
        ) from None
    return str(address)
