"""Which rows count for the headlines, and the contents of the pages."""

import csv
import io
import pathlib
import re

import pytest

from benchmarks import chart, report, results
from benchmarks.headline import headlines, packages
from tests.benchmarks.rows import row

FOLDER = pathlib.Path(report.__file__).parent
FILES = sorted((FOLDER / "results").glob("*.jsonl"))


def test_each_package_counts_in_its_fastest_runtime():
    rows = [
        row("keras_deit", "torch", 40.0),
        row("keras_deit", "torch", 20.0, jit=False),
        row("keras_deit_openvino", "torch", 66.0),
        row("timm", "torch", 50.0),
        row("timm_openvino", "torch", 60.0),
        row("ceiling", "torch", 900.0),
    ]
    (found,) = headlines(rows)
    assert (found["ours"]["subject"], found["peer"]["subject"]) == (
        "keras_deit_openvino",
        "timm_openvino",
    )
    assert found["ratio"] == pytest.approx(1.1)
    assert found["same_runtime"] == pytest.approx({"torch": 0.8, "openvino": 1.1})


def test_a_runtime_in_which_no_peer_was_measured_makes_no_ratio():
    """A headline used to compare bfloat16 in OpenVINO with float32 in PyTorch."""
    rows = [
        row("keras_deit", "torch", 40.0),
        row("keras_deit_openvino", "torch", 66.0),
        row("keras_deit_openvino", "torch", 200.0, dtype="bfloat16"),
        row("timm", "torch", 50.0),
        row("timm_openvino", "torch", 0.0, status="failed", message="RuntimeError: no"),
    ]
    plain, half = headlines(rows)
    assert (plain["ours"]["subject"], plain["ratio"]) == ("keras_deit", 0.8)
    assert plain["exported"]["subject"] == "keras_deit_openvino"
    assert (half["ours"]["subject"], half["peer"], half["ratio"]) == (
        "keras_deit_openvino",
        None,
        None,
    )


def test_a_framework_that_a_peer_does_not_have_counts():
    rows = [row("keras_deit", "jax", 60.0), row("timm", "torch", 50.0)]
    assert packages(rows)["keras_deit"]["runtime"] == "jax"
    assert headlines(rows)[0]["ratio"] == pytest.approx(1.2)


def test_one_table_per_device():
    gpu = {
        "machine": "host",
        "device": "gpu",
        "device_name": "NVIDIA A100-SXM4-80GB",
        "timing": "exclusive",
    }
    state = {
        "gpu": {"driver_version": "580.1"},
        "note": "nothing else",
        "load_average": 0.5,
        "mfu": 0.25,
    }
    rows = [
        row("keras_deit", "torch", 40.0),
        row("timm", "torch", 50.0),
        row(
            "keras_deit",
            "jax",
            90.0,
            dtype="bfloat16",
            peak_device_memory_mib=321.0,
            **gpu,
            **state,
        ),
        row("timm", "torch", 60.0, dtype="bfloat16", **gpu, **state),
    ]
    first, second = report.tables(rows).split("### ")[1:]
    assert first.startswith("a machine\n")
    assert "What shared the machine: not recorded." in first
    assert (
        "| deit_tiny_patch16_224 | 8 | inference | float32 (highest) | torch | 40.0 | timm, torch "
        "| 50.0 | **0.80** "
        "| torch 0.80 |  |" in first.splitlines()
    )
    assert second.startswith("NVIDIA A100-SXM4-80GB\n\nIn a machine with host.\n")
    assert "Driver 580.1." in second
    assert (
        "What shared the machine: nothing else. Load average at each start: 0.5 to 0.5." in second
    )
    assert (
        "| deit_tiny_patch16_224 | 8 | inference | bfloat16 | jax | 90.0 | timm, torch | 60.0 | "
        "**1.50** |  |  "
        "| 88.89 | 220 | 0.25 | 321 |" in second.splitlines()
    )


def test_csv_has_every_row_and_the_reasons_of_failures():
    rows = [
        row("timm", "torch", 0.0, status="not installed", message="No module named 'timm'"),
        row("keras_deit", "torch", 40.0),
        row("keras_hub", "torch", 50.0),
        row("ceiling", "torch", 80.0),
    ]
    found = {
        line["package"]: line for line in csv.DictReader(io.StringIO(report.table_of_all(rows)))
    }
    assert len(found) == 4
    assert (found["keras_deit"]["to_fastest_peer"], found["keras_deit"]["of_ceiling"]) == (
        "0.8",
        "0.5",
    )
    assert found["keras_hub"]["to_fastest_peer"] == ""
    assert (found["timm"]["status"], found["timm"]["message"]) == (
        "not installed",
        "No module named 'timm'",
    )


def test_chart_has_one_case_and_a_panel_per_device(tmp_path):
    rows = [
        row("keras_deit", "torch", 40.0),
        row("timm", "torch", 50.0),
        row("keras_deit", "torch", 70.0, requested_batch_size=1),
        row("keras_deit", "jax", 90.0, dtype="bfloat16", machine="another"),
    ]
    shown = chart._of_one_case(rows)
    assert [content["images_per_second"] for content in shown] == [40.0, 50.0, 90.0]
    chart.draw(rows, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")
    chart.draw([], tmp_path / "empty.png")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_result_files(file):
    rows = results.read(file)
    assert len({content["machine"] for content in rows}) == 1
    assert file.with_suffix(".csv").read_text(encoding="utf-8") == report.table_of_all(rows)


def test_page_has_every_result_file_and_valid_links():
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    for file in FILES:
        assert f"(results/{file.name})" in page
    for page in FOLDER.glob("*.md"):
        for link in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
            assert link.startswith("http") or (FOLDER / link).exists(), (page.name, link)
