"""What each framework calls compiling, placing an array, and waiting for a result."""

import importlib

import numpy as np


def framework(name, device):
    """The framework by its Keras name; imported here, so that a process has no other."""
    return {"tensorflow": TensorFlow, "jax": Jax, "torch": Torch}[name](importlib.import_module(name), device)


class TensorFlow:
    def __init__(self, tf, device):
        self.tf = tf
        if device == "cpu":
            tf.config.set_visible_devices([], "GPU")

    def place(self, array, dtype=None):
        return self.tf.constant(array, dtype)

    def compile(self, function, jit):
        """A graph, through XLA or not: TensorFlow's eager mode is nobody's best."""
        return self.tf.function(function, jit_compile=jit, autograph=False)

    def keras_inference(self, model, jit, images):
        return self.compile(lambda images: model(images, training=False), jit)

    def matmul(self, first, second):
        return self.tf.matmul(first, second)

    def wait(self, outputs):
        for tensor in self.tf.nest.flatten(outputs):
            np.asarray(tensor)

    def peak_device_memory_bytes(self):
        gpus = self.tf.config.list_logical_devices("GPU")
        return self.tf.config.experimental.get_memory_info(gpus[0].name)["peak"] if gpus else None


class Jax:
    def __init__(self, jax, device):
        self.jax = jax
        jax.config.update("jax_platforms", {"cpu": "cpu", "gpu": "cuda", "tpu": "tpu"}[device])

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

    def matmul(self, first, second):
        return self.jax.numpy.matmul(first, second)

    def wait(self, outputs):
        self.jax.block_until_ready(outputs)

    def peak_device_memory_bytes(self):
        return (self.jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


class Torch:
    def __init__(self, torch, device):
        if device == "tpu":
            raise ValueError("TPUs are measured on JAX: use --backend jax.")
        self.torch = torch
        self.device = "cuda" if device == "gpu" else device

    def place(self, array, dtype=None):
        return self.torch.as_tensor(array, dtype=dtype and getattr(self.torch, dtype), device=self.device)

    def compile(self, function, jit):
        return self.torch.compile(function) if jit else function

    def keras_inference(self, model, jit, images):
        call = model
        with self.torch.no_grad():
            if jit:
                # `torch.compile` reads every line of Keras' layers, for minutes; of the exported graph, the operations alone.
                call = self.torch.compile(self.torch.export.export(model, (images,), strict=False).module())

        def step(images):
            with self.torch.inference_mode():
                return call(images)

        return step

    def keras_training(self, model, jit, images):
        """The forward pass of training.

        Exported, the weights are arguments: as constants of the graph they would have no gradient. A model with dropout cannot be
        exported, for Keras takes its seeds out of tensors.
        """
        if not jit:
            return lambda images: model(images, training=True)
        weights = [[variable.value for variable in some] for some in (model.trainable_variables, model.non_trainable_variables)]

        class Forward(self.torch.nn.Module):
            def forward(self, trained, other, images):
                return model.stateless_call(trained, other, images, training=True)[0]

        call = self.torch.compile(self.torch.export.export(Forward(), (*weights, images), strict=False).module())
        return lambda images: call(*weights, images)

    def training_step(self, parameters, loss):
        """PyTorch's own loop, in which AdamW is one kernel; `fit` of Keras takes several."""
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

    def peak_device_memory_bytes(self):
        return self.torch.cuda.max_memory_allocated() if self.device == "cuda" else None


class Runtime:
    """One that takes and gives NumPy arrays, and is done when it returns."""

    def wait(self, outputs):
        pass

    def peak_device_memory_bytes(self):
        return None
