"""The table of results: a CSV file with a row per model."""

import csv
import io
import pathlib

from evaluation.counts import num_read, share

from keras_deit.atomic import atomic_file
from keras_deit.models import DeiTImageClassifier

COLUMNS = (
    "model_name",
    "top1_acc(%)",
    "top5_acc(%)",
    "published_top1_acc(%)",
    "difference",
    "deit_tf_top1_acc(%)",
    "deit_tf_top5_acc(%)",
    "real_acc(%)",
    "images",
    "corrupt_images",
    "images_per_second",
    "data",
    "crop_ratio",
    "dtype",
)
# Results of sayakpaul/deit-tf, i1k_eval at 79cc91d, for the same weights.
DEIT_TF = pathlib.Path(__file__).parents[1] / "deit_tf.csv"


def row_settings(options, images):
    """The columns that say how the numbers of a row were measured."""
    given = {"crop_ratio": options.crop_ratio, "dtype": options.dtype}
    return {
        "data": images.identity,
        **{name: str("preset's" if value is None else value) for name, value in given.items()},
    }


def build_row(handle, counts, images, settings):
    if not num_read(counts):
        raise ValueError(f"None of the {len(images)} images can be read.")
    with open(DEIT_TF, newline="") as stream:
        deit_tf = {row["model_name"]: row for row in csv.DictReader(stream)}.get(handle, {})
    top1, top5 = (100 * share(counts[name], num_read(counts)) for name in ("top1", "top5"))
    published = DeiTImageClassifier.presets.get(handle, {}).get("top1")
    real = 100 * share(counts["real"], counts["real_images"])
    return {
        "model_name": handle,
        "top1_acc(%)": f"{top1:.3f}",
        "top5_acc(%)": f"{top5:.3f}",
        "published_top1_acc(%)": "" if published is None else f"{published:g}",
        "difference": "" if published is None else f"{top1 - published:+.3f}",
        "deit_tf_top1_acc(%)": deit_tf.get("top1_acc(%)", ""),
        "deit_tf_top5_acc(%)": deit_tf.get("top5_acc(%)", ""),
        "real_acc(%)": f"{real:.3f}" if counts["real_images"] else "",
        "images": str(num_read(counts)),
        "corrupt_images": str(counts["corrupt"] + len(images.skipped)),
        "images_per_second": f"{counts['timed_images'] / counts['seconds']:.1f}"
        if counts["seconds"]
        else "",
        **settings,
    }


def read_rows(output):
    if not output.exists():
        return []
    text = output.read_text(errors="replace")
    if text.partition("\n")[0] != ",".join(COLUMNS):
        raise ValueError("The file exists and is not a table of this program. Choose another path.")
    return list(csv.DictReader(io.StringIO(text)))


def check_rows(rows, settings, with_real_labels):
    """Refuses to add rows to a table of other images or settings."""
    for row in rows:
        changed = [
            f"{name} was {row[name]} and is {value}"
            for name, value in settings.items()
            if row[name] != value
        ]
        if with_real_labels and not row["real_acc(%)"]:
            changed.append("the row has no ReaL accuracy")
        if changed:
            raise ValueError(
                "The table contains results of other images or settings. Use the same settings to "
                f"add rows, or choose another path. Received: {row['model_name']}: "
                f"{'; '.join(changed)}"
            )


def write_rows(output, rows):
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with atomic_file(output) as file:
        file.write_text(text.getvalue())
