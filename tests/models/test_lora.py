"""Low-rank adapters: trained alone, saved and loaded alone, merged in every file."""

import keras
import numpy as np
import pytest

from keras_deit.models import DeiTImageClassifier
from keras_deit.presets import read_tensors
from keras_deit.presets.safetensors_file import parse_metadata, parse_tensors, write_tensors
from tests.conftest import BACKEND
from tests.helpers import images, numpy, raises, randomize, same_arrays, tiny_backbone
from tests.models.tiny import LOSS, tiny_classifier

pytestmark = pytest.mark.backend


def adapted(rng, rank=2, targets=("qkv",), seed=7, **arguments):
    """A classifier with random adapters on weights that depend on `seed` alone."""
    classifier = randomize(
        tiny_classifier({"num_layers": 2}, **arguments), np.random.default_rng(seed)
    )
    classifier.enable_lora(rank, targets)
    for variable in classifier.trainable_variables:
        variable.assign(rng.normal(size=variable.shape))
    return classifier


def kernels(model):
    return [variable for variable in model.weights if "lora" not in variable.name]


TARGETS = {
    "qkv": ["attention/qkv"],
    "projection": ["attention/projection", "mlp/projection"],
    ("mlp/intermediate", "qkv"): ["attention/qkv", "mlp/intermediate"],
}


@pytest.mark.parametrize("targets", TARGETS)
def test_the_adapters_and_the_head_train(targets, rng):
    classifier = adapted(rng, targets=targets)
    names = {variable.path for variable in classifier.trainable_variables}
    assert names == {
        *(
            f"block_{index}/{path}/lora_kernel_{part}"
            for index in range(2)
            for path in TARGETS[targets]
            for part in "ab"
        ),
        *(variable.path for variable in classifier.head.weights),
    }


def test_outputs_are_those_of_the_sum_of_the_products(rng):
    x = images(rng)
    classifier = tiny_classifier()
    qkv = classifier.backbone.blocks[0].attention.qkv
    before, kernel = numpy(classifier(x)), numpy(qkv.kernel)
    classifier.enable_lora(rank=3)
    same_arrays(classifier(x), before)  # B is 0
    a, b = rng.normal(size=(8, 3)), rng.normal(size=(3, 24))
    qkv.lora_kernel_a.assign(a)
    qkv.lora_kernel_b.assign(b)
    after = numpy(classifier(x))
    assert abs(after - before).max() > 1e-3
    plain = tiny_classifier()
    plain.set_weights([numpy(variable) for variable in kernels(classifier)])
    plain.backbone.blocks[0].attention.qkv.kernel.assign(kernel + a @ b)
    np.testing.assert_allclose(numpy(plain(x)), after, atol=1e-5)


@pytest.mark.slow
def test_training_changes_the_adapters_and_the_head_alone(rng):
    """Also after `predict`, whose compiled program did not have them."""
    x, y = images(rng), np.arange(4)
    classifier = tiny_classifier(preprocessor=None)
    classifier.compile(keras.optimizers.SGD(0.1), **LOSS)
    classifier.predict(x, verbose=0)
    classifier.enable_lora(2)
    classifier.compile(keras.optimizers.SGD(0.1), **LOSS)
    frozen = [v for v in classifier.backbone.weights if "lora" not in v.name]
    before, trained = [numpy(v) for v in frozen], classifier.trainable_variables
    of_training = [numpy(v) for v in trained]
    classifier.fit(x, y, epochs=2, verbose=0)
    same_arrays(frozen, before)
    for variable, start in zip(trained, of_training):
        assert abs(numpy(variable) - start).max() > 0, variable.path
    np.testing.assert_allclose(classifier.predict(x, verbose=0), numpy(classifier(x)), atol=1e-5)


@pytest.mark.parametrize("enabled", [False, True])
def test_adapters_are_saved_and_loaded_alone(enabled, rng, tmp_path):
    x = images(rng)
    classifier = adapted(rng)
    classifier.save_lora_weights(tmp_path / "new" / "task.safetensors")
    found = read_tensors(tmp_path / "new" / "task.safetensors")
    assert set(found) == {
        *(f"block_{index}/attention/qkv/lora_kernel_{part}" for index in range(2) for part in "ab"),
        *(
            f"head/{token}_head/{n}"
            for token in ("class", "distillation")
            for n in ("kernel", "bias")
        ),
    }
    other = randomize(tiny_classifier({"num_layers": 2}), np.random.default_rng(7))
    if enabled:
        other.enable_lora(2)
    other.load_lora_weights(tmp_path / "new" / "task.safetensors")
    same_arrays(other(x), classifier(x))


def test_adapters_of_a_backbone(rng, tmp_path):
    backbone = tiny_backbone(num_layers=1)
    backbone.enable_lora(2, "projection")
    assert len(backbone.trainable_variables) == 4
    backbone.save_lora_weights(tmp_path / "adapters.safetensors")
    twin = tiny_backbone(num_layers=1)
    twin.load_lora_weights(tmp_path / "adapters.safetensors")
    same_arrays(twin.trainable_variables, backbone.trainable_variables)


@pytest.mark.parametrize("frozen", ["classifier", "backbone", "block"])
def test_what_was_frozen_trains_its_adapters(frozen):
    classifier = tiny_classifier()
    backbone = classifier.backbone
    layers = {"classifier": classifier, "backbone": backbone, "block": backbone.blocks[0]}
    layers[frozen].trainable = False
    classifier.enable_lora(2)
    assert len(classifier.trainable_variables) == 2 + 4


def merged_files(classifier, tmp_path):
    classifier.save_to_preset(tmp_path / "preset")
    classifier.save(tmp_path / "model.keras")
    return {
        "preset": DeiTImageClassifier.from_preset(tmp_path / "preset"),
        "keras": keras.saving.load_model(tmp_path / "model.keras"),
        "merged": classifier.merge_lora(),
    }


@pytest.mark.slow
def test_files_and_merged_models_are_plain(rng, tmp_path):
    x, classifier = images(rng), adapted(rng, targets=("qkv", "projection", "intermediate"))
    expected = numpy(classifier(x))
    for name, plain in merged_files(classifier, tmp_path).items():
        assert not any("lora" in variable.name for variable in plain.weights), name
        assert len(plain.trainable_variables) == len(plain.weights), name  # nothing is frozen
        np.testing.assert_allclose(numpy(plain(x)), expected, atol=1e-5, err_msg=name)
    same_arrays(classifier(x), expected)  # and the model keeps its adapters
    assert plain.labels == classifier.labels and plain.preprocessor is classifier.preprocessor


@pytest.mark.slow
@pytest.mark.skipif(BACKEND == "torch", reason="PyTorch has no int8 product on a CPU")
@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method:UserWarning")
def test_adapters_of_a_quantized_model(rng, tmp_path):
    x = images(rng)
    classifier = randomize(tiny_classifier({"num_layers": 1}), rng)
    classifier.quantize("int8")
    classifier.enable_lora(2)
    _, b = classifier.backbone.trainable_variables
    b.assign(rng.normal(size=b.shape))
    expected = numpy(classifier(x))
    for plain in merged_files(classifier, tmp_path).values():
        assert str(plain.backbone.blocks[0].attention.qkv.kernel.dtype) == "int8"
        np.testing.assert_allclose(numpy(plain(x)), expected, atol=0.1)  # int8 rounds the sum anew


@pytest.mark.slow
def test_an_exported_program_has_the_merged_kernels(rng, tmp_path):
    if BACKEND != "tensorflow":
        exported = {}

        def export(self, *args, **kwargs):
            exported["model"] = self

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(keras.Model, "export", export)
            adapted(rng).export(tmp_path / "program")
        assert not exported["model"]._has_lora()
        return
    import tensorflow as tf

    x, classifier = images(rng), adapted(rng)
    classifier.export(tmp_path / "program", verbose=False)
    program = tf.saved_model.load(str(tmp_path / "program"))
    np.testing.assert_allclose(program.serve(x).numpy(), numpy(classifier(x)), atol=1e-5)
    shapes = sorted(tuple(variable.shape) for variable in program.variables)
    assert shapes == sorted(tuple(variable.shape) for variable in kernels(classifier))


KNOWN = "'attention/qkv', 'attention/projection', 'mlp/intermediate', 'mlp/projection'"


@pytest.mark.parametrize("targets", ["query", ("qkv", "v"), (), 3, "kv", [None]])
def test_error_of_unknown_targets(targets):
    with raises(f"`targets` must be one or several of {KNOWN}. Received: targets={targets!r}"):
        tiny_backbone(num_layers=1).enable_lora(4, targets)


def test_errors_of_enabling():
    backbone = tiny_backbone(num_layers=1)
    with raises("`rank` must be a positive integer. Received: rank=0"):
        backbone.enable_lora(0)
    with raises(
        "There are no adapters to save. Use `enable_lora(rank)` before the training, or "
        "`save_to_preset` to save all weights."
    ):
        backbone.save_lora_weights("file")
    with raises("There are no adapters to merge. Use `enable_lora(rank)` before the training."):
        backbone.merge_lora()
    assert len(backbone.trainable_variables) == len(backbone.weights)
    backbone.enable_lora(2)
    with raises(
        "LoRA is enabled already, with rank 2 in ['attention/qkv']. Use another copy of the model, "
        "or `merge_lora()`, which returns one without LoRA."
    ):
        backbone.enable_lora(2, "projection")


def test_errors_of_loading(rng, tmp_path):
    file = tmp_path / "task.safetensors"
    with raises(f"{file} does not exist or is not a file. `save_lora_weights` writes such files."):
        tiny_classifier().load_lora_weights(file)
    adapted(rng).save_lora_weights(file)
    other = tiny_classifier({"num_layers": 2})
    other.enable_lora(3)
    with raises(
        f"The adapters of {file} have rank 2 in ['attention/qkv'], and those of the model have "
        "rank 3 in ['attention/qkv']. Load them into a model without LoRA, which then gets what "
        "the file has."
    ):
        other.load_lora_weights(file)
    fewer = tiny_classifier(num_classes=4, labels=None)
    with raises(
        f"The adapters of {file} do not fit the model. They belong to a model of the same "
        "architecture and the same `num_classes`; those of a backbone have no head.\n"
        "Missing: none\n"
        "Unexpected: block_1/attention/qkv/lora_kernel_a (8, 2); "
        "block_1/attention/qkv/lora_kernel_b (2, 24)\n"
        "Wrong shape: head/class_head/kernel is (8, 5), not (8, 4); head/class_head/bias is (5,), "
        "not (4,); head/distillation_head/kernel is (8, 5), not (8, 4); "
        "head/distillation_head/bias is (5,), not (4,)"
    ):
        fewer.load_lora_weights(file)
    assert not fewer._has_lora()
    tiny_classifier().save_to_preset(tmp_path / "preset")
    with raises(
        f"{tmp_path / 'preset' / 'model.safetensors'} has no adapters of keras_deit. "
        "`save_lora_weights` writes such files. Received: metadata {}"
    ):
        fewer.load_lora_weights(tmp_path / "preset" / "model.safetensors")
    content = file.read_bytes()
    state = {name: array.astype("int32") for name, array in parse_tensors(content, file).items()}
    write_tensors(file, state, parse_metadata(content))
    with pytest.raises(ValueError, match="have other kinds of numbers than the model"):
        adapted(rng).load_lora_weights(file)
    write_tensors(file, {}, {**parse_metadata(content), "rank": "0"})
    with pytest.raises(ValueError, match="has no adapters of keras_deit"):
        fewer.load_lora_weights(file)
    file.write_bytes(content[:-1])
    with pytest.raises(ValueError, match="is truncated or not a safetensors file"):
        other.load_lora_weights(file)


def test_a_weight_that_is_not_finite_is_neither_saved_nor_replaces_a_file(rng, tmp_path):
    file, classifier = tmp_path / "task.safetensors", adapted(rng)
    classifier.save_lora_weights(file)
    before = file.read_bytes()
    adapter = classifier.trainable_variables[0]
    adapter.assign(np.full(adapter.shape, np.nan))
    with pytest.raises(ValueError, match="NaN or infinite"):
        classifier.save_lora_weights(file)
    assert file.read_bytes() == before
