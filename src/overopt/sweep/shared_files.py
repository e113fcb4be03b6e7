"""What cells share reaches other machines through the tracking server: folders as artifacts of the study's run."""

import shutil
import tempfile
from pathlib import Path

from mlflow import MlflowClient

from overopt.checkpoints.locked_folder import locked_folder
from overopt.checkpoints.stage_folder import RECORD, read_record
from overopt.checkpoints.whole_file import whole_file

_FOLDER = "shared"


def publish(client: MlflowClient, run_id: str, folder: Path) -> None:
    """Keep a finished task's folder with a run; its record goes last, so that a folder with one is whole."""
    key = read_record(folder)["key"]
    place = f"{_FOLDER}/{folder.name}"
    if f"{place}/{key}.json" in _files(client, run_id, place):
        return
    for path in sorted(folder.rglob("*")):
        inside = path.parent.name == "checkpoints" and path.name != "last.ckpt"  # of a training only the end is shared
        if path.is_file() and path.name != RECORD and not inside:
            client.log_artifact(run_id, str(path), str(Path(place, path.parent.relative_to(folder))))
    client.log_text(run_id, (folder / RECORD).read_text(), f"{place}/{key}.json")


def fetch(client: MlflowClient, run_id: str, folder: Path) -> None:
    """Get a folder that another machine has published, unless it is here.

    Raises:
        ValueError: it is not there either.
    """
    with locked_folder(folder):
        if read_record(folder).get("status") == "done":
            return
        place = f"{_FOLDER}/{folder.name}"
        records = [
            file for file in _files(client, run_id, place) if file.endswith(".json") and len(Path(file).stem) == 32
        ]
        if not records:
            raise ValueError(
                f"{folder} is on another machine, and run {run_id} has no copy of it: let the machines share --out, "
                "or the tracking store's artifacts"
            )
        with tempfile.TemporaryDirectory() as name:
            got = Path(client.download_artifacts(run_id, place, name))
            record = (got / Path(records[0]).name).read_bytes()
            (got / Path(records[0]).name).unlink()
            shutil.copytree(got, folder, dirs_exist_ok=True)
        with whole_file(folder / RECORD) as file:
            file.write(record)


def _files(client: MlflowClient, run_id: str, place: str) -> list[str]:
    return [file.path for file in client.list_artifacts(run_id, place)]
