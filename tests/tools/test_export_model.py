"""tools/export_model.py: exported models in their runtimes, and errors.

The runtimes other than TensorFlow come with the `export` extra, which .ci/run installs.
"""

import os
import pathlib
import re
import resource
import subprocess
import sys

import keras
import numpy as np
import pytest
from absl import flags
from PIL import Image

from benchmarks import digits
from keras_deit.layers import DeiTImageConverter
from keras_deit.models import DeiTImageClassifier
from tests.conftest import BACKEND
from tests.helpers import numpy, randomize, tiny_backbone, tiny_classifier
from tests.scripts import ROOT, load_script, run_script

tool = load_script("tools/export_model.py")
NAMES = {
    "saved_model": "deit",
    "onnx": "deit.onnx",
    "litert": "deit.tflite",
    "openvino": "deit.xml",
}

needs_tensorflow = pytest.mark.skipif(
    BACKEND != "tensorflow", reason="models are exported from TensorFlow"
)
pytestmark = [
    pytest.mark.slow,
    # Keras 3.15 looks for what NumPy 2 no longer has.
    pytest.mark.filterwarnings("ignore:In the future `np.object` will be defined:FutureWarning"),
    # OpenVINO's and ONNX's bindings, of SWIG, on Python 3.12.
    pytest.mark.filterwarnings(
        "ignore:builtin type .* has no __module__ attribute:DeprecationWarning"
    ),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Presets."""
    folder = tmp_path_factory.mktemp("presets")
    rng = np.random.default_rng(0)
    randomize(tiny_classifier({"num_layers": 2}), rng).save_to_preset(folder / "tiny")
    first = {"num_layers": 1, "image_shape": (3, 12, 32), "data_format": "channels_first"}
    squeezing = DeiTImageConverter(
        (12, 32),
        0.9,
        "bilinear",
        (0.4, 0.5, 0.6),
        (0.3, 0.2, 0.1),
        data_format="channels_first",
        crop_to_aspect_ratio=False,
    )
    randomize(tiny_classifier(first, preprocessor=squeezing), rng).save_to_preset(
        folder / "other_layout"
    )
    randomize(tiny_classifier({"num_layers": 1}, preprocessor=None), rng).save_to_preset(
        folder / "no_preprocessor"
    )
    return folder


@pytest.fixture(scope="module")
def files(photographs, folder):
    """Photographs, including sizes of 1 x 1 and 40 x 20,000."""
    paths = []
    long = np.resize(photographs[1], (40, 20000, 3))
    for index, photograph in enumerate(
        (photographs[0], photographs[1][:200], photographs[0][:1, :1], long)
    ):
        paths.append(folder / f"{index}.png")
        Image.fromarray(photograph).save(paths[-1])
    return ",".join(map(str, paths))


@pytest.fixture(params=[pytest.param(name, marks=needs_tensorflow) for name in NAMES])
def format(request):
    for package in tool.FORMATS[request.param].packages:
        pytest.importorskip(package)
    return request.param


def refused(message, **options):
    """Asserts that the program exits with this message and leaves no files."""
    output = pathlib.Path(options["output"])
    before = sorted(output.parent.rglob("*")) if output.parent.is_dir() else []
    with pytest.raises(SystemExit) as caught:
        run_script(tool, **options)
    assert re.fullmatch(f"Not exported. {message}", caught.value.code, flags=re.DOTALL), (
        caught.value.code
    )
    assert (sorted(output.parent.rglob("*")) if output.parent.is_dir() else []) == before


def load_as_documented(format, folder, images):
    """Runs the lines of docs/export.md in a process that cannot import this package."""
    page = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    (code,) = [
        code
        for code in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
        if f'"{NAMES[format]}"' in code
    ]
    np.save(folder / "images.npy", images)
    code = f'import sys\nsys.modules["keras_deit"] = None\n{code}\nnp.save("logits.npy", logits)'
    subprocess.run(
        [sys.executable, "-c", code], cwd=folder, check=True, capture_output=True, text=True
    )
    return np.load(folder / "logits.npy")


def test_raw_images_in_its_own_runtime(format, folder, files, photographs, tmp_path, capsys):
    output = tmp_path / "deep" / NAMES[format]
    run_script(
        tool,
        format=format,
        preset=folder / "tiny",
        output=output,
        raw_image_size="60,50",
        photographs=files,
    )
    names = {
        output.name,
        f"{output.name}.labels.txt",
        *(["deit.bin"] if format == "openvino" else []),
    }
    assert {path.name for path in output.parent.iterdir()} == names
    row = capsys.readouterr().out.splitlines()[-1]
    assert re.fullmatch(
        rf"\| {format}, float32, raw, 60 x 50 \| \d+\.\d \| \d+\.\d \| \d\.\de-\d\d \| 100% \|", row
    )
    images = np.stack([photograph[100:160, 200:250] for photograph in photographs])
    expected = DeiTImageClassifier.from_preset(folder / "tiny").predict(images, verbose=0)
    np.testing.assert_allclose(
        load_as_documented(format, output.parent, images), expected, rtol=0, atol=1e-4
    )


def test_labels_file(format, rng, tmp_path, capsys):
    labels = ["Zürich", "two\nlines", "c", "d", "e"]
    tiny_classifier({"num_layers": 1}, labels=labels).save_to_preset(tmp_path / "labelled")
    output = tmp_path / "deep" / NAMES[format]
    run_script(tool, format=format, preset=tmp_path / "labelled", output=output)
    path = output.parent / f"{NAMES[format]}.labels.txt"
    assert path.read_text(encoding="utf-8") == "Zürich\ntwo lines\nc\nd\ne\n"
    assert f"Wrote {output} and {path}\n" in capsys.readouterr().out
    code = (
        (ROOT / "docs" / "export.md")
        .read_text(encoding="utf-8")
        .split("its largest logit:\n\n```python\n")[1]
        .split("```")[0]
    )
    images = rng.normal(size=(3, 12, 32, 3)).astype("float32")
    logits = tool.FORMATS[format].load(output)(images)["logits"]
    code = code.replace('"deit.onnx.labels.txt"', repr(str(path)))
    exec(code, {"logits": logits})
    assert capsys.readouterr().out.strip() == str(
        [labels[index].replace("\n", " ") for index in logits.argmax(axis=-1)]
    )
    other = output.with_name(f"other{tool.FORMATS[format].suffix}")
    os.rename(path, f"{other}.labels.txt")
    refused(
        "--output: .*labels.txt exists. Remove it or choose another path.",
        format=format,
        preset=tmp_path / "labelled",
        output=other,
    )


def test_scores_at_any_batch_size(format, folder, rng, tmp_path):
    output = tmp_path / NAMES[format]
    run_script(tool, format=format, preset=folder / "tiny", output=output, attention_scores=True)
    classifier = DeiTImageClassifier.from_preset(folder / "tiny")
    model = keras.Model(classifier.input, classifier.outputs_with_attention_scores)
    run = tool.FORMATS[format].load(output)
    for batch in (1, 5):
        images = rng.normal(size=(batch, 12, 32, 3)).astype("float32")
        found, expected = run(images), model(images)
        assert set(found) == {"logits", "block_0", "block_1"}
        np.testing.assert_allclose(found["logits"], numpy(expected["outputs"]), rtol=0, atol=1e-5)
        for name, scores in expected["attention_scores"].items():
            np.testing.assert_allclose(found[name], numpy(scores), rtol=0, atol=1e-5)


def test_fixed_batch_in_channels_first(format, folder, rng, tmp_path):
    output = tmp_path / NAMES[format]
    run_script(
        tool,
        format=format,
        preset=folder / "other_layout",
        output=output,
        raw_image_size="7,90",
        batch_size=3,
    )
    images = rng.integers(0, 256, (3, 3, 7, 90)).astype("uint8")
    expected = DeiTImageClassifier.from_preset(folder / "other_layout").predict(images, verbose=0)
    run = tool.FORMATS[format].load(output)
    np.testing.assert_allclose(run(images)["logits"], expected, rtol=0, atol=1e-4)
    # TensorFlow makes room for another batch, and LiteRT's interpreter does when asked to
    if format in ("onnx", "openvino"):
        with pytest.raises(Exception, match=r"(?s)[Dd]imension|shape"):
            run(images[:2])


@pytest.mark.parametrize("position_scope", ["all", "rotary"])
def test_images_of_any_size(format, position_scope, rng, tmp_path, capsys):
    """Sizes that were neither traced nor compared by the program."""
    classifier = tiny_classifier({"num_layers": 1, "position_scope": position_scope})
    randomize(classifier, rng).save_to_preset(tmp_path / "preset")
    output = tmp_path / NAMES[format]
    run_script(tool, format=format, preset=tmp_path / "preset", output=output, any_image_size=True)
    assert f"| {format}, float32, any size |" in capsys.readouterr().out
    run = tool.FORMATS[format].load(output)
    for size in ((8, 40), (20, 16), (12, 32)):
        images = rng.normal(size=(3, *size, 3)).astype("float32")
        classifier = DeiTImageClassifier.from_preset(tmp_path / "preset", image_shape=(*size, 3))
        np.testing.assert_allclose(
            run(images)["logits"], numpy(classifier(images)), rtol=0, atol=1e-4
        )
    with pytest.raises(Exception, match=r"(?s)[Rr]eshape|RESHAPE|shape"):
        run(rng.normal(size=(3, 12, 30, 3)).astype("float32"))


def test_a_preset_of_any_size_that_pads(format, rng, tmp_path):
    """ONNX's remainder of a negative number is negative: the padding had another size."""
    backbone = {"image_shape": (3, None, None), "position_grid_size": (3, 4), "num_layers": 1}
    backbone |= {"data_format": "channels_first", "pad_images": True}
    classifier = randomize(tiny_classifier(backbone, preprocessor=None), rng)
    classifier.save_to_preset(tmp_path / "preset")
    output = tmp_path / NAMES[format]
    run_script(tool, format=format, preset=tmp_path / "preset", output=output)
    run = tool.FORMATS[format].load(output)
    for size in ((12, 32), (13, 30), (3, 41)):
        images = rng.normal(size=(2, 3, *size)).astype("float32")
        np.testing.assert_allclose(
            run(images)["logits"], numpy(classifier(images)), rtol=0, atol=1e-4
        )


@needs_tensorflow
def test_any_size_is_of_converted_images(folder, tmp_path):
    refused(
        "--any_image_size takes converted images. Leave out --raw_image_size, whose conversion has "
        "one size. Received: --raw_image_size 20,20",
        format="saved_model",
        preset=folder / "tiny",
        output=tmp_path / "no" / "any",
        raw_image_size="20,20",
        any_image_size=True,
    )


@needs_tensorflow
def test_a_saved_model_takes_images_of_any_size(folder, files, photographs, tmp_path):
    run_script(
        tool,
        format="saved_model",
        preset=folder / "tiny",
        output=tmp_path / "deit",
        raw_image_size="any",
        attention_scores=True,
        photographs=files,
    )
    classifier = DeiTImageClassifier.from_preset(folder / "tiny")
    run = tool.FORMATS["saved_model"].load(tmp_path / "deit")
    for images in (np.stack(photographs), photographs[0][None, :1, :1], photographs[1][None, :1]):
        found = run(images)
        np.testing.assert_allclose(
            found["logits"], classifier.predict(images, verbose=0), rtol=0, atol=1e-4
        )
        assert found["block_1"].shape == (len(images), 2, 14, 14)


@needs_tensorflow
def test_a_saved_model_has_each_weight_once(folder, tmp_path):
    run_script(tool, format="saved_model", preset=folder / "tiny", output=tmp_path / "deit")
    import tensorflow as tf

    variables = tf.train.list_variables(str(tmp_path / "deit" / "variables" / "variables"))
    written = sum(
        np.prod(shape, dtype=int) for name, shape in variables if name.endswith("VARIABLE_VALUE")
    )
    assert written == DeiTImageClassifier.from_preset(folder / "tiny").count_params()


@pytest.mark.parametrize("reduction", [{"num_merged_tokens": 2}, {"keep_rate": 0.75}])
def test_fewer_tokens(format, reduction, rng, tmp_path):
    """The first block leaves two tokens less: of 12 patches, or 9 and a fused one."""
    tiny_classifier(reduction).save_to_preset(tmp_path / "merged")
    run_script(
        tool,
        format=format,
        preset=tmp_path / "merged",
        output=tmp_path / NAMES[format],
        attention_scores=True,
    )
    images = rng.normal(size=(2, 12, 32, 3)).astype("float32")
    found = tool.FORMATS[format].load(tmp_path / NAMES[format])(images)
    expected = DeiTImageClassifier.from_preset(tmp_path / "merged")(images)
    np.testing.assert_allclose(found["logits"], numpy(expected), rtol=0, atol=1e-5)
    assert found["block_1"].shape[-1] == found["block_0"].shape[-1] - 2


@needs_tensorflow
def test_converted_images_without_a_preprocessor(folder, tmp_path):
    run_script(
        tool, format="saved_model", preset=folder / "no_preprocessor", output=tmp_path / "deit"
    )
    assert (tmp_path / "deit" / "saved_model.pb").is_file()
    why = "--raw_image_size needs a preset with a `DeiTImageConverter` as its preprocessor. .*"
    refused(
        why,
        format="saved_model",
        preset=folder / "no_preprocessor",
        output=tmp_path / "no" / "raw",
        raw_image_size="20,20",
    )
    why = "--photographs needs a preset with a preprocessor. .*no_preprocessor"
    refused(
        why,
        format="saved_model",
        preset=folder / "no_preprocessor",
        output=tmp_path / "no" / "raw",
        photographs="a.jpg",
    )


@needs_tensorflow
def test_int8_gives_the_predictions_of_the_digits(tmp_path):
    pytest.importorskip("ai_edge_litert")
    run_script(
        tool,
        format="litert",
        preset=digits.PRESET,
        output=tmp_path / "float32.tflite",
        raw_image_size="8,8",
    )
    run_script(
        tool,
        format="litert",
        preset=digits.PRESET,
        output=tmp_path / "int8.tflite",
        raw_image_size="8,8",
        int8=True,
    )
    sizes = [(tmp_path / name).stat().st_size for name in ("int8.tflite", "float32.tflite")]
    assert sizes[0] < 0.4 * sizes[1]
    images, _ = digits.test_digits()
    expected = DeiTImageClassifier.from_preset(digits.PRESET).predict(images, verbose=0)
    found = tool.FORMATS["litert"].load(tmp_path / "float32.tflite")(images)["logits"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    found = tool.FORMATS["litert"].load(tmp_path / "int8.tflite")(images)["logits"]
    # 1.0 when it was written
    assert np.mean(found.argmax(axis=-1) == expected.argmax(axis=-1)) >= 0.99


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of digits in two folders of classes, and of other files."""
    folder = tmp_path_factory.mktemp("photos")
    for index, image in enumerate(digits.training_digits()[0][:8]):
        (folder / str(index % 2)).mkdir(exist_ok=True)
        Image.fromarray(image[..., 0]).save(folder / str(index % 2) / f"{index}.png")
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.mark.parametrize(
    ("format", "raw"), [("onnx", False), ("onnx", True), ("litert", False), ("openvino", True)]
)
@needs_tensorflow
def test_calibrated_int8(format, raw, photos, tmp_path, capsys):
    """Few images to calibrate on, which costs OpenVINO some digits."""
    for package in (*tool.FORMATS[format].packages, *tool.FORMATS[format].int8_packages):
        pytest.importorskip(package)
    options = {"preset": digits.PRESET, "format": format, "int8": True}
    options |= {"raw_image_size": "8,8"} if raw else {"batch_size": 5}
    output = tmp_path / NAMES[format]
    run_script(tool, output=output, calibration_images=photos, **options)
    assert f"| {format}, int8" in capsys.readouterr().out
    # No file of another step stays.
    names = {output.name, f"{output.name}.labels.txt", output.with_suffix(".bin").name}
    assert {path.name for path in tmp_path.iterdir()} <= names
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 600_000  # 890 kB in float32
    images, _ = digits.test_digits()
    classifier = DeiTImageClassifier.from_preset(digits.PRESET)
    expected = classifier.predict(images[:30], verbose=0)
    inputs = images[:30] if raw else numpy(classifier.preprocessor(images[:30]))
    run = tool.FORMATS[format].load(output)
    found = np.concatenate([run(inputs[i : i + 5])["logits"] for i in range(0, 30, 5)])
    assert np.mean(found.argmax(axis=-1) == expected.argmax(axis=-1)) >= 0.93


@needs_tensorflow
def test_errors_of_int8(folder, photos, tmp_path, rng):
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "a.png").write_bytes(b"no image")
    classifier = tiny_classifier({"num_layers": 1})
    classifier.quantize("int8", filters=lambda layer: isinstance(layer, keras.layers.Dense))
    classifier.save_to_preset(tmp_path / "int8")
    for format, message, options in (
        ("saved_model", "--int8 needs --format onnx, litert or openvino. Received: .*", {}),
        ("openvino", "--format openvino --int8 needs images to calibrate on. .*", {}),
        ("onnx", "--preset .*: This preset is quantized. .*", {"preset": tmp_path / "int8"}),
        ("onnx", ".* has no images. Expected files ending .*", {"calibration_images": "empty"}),
        ("onnx", "--calibration_images .*: There is no folder .*", {"calibration_images": "none"}),
        ("onnx", ".*a.png is not an image that .*", {"calibration_images": "damaged"}),
        (
            "onnx",
            "--calibration_images needs a preset with a preprocessor. .*",
            {"calibration_images": photos, "preset": folder / "no_preprocessor"},
        ),
        (
            "onnx",
            "--calibration_images is for int8. Add --int8, .*",
            {"calibration_images": "empty", "int8": False},
        ),
    ):
        if "calibration_images" in options:
            options["calibration_images"] = tmp_path / options["calibration_images"]
        options = {"preset": folder / "tiny", "int8": True, **options}
        refused(message, format=format, output=tmp_path / "no" / NAMES[format], **options)


@needs_tensorflow
def test_litert_has_neither_flex_operators_nor_ranks_above_4(tmp_path):
    pytest.importorskip("ai_edge_litert")
    images = keras.Input((20, 30, 3), 1, "uint8", name="images")
    resize = keras.Model(images, {"logits": DeiTImageConverter(8)(images)})
    resize(np.zeros((1, 20, 30, 3), "uint8"))
    with pytest.raises(
        ValueError, match="--format litert: The model cannot be exported. .*ScaleAndTranslate"
    ):
        tool.write(resize, tmp_path / "resize.tflite", "litert")
    large = keras.Model(
        images,
        {
            "logits": keras.ops.transpose(
                keras.ops.reshape(images, (1, 2, 10, 30, 3)), (0, 4, 1, 2, 3)
            )
        },
    )
    large(np.zeros((1, 20, 30, 3), "uint8"))
    with pytest.raises(
        ValueError,
        match="Mobile delegates need tensors of rank 4 or less. The file contains others: ",
    ):
        tool.write(large, tmp_path / "large.tflite", "litert")


@needs_tensorflow
@pytest.mark.parametrize("wrong", [2e-4, np.nan])
def test_wrong_outputs_are_not_exported(wrong, folder, tmp_path, monkeypatch):
    def load(path):
        run = saved_model.load(path)
        return lambda images: {"logits": run(images)["logits"] + wrong}

    saved_model = tool.FORMATS["saved_model"]
    monkeypatch.setitem(tool.FORMATS, "saved_model", saved_model._replace(load=load))
    refused(
        "The outputs of the exported model differ from Keras by up to .*. At most 1e-04 was .*",
        format="saved_model",
        preset=folder / "tiny",
        output=tmp_path / "deit",
    )


def test_a_full_disk_leaves_nothing(format, folder, tmp_path):
    """The system limits the size of files, as a full disk does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))
    try:
        refused(
            f"--format {format}: The model cannot be exported. .*",
            format=format,
            preset=folder / "tiny",
            output=tmp_path / NAMES[format],
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@needs_tensorflow
@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("--preset deit_tiny: A preset handle is a .*", {"preset": "deit_tiny"}),
        ("--output: .*taken exists. Remove it or choose another path.", {"output": "taken"}),
        (
            "--raw_image_size must be HEIGHT,WIDTH, each from 1 to 8192 pixels, .*: 20000,20",
            {"raw_image_size": "20000,20"},
        ),
        ("--raw_image_size must be HEIGHT,WIDTH, .* Received: 0,20", {"raw_image_size": "0,20"}),
        ("--raw_image_size must be HEIGHT,WIDTH, .* Received: 224", {"raw_image_size": "224"}),
        ("Images of 1 x 8192 pixels would be resized to .*", {"raw_image_size": "1,8192"}),
        (
            "--photographs nothing.jpg: There is no file nothing.jpg. .*",
            {"photographs": "nothing.jpg"},
        ),
        ("--photographs .*taken is not an image that .*", {"photographs": "{folder}/taken"}),
        ("--preset .*backbone.*", {"preset": "{folder}/backbone"}),
    ],
)
def test_errors_name_the_flag(message, options, folder, tmp_path):
    (tmp_path / "taken").write_text("here before")
    tiny_backbone().save_to_preset(tmp_path / "backbone")
    options = {
        name: str(value).replace("{folder}", str(tmp_path)) for name, value in options.items()
    }
    output = tmp_path / options.pop("output", "deit")
    refused(
        message, **{"format": "saved_model", "preset": folder / "tiny", "output": output, **options}
    )
    assert (tmp_path / "taken").read_text() == "here before"


@pytest.mark.parametrize(
    ("message", "options"),
    [
        (
            "--output must end in .onnx for --format onnx. Received: .*deit",
            {"format": "onnx", "output": "deit"},
        ),
        (".*deit.bin exists. .*", {"format": "openvino", "output": "deit.xml"}),
        (
            "--raw_image_size any needs --format saved_model. .*",
            {"format": "onnx", "output": "deit.onnx"},
        ),
    ],
)
@needs_tensorflow
def test_errors_on_the_output_file(message, options, tmp_path, monkeypatch):
    monkeypatch.setattr(tool.importlib.util, "find_spec", lambda package: package)
    (tmp_path / "deit.bin").write_text("here before")
    refused(
        message,
        format=options["format"],
        preset=digits.PRESET,
        output=tmp_path / options["output"],
        raw_image_size="any",
    )


@needs_tensorflow
def test_error_without_the_runtime(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    why = re.escape('--format onnx needs tf2onnx and onnxruntime: `pip install ".[export]"`.')
    refused(why, format="onnx", preset=digits.PRESET, output=tmp_path / "deit.onnx")


@pytest.mark.backend
@pytest.mark.skipif(BACKEND == "tensorflow", reason="TensorFlow exports")
def test_error_on_other_backends(tmp_path):
    why = "Keras exports from TensorFlow only. .* Received: KERAS_BACKEND=.*"
    refused(why, format="onnx", preset=digits.PRESET, output=tmp_path / "deit.onnx")


def test_an_unknown_format(tmp_path):
    with pytest.raises(
        flags.IllegalFlagValueError,
        match=re.escape("should be one of <saved_model|onnx|litert|openvino>"),
    ):
        run_script(tool, format="torch", preset=digits.PRESET, output=tmp_path / "deit")


@pytest.mark.process
def test_prints_what_it_wrote_and_no_log(format, tmp_path):
    command = [
        sys.executable,
        ROOT / "tools" / "export_model.py",
        f"--format={format}",
        "--preset",
        digits.PRESET,
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command += ["--output", tmp_path / NAMES[format]]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert len(result.stdout.splitlines()) == 4
    assert "Warning" not in result.stderr
    # LiteRT's C++ runtime says how it computes, whatever level of log is asked for.
    log = result.stderr.replace("INFO: Created TensorFlow Lite XNNPACK delegate for CPU.\n", "")
    assert not re.search(r"INFO|\.py:\d+", log)


@pytest.mark.process
def test_on_the_command_line(tmp_path):
    command = [
        sys.executable,
        ROOT / "tools" / "export_model.py",
        "--format=saved_model",
        "--preset",
        digits.PRESET,
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "KERAS_BACKEND": "tensorflow"}
    result = subprocess.run(
        [*command, "--output", tmp_path],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert (result.returncode, result.stdout) == (1, "")
    assert (
        result.stderr.splitlines()[-1]
        == f"Not exported. --output: {tmp_path} exists. Remove it or choose another path."
    )
