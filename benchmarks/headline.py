"""Compares this package with its fastest peer, at the same precision.

Each package counts in its fastest runtime. A runtime for exported models counts for this package
only if a peer was measured in it, too; otherwise the ratio would compare runtimes.
"""

import collections

from benchmarks.subjects import RUNTIMES

OURS = "keras_deit"
# Rows with equal values here are comparable: one machine, model and batch size.
GROUP = (
    "machine",
    "device",
    "device_name",
    "timing",
    "mode",
    "preset",
    "image_size",
    "num_layers",
    "requested_batch_size",
)


def grouped(rows, names=GROUP):
    """{values of these names: rows with them}, in the order of the file."""
    groups = collections.defaultdict(list)
    for row in rows:
        groups[tuple(row.get(name) for name in names)].append(row)
    return groups


def is_measured(row):
    return row["status"] == "measured" and row["package"] != "ceiling"


def speed(row):
    return row["images_per_second"] if is_measured(row) else 0.0


def fastest(rows):
    return max(filter(is_measured, rows), key=speed, default=None)


def packages(rows):
    """{package: its fastest row} of the rows of one precision; for ours, by the rule above."""
    rows = [row for row in rows if is_measured(row)]
    peers = {row["runtime"] for row in rows if row["package"] != OURS}
    if peers:
        rows = [
            row
            for row in rows
            if row["package"] != OURS or row["runtime"] in peers or row["runtime"] not in RUNTIMES
        ]
    return {name: fastest(of_one) for (name,), of_one in grouped(rows, ("package",)).items()}


def same_runtime(rows):
    """{runtime: our speed divided by the fastest peer's} of the rows of one precision."""
    ratios = {}
    for (runtime,), of_one in grouped(rows, ("runtime",)).items():
        ours = fastest(row for row in of_one if row["package"] == OURS)
        peer = fastest(row for row in of_one if row["package"] != OURS)
        if ours and peer:
            ratios[runtime] = speed(ours) / speed(peer)
    return ratios


def headlines(rows):
    """A dict with rows and ratios, for each group and precision that has a row of ours."""
    found = []
    for group in grouped(rows).values():
        for (precision,), of_one in grouped(group, ("precision",)).items():
            best = packages(of_one)
            ours = best.pop(OURS, None)
            peer = fastest(best.values())
            if ours is None:
                continue
            found.append(
                {
                    "precision": precision,
                    "ours": ours,
                    "peer": peer,
                    "ratio": speed(ours) / speed(peer) if peer else None,
                    "same_runtime": same_runtime(of_one),
                    "exported": fastest(
                        row
                        for row in of_one
                        if row["package"] == OURS and row["runtime"] in RUNTIMES
                    ),
                }
            )
    return found
