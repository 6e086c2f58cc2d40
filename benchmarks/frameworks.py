"""How each framework compiles, places an array, and waits for a result."""

import importlib

import numpy as np

from benchmarks.environment import JAX_PLATFORMS
from benchmarks.errors import NotSupportedError


def framework(name, device, dtype="float32"):
    """The framework of a Keras backend, set to the precision of a dtype option.

    It is imported here, so that a process loads only one.
    """
    module = importlib.import_module(name)
    return {"tensorflow": TensorFlow, "jax": Jax, "torch": Torch}[name](module, device, dtype)


def _no_device(framework, device, install):
    return NotSupportedError(
        f"--device {device}: {framework} finds no such device. Install {install}, or remove the "
        "backend from --backend."
    )


class TensorFlow:
    def __init__(self, tf, device, dtype):
        self.tf = tf
        self.on_gpu = device == "gpu"
        if device == "tpu":
            raise NotSupportedError("--device tpu needs --backend jax.")
        if device == "cpu":
            tf.config.set_visible_devices([], "GPU")
        elif not tf.config.list_physical_devices("GPU"):
            raise _no_device("TensorFlow", device, "tensorflow[and-cuda]")
        tf.config.experimental.enable_tensor_float_32_execution(dtype == "tf32")

    def place(self, array, dtype=None):
        return self.tf.constant(array, dtype)

    def compile(self, function, jit):
        """A graph with or without XLA. TensorFlow's eager mode is never fastest."""
        return self.tf.function(function, jit_compile=jit, autograph=False)

    def keras_inference(self, model, jit, images):
        return self.compile(lambda images: model(images, training=False), jit)

    def keras_training_step(self, model, optimizer, loss, jit, images, labels):
        optimizer.build(model.trainable_variables)

        def step(images, labels):
            with self.tf.GradientTape() as tape:
                value = loss(labels, model(images, training=True))
                scaled = optimizer.scale_loss(value)
            optimizer.apply(tape.gradient(scaled, model.trainable_variables))
            return value

        call = self.compile(step, jit)
        return lambda: call(images, labels)

    def matmul(self, first, second):
        return self.tf.matmul(first, second)

    def wait(self, outputs):
        if self.on_gpu:  # reading the results would copy them to the host
            self.tf.test.experimental.sync_devices()
        else:
            for tensor in self.tf.nest.flatten(outputs):
                np.asarray(tensor)

    def device_name(self):
        if not self.on_gpu:
            return None
        gpu = self.tf.config.list_physical_devices("GPU")[0]
        return self.tf.config.experimental.get_device_details(gpu).get("device_name")

    def peak_device_memory_bytes(self):
        if not self.on_gpu:
            return None
        return self.tf.config.experimental.get_memory_info("GPU:0")["peak"]


class Jax:
    def __init__(self, jax, device, dtype):
        self.jax = jax
        jax.config.update("jax_platforms", JAX_PLATFORMS[device])
        # Other dtypes have only one precision.
        precision = {"float32": "highest", "tf32": "tensorfloat32"}.get(dtype)
        jax.config.update("jax_default_matmul_precision", precision)
        # If the first platform is missing, JAX silently uses the next.
        if jax.devices()[0].platform != device:
            raise _no_device("JAX", device, "jax[cuda12]" if device == "gpu" else "jax[tpu]")

    def place(self, array, dtype=None):
        return self.jax.numpy.asarray(array, dtype)

    def compile(self, function, jit):
        return self.jax.jit(function) if jit else function

    def keras_inference(self, model, jit, images):
        def stateless(trained, other, images):
            return model.stateless_call(trained, other, images, training=False)[0]

        call = self.compile(stateless, jit)
        trained = [variable.value for variable in model.trainable_variables]
        other = [variable.value for variable in model.non_trainable_variables]
        return lambda images: call(trained, other, images)

    def keras_training_step(self, model, optimizer, loss, jit, images, labels):
        """Keras' stateless loop. Unlike `train_on_batch`, it does not wait for the loss."""
        import keras

        optimizer.build(model.trainable_variables)

        def values(variables):
            return [variable.value for variable in variables]

        def loss_of(trained, other, state, images, labels):
            logits, other = model.stateless_call(trained, other, images, training=True)
            value = loss(labels, logits)
            with keras.StatelessScope(state_mapping=list(zip(optimizer.variables, state))):
                scaled = optimizer.scale_loss(value)
            return scaled, (value, other)

        def step(trained, other, state, images, labels):
            gradient = self.jax.value_and_grad(loss_of, has_aux=True)
            (_, (value, other)), gradients = gradient(trained, other, state, images, labels)
            trained, state = optimizer.stateless_apply(state, gradients, trained)
            return value, trained, other, state

        call = self.jax.jit(step, donate_argnums=(0, 1, 2)) if jit else step
        # Copies, because donated arrays are deleted and the model still needs its weights.
        variables = (model.trainable_variables, model.non_trainable_variables, optimizer.variables)
        state = self.jax.tree.map(self.jax.numpy.copy, tuple(map(values, variables)))

        def train():
            nonlocal state
            value, *state = call(*state, images, labels)
            return value

        return train

    def matmul(self, first, second):
        return self.jax.numpy.matmul(first, second)

    def wait(self, outputs):
        self.jax.block_until_ready(outputs)

    def device_name(self):
        device = self.jax.devices()[0]
        return None if device.platform == "cpu" else device.device_kind

    def peak_device_memory_bytes(self):
        return (self.jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


class Torch:
    def __init__(self, torch, device, dtype):
        if device == "tpu":
            raise NotSupportedError("--device tpu needs --backend jax.")
        if device == "gpu" and not torch.cuda.is_available():
            raise _no_device("PyTorch", device, "a CUDA build of torch")
        self.torch = torch
        self.device = "cuda" if device == "gpu" else device
        torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = (
            dtype == "tf32"
        )  # for the convolution of timm's patch embedding

    def place(self, array, dtype=None):
        return self.torch.as_tensor(
            array, dtype=dtype and getattr(self.torch, dtype), device=self.device
        )

    def compile(self, function, jit):
        return self.torch.compile(function) if jit else function

    def keras_inference(self, model, jit, images):
        call = model
        with self.torch.no_grad():
            if jit:
                # `torch.compile` would trace Keras' layers for minutes; the exported graph
                # contains only operations.
                call = self.torch.compile(
                    self.torch.export.export(model, (images,), strict=False).module()
                )

        def step(images):
            with self.torch.inference_mode():
                return call(images)

        return step

    def keras_training(self, model, jit, images):
        """The forward pass of training.

        The weights are arguments of the exported graph, because constants would have no gradient. A
        model with dropout cannot be exported, because Keras reads its seeds from tensors.
        """
        if not jit:
            return lambda images: model(images, training=True)
        weights = [
            [variable.value for variable in some]
            for some in (model.trainable_variables, model.non_trainable_variables)
        ]

        class Forward(self.torch.nn.Module):
            def forward(self, trained, other, images):
                return model.stateless_call(trained, other, images, training=True)[0]

        call = self.torch.compile(
            self.torch.export.export(Forward(), (*weights, images), strict=False).module()
        )
        return lambda images: call(*weights, images)

    def training_step(self, parameters, loss):
        """PyTorch's own loop with fused AdamW, which is one kernel; Keras' `fit` needs several."""
        optimizer = self.torch.optim.AdamW(parameters, lr=1e-5, weight_decay=0.05, fused=True)

        def step():
            optimizer.zero_grad(set_to_none=True)
            value = loss()
            value.backward()
            optimizer.step()
            return value.detach()

        return step

    def matmul(self, first, second):
        return self.torch.matmul(first, second)

    def wait(self, outputs):
        if self.device == "cuda":
            self.torch.cuda.synchronize()

    def device_name(self):
        return self.torch.cuda.get_device_name() if self.device == "cuda" else None

    def peak_device_memory_bytes(self):
        return self.torch.cuda.max_memory_allocated() if self.device == "cuda" else None


class Runtime:
    """A runtime that takes and returns NumPy arrays, so there is nothing to wait for."""

    def wait(self, outputs):
        pass

    def device_name(self):
        return None

    def peak_device_memory_bytes(self):
        return None
