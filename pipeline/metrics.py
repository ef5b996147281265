"""Numbers of a sweep in training, for Prometheus: `http://127.0.0.1:PORT/metrics`, off by default.

In Prometheus' text format 0.0.4, which needs no library. Listens on loopback alone: whoever
collects from elsewhere comes through a tunnel, or through an agent on this machine. Nothing that
may be a secret is told: numbers, the name of the sweep, and which server is silent.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from pipeline.accounting import Progress
from pipeline.home import Home
from pipeline.journal import pace
from pipeline.status import waiting

_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class MetricsError(OSError):
    """The port cannot be listened on."""


class Meter:
    """What was known last of one sweep. `show` is the driver's, `text` any thread's."""

    def __init__(self, name: str, home: Home) -> None:
        self._name, self._home = name, home
        self._counted: dict[str, dict[str, float]] = {}

    def show(self, progress: Progress) -> None:
        """Called by the driver after every event."""
        ended = {s: getattr(progress, s) for s in ("complete", "diverged", "pruned", "failed")}
        running = len(progress.running)
        left = progress.total - progress.finished - running
        # Another dict, never a changed one: it may be read meanwhile.
        self._counted = {
            "trials": {**ended, "running": running, "due": left},
            "epochs": {
                "planned": progress.epochs_planned,
                "spent": progress.epochs_spent,
                "again": progress.epochs_again,
            },
        }

    def text(self) -> str:
        """All metrics as they are now."""
        counted, found = self._counted, pace(self._home)
        num_waiting, seconds = waiting(self._home)
        silent = {of: float(of in found.silent) for of in ("store", "optuna")}
        lines = [
            *self._metric("trials", "Trials by state", counted.get("trials", {}), "state"),
            *self._metric("epochs", "Epochs by what for", counted.get("epochs", {}), "kind"),
            *self._metric("spooled_trials", "Trials that wait to be published", num_waiting),
            *self._metric("lag_seconds", "For how long the first of them has waited", seconds),
            *self._metric("retries_total", "Times a server was silent", found.retries, "of"),
            *self._metric("silent", "Whether a server has not answered since", silent, "of"),
            *self._metric("workers_lost_total", "Cohorts whose worker died", found.lost),
        ]
        return "\n".join(lines) + "\n"

    def _metric(
        self, name: str, what: str, values: float | Mapping[str, float], label: str = ""
    ) -> Iterator[str]:
        yield f"# HELP lyapsweep_{name} {what}."
        yield f"# TYPE lyapsweep_{name} {'counter' if name.endswith('_total') else 'gauge'}"
        # A sweep's name has no quotes or backslashes (`store.check_name`), nor have our own words.
        whose = f'sweep="{self._name}"'
        if not isinstance(values, Mapping):
            yield f"lyapsweep_{name}{{{whose}}} {values:.12g}"
            return
        for key, value in sorted(values.items()):
            yield f'lyapsweep_{name}{{{whose},{label}="{key}"}} {value:.12g}'


@contextlib.contextmanager
def served(port: int | None, name: str, home: Home) -> Iterator[Callable[[Progress], None]]:
    """Serves a sweep's metrics while the block runs, and yields who is to be told of progress.

    Without a port nobody listens. Raises MetricsError where the port is taken.
    """
    meter = Meter(name, home)
    if port is None:
        yield lambda progress: None
        return
    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), _handler(meter))
    except OSError as error:
        raise MetricsError(
            f"execution.metrics_port: 127.0.0.1:{port} cannot be listened on ({error.strerror}); "
            "take another, or null for none"
        ) from error
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    try:
        yield meter.show
    finally:
        server.shutdown()
        server.server_close()


def _handler(meter: Meter) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 10  # seconds for which one who says nothing holds a thread

        def do_GET(self) -> None:
            if self.path.partition("?")[0] != "/metrics":
                self.send_error(404, "there is only /metrics")
                return
            content = meter.text().encode()
            self.send_response(200)
            self.send_header("Content-Type", _CONTENT_TYPE)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """The driver's standard error is not the place."""

    return Handler
