"""The Ray cluster that tasks run on: how it is found, joined, and what its workers install."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from pyids.errors import ConfigError, PyidsError
from pyids.terminal import printable

# A cluster that has not let a process in without a token by then may want one.
_TRY_SECONDS = 60
# Names what travels to workers.
RUNTIME_ENV = "PYIDS_RUNTIME_ENV"


def connect(ray: Any, address: str | None, size: int | None) -> str | None:
    """Join the cluster at `address`, or the one that runs here, or start one of `size` CPUs.

    Returns
    -------
    str or None
        The temporary folder of the cluster that was started.

    Raises
    ------
    ConfigError
        Nobody answers, or it does not let this process in, or it does not start.
    """
    quiet = {"log_to_driver": False, "configure_logging": False}
    address = address or os.environ.get("RAY_ADDRESS") or _started_cluster()
    if address is not None:
        try:
            # Asked first: Ray itself waits for minutes where nobody answers.
            if match := re.fullmatch(r"(?:ray://)?(.+):(\d+)", address):
                socket.create_connection((match[1], int(match[2])), timeout=10).close()
        except OSError:
            raise ConfigError(
                f"no Ray cluster answers at {address!r}: start it, or give another address"
            ) from None
        runtime_env = _runtime_env()
        _send_token(address)
        try:
            ray.init(address=address, runtime_env=runtime_env, **quiet)
        except (OSError, RuntimeError, ray.exceptions.RayError):
            raise ConfigError(
                f"the Ray cluster at {address!r} answers and does not let this process in: it "
                f"asks for a token that {_token_source()} (set RAY_AUTH_MODE=token and "
                "RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to that of the cluster), or it runs "
                f"another version of Ray than {ray.__version__}"
            ) from None
        return None
    # In a temporary folder of its own, because Ray leaves its logs behind.
    folder = tempfile.mkdtemp(prefix="pyids-ray-")
    try:
        ray.init(
            address="local",
            num_cpus=size,
            include_dashboard=False,
            _temp_dir=folder,
            **quiet,
        )
    except Exception as error:  # Ray raises a bare one where its node does not start in time
        shutil.rmtree(folder, ignore_errors=True)
        raise ConfigError(
            f"Ray cannot start a cluster on this machine ({first_line(error):.200}): give the "
            "same command again when it is less busy, or start one by `ray start --head`"
        ) from error
    return folder


def _send_token(address: str) -> None:
    """Let Ray send the token that this user has, to a cluster that asks for one.

    To no other: a process that expects tokens refuses what a cluster without them asks of it, and
    its actors die (Ray 2.60). So the cluster is tried without one, in a process of its own, for Ray
    decides once a process.
    """
    has_one = _token_file().is_file() or "RAY_AUTH_TOKEN" in os.environ
    if "RAY_AUTH_MODE" in os.environ or not has_one:
        return
    script = "import sys, ray; ray.init(address=sys.argv[1], configure_logging=False)"
    with contextlib.suppress(subprocess.TimeoutExpired):
        done = subprocess.run(
            [sys.executable, "-P", "-c", script, address],
            env={**os.environ, "RAY_AUTH_MODE": "disabled"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_TRY_SECONDS,
            check=False,
        )
        if done.returncode == 0:
            return
    os.environ["RAY_AUTH_MODE"] = "token"
    _read_mode_again()


def _read_mode_again() -> None:
    """Let Ray read the mode once more, as it does itself: it was read when Ray was imported."""
    raylet: Any = importlib.import_module("ray._raylet")  # has no types
    raylet.Config.initialize("")


def _token_file() -> Path:
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


def _token_source() -> str:
    """Say which token was sent, never the token."""
    if os.environ.get("RAY_AUTH_MODE") != "token":
        return "this process does not send"
    if "RAY_AUTH_TOKEN" in os.environ:
        return "is not the one in RAY_AUTH_TOKEN"
    return f"is not the one in {_token_file()}"


def _runtime_env() -> Any:
    """Return what the user has workers install, as Ray takes it."""
    import yaml
    from ray.runtime_env import RuntimeEnv

    given = os.environ.get(RUNTIME_ENV, "").strip()
    if not given:
        return None
    try:
        # JSON is YAML, too.
        text = given if given.startswith("{") else Path(given).read_text(encoding="utf-8")
        return RuntimeEnv(**yaml.safe_load(text))
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise ConfigError(
            f"{RUNTIME_ENV} is no runtime environment ({first_line(error):.200}): give JSON, or "
            "the path of a JSON or YAML file, with what Ray takes there"
        ) from None


def _started_cluster() -> str | None:
    """Address of the cluster that ``ray start`` began on this machine.

    Not what ``ray.init("auto")`` finds: that may be the private cluster of another process, which
    ends when that process does.
    """
    folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    try:
        return Path(folder, "ray", "ray_current_cluster").read_text().strip() or None
    except OSError:
        return None


def ask_for_workers(number: int, *, gpu: bool) -> None:
    """Tell a cluster that can grow how many workers there is work for; with 0 nothing is asked.

    Ray reports few of the tasks that wait (2.60: often none while another runs), so that its
    autoscaler by itself begins one node and no second one.
    """
    from ray.autoscaler.sdk import request_resources

    worker = {"CPU": 1, "GPU": 1} if gpu else {"CPU": 1}
    request_resources(bundles=[worker] * number)


def first_line(error: object) -> str:
    """Return the first line of what an error says."""
    return str(error).partition("\n")[0]


def explained(ray: Any, error: Exception) -> PyidsError | None:
    """Say in one line what went wrong in Ray itself, whatever the task; None: its worker died."""
    errors = ray.exceptions
    if isinstance(error, errors.RuntimeEnvSetupError):
        return ConfigError(
            f"the runtime environment of {RUNTIME_ENV} cannot be made on a node of the cluster "
            f"({_reason(error)}): mend what it names, or unset {RUNTIME_ENV}"
        )
    dead = (errors.WorkerCrashedError, errors.RayActorError, errors.NodeDiedError)
    if isinstance(error, (*dead, errors.OutOfMemoryError)):
        return None
    return PyidsError(
        f"Ray cannot do its part ({printable(first_line(error), one_line=True):.300}): see that "
        "the cluster is well; the same command goes on where it stopped"
    )


def _reason(error: Exception) -> str:
    """Give the last line that says why, of the output of the program that failed."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "error" in line.lower()]
    return f"{printable((telling or lines or [type(error).__name__])[-1], one_line=True):.300}"
