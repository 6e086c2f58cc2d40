"""Results of trainings by seed, kept in a JSON file."""

import json
import pathlib

from absl import app

from keras_deit.atomic import atomic_file


def resume(path, settings, num_seeds, run):
    """Runs the seeds that a file does not have, and adds each to the file when it is finished.

    Args:
        path: str, the JSON file.
        settings: dict of the flags that the results depend on.
        num_seeds: int.
        run: function from a seed to a dict of numbers.

    Returns:
        A list of the dicts, rounded to four digits, by seed.
    """
    path = pathlib.Path(path)
    content = (
        json.loads(path.read_text()) if path.exists() else {"settings": settings, "results": []}
    )
    if content["settings"] != settings:
        raise app.UsageError(
            f"--output {path} contains results of other settings, {content['settings']}. Remove "
            "it or choose another file."
        )
    results = content["results"]
    for seed in range(len(results), num_seeds):
        results.append({name: round(value, 4) for name, value in run(seed).items()})
        print(f"seed {seed}: {results[-1]}", flush=True)
        with atomic_file(path) as file:
            file.write_text(json.dumps(content, indent=1) + "\n")
    return results
