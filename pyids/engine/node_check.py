"""What a node of a cluster is asked before any work: it may have no pyids, so none is imported."""


def look(mark: str, nonce: str, files: list[str], version: str) -> str | None:
    """Say in one line what this node lacks, None if nothing; ``{folder}`` stands for the folder."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as version_of
    from pathlib import Path

    try:
        here = version_of("pyids-select")
    except PackageNotFoundError:
        return f"has no pyids: install pyids-select {version} there"
    if here != version:
        return f"has pyids {here}, this machine {version}: install the same version there"
    try:
        seen = Path(mark).read_text()
    except OSError:
        seen = None
    if seen != nonce:
        return (
            "does not see the run folder {folder}: put it on a file system that all nodes share "
            "(--output-dir)"
        )
    for file in files:
        try:
            with Path(file).open("rb") as opened:
                opened.read(1)
        except OSError as error:
            return f"cannot read {file} ({error.strerror}): put it where all nodes see it".replace(
                "{", "{{"
            ).replace("}", "}}")
    return None
