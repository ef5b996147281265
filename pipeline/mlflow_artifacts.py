"""Files that MLflow keeps with a run: in place where they are local, else through its server."""

import shutil
import tempfile
from pathlib import Path
from urllib.parse import unquote, urlparse

from mlflow.tracking import MlflowClient


class Artifact:
    """An artifact as a local path: in place where it is local, else downloaded for a while.

    Args:
        root: the run's `artifact_uri`.
        name: path of the file under it.

    Attributes:
        local: where it lies in place, or None.
    """

    def __init__(self, client: MlflowClient, run_id: str, root: str, name: str) -> None:
        self._client, self._run_id, self._name = client, run_id, name
        parsed = urlparse(root)
        is_local = parsed.scheme in ("", "file")
        self.local = Path(unquote(parsed.path)) / name if is_local else None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Path:
        if self.local is not None:
            return self.local
        self._folder = tempfile.TemporaryDirectory(prefix="lyapsweep-")
        return Path(self._client.download_artifacts(self._run_id, self._name, self._folder.name))

    def __exit__(self, *_: object) -> None:
        if self._folder is not None:
            self._folder.cleanup()


def listed(client: MlflowClient, run_id: str, folder: str = "") -> list[str]:
    """Paths of all files of a run under a folder, sub-folders included."""
    found: list[str] = []
    for entry in client.list_artifacts(run_id, folder or None):
        if entry.is_dir:
            found += listed(client, run_id, entry.path)
        elif entry.path != folder:  # Asked for a file, some stores answer with the file.
            found.append(entry.path)
    return found


def download(client: MlflowClient, run_id: str, file: str, target: Path) -> None:
    """Copies one file of a run to the path `target`."""
    with tempfile.TemporaryDirectory(prefix="lyapsweep-") as folder:
        shutil.copyfile(client.download_artifacts(run_id, file, folder), target)
