"""What test_loading_scripts.py runs with datasets 3.6: `python loading_scripts_worker.py FOLDER`, in the root.

FOLDER/calls.json has {name: [builder, options]}. Of each call it leaves the rows, FOLDER/<name>-<split>.parquet, and in
FOLDER/found.json the splits, the phrases that streaming gives, or the error.
"""

import json
import sys
from pathlib import Path
from typing import Any

import datasets


def load(folder: Path, name: str, builder: str, options: dict[str, Any]) -> dict[str, Any]:
    call = dict(path=f"dataset_scripts/{builder}.py", trust_remote_code=True, **options)
    try:
        loaded = datasets.load_dataset(**call)
        for split, rows in loaded.items():
            rows.to_parquet(folder / f"{name}-{split}.parquet")
        streamed = datasets.load_dataset(**call, streaming=True)
        phrases = {split: [row["phrase"] for row in rows] for split, rows in streamed.items()}
    except (ValueError, datasets.exceptions.DatasetGenerationError) as error:
        return {"error": f"{error}: {error.__cause__}"}
    return {"splits": list(loaded), "streamed": phrases}


def main() -> None:
    folder = Path(sys.argv[1])
    calls = json.loads((folder / "calls.json").read_text())
    found = {name: load(folder, name, builder, options) for name, (builder, options) in calls.items()}
    (folder / "found.json").write_text(json.dumps({"version": datasets.__version__, "calls": found}))


if __name__ == "__main__":
    main()
