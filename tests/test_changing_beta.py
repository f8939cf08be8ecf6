"""Changing beta during training, as in the recipe of the documentation."""

import keras
import numpy as np
import pytest
from helpers import oracle
from helpers.autodiff import BACKEND
from packaging import version

from keras_smoothl1 import smooth_l1_loss

RNG = np.random.default_rng(3)
X = RNG.normal(size=(40, 3)).astype("float32")
Y = 2 * RNG.normal(size=(40, 2)).astype("float32")
WEIGHT = RNG.integers(0, 3, 40).astype("float32")
BATCH_SIZE, EPOCHS, RATE = 8, 5, 0.1
STEPS = len(X) // BATCH_SIZE
compilable = pytest.mark.skipif(
    BACKEND == "torch" and version.parse(keras.__version__) < version.parse("3.15"),
    reason="torch.compile cannot trace the tensor operations of Keras before 3.15",
)
# On torch, Keras does not compile the step by default.
JIT_COMPILE = {"jax": [True], "tensorflow": [False, True], "torch": [False]}[BACKEND]


@keras.saving.register_keras_serializable("test_changing_beta")
class Regressor(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(2, kernel_initializer="ones")
        self.beta = self.add_weight(
            shape=(), initializer="ones", trainable=False, name="beta"
        )
        self.calls = 0

    def build(self, input_shape):
        self.dense.build(input_shape)
        self.built = True

    def call(self, x):
        return self.dense(x)

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        if BACKEND != "torch":
            self.calls += 1
        losses = smooth_l1_loss(y, y_pred, self.beta, sample_weight=sample_weight)
        return keras.ops.mean(losses)


class EachEpoch(keras.callbacks.Callback):
    betas = [2.0**-epoch for epoch in range(EPOCHS) for _ in range(STEPS)]

    def on_epoch_begin(self, epoch, logs=None):
        self.model.beta.assign(2.0**-epoch)


class EveryTwoBatches(keras.callbacks.Callback):
    betas = [2.0 ** -(step // 2) for _ in range(EPOCHS) for step in range(STEPS)]

    def on_train_batch_begin(self, batch, logs=None):
        if batch % 2 == 0:
            self.model.beta.assign(2.0 ** -(batch // 2))


def expected(betas):
    """The kernel after gradient descent in NumPy."""
    kernel, bias = np.ones((3, 2)), np.zeros(2)
    for step, beta in enumerate(betas):
        batch = slice(step % STEPS * BATCH_SIZE, (step % STEPS + 1) * BATCH_SIZE)
        x, weight = X[batch], WEIGHT[batch, None]
        _, slope = oracle.value_and_slope(x @ kernel + bias - Y[batch], beta)
        gradient = weight * slope / slope.size
        kernel, bias = kernel - RATE * x.T @ gradient, bias - RATE * gradient.sum(0)
    return kernel


def make_model(jit_compile):
    model = Regressor()
    model.build((None, 3))
    model.compile(keras.optimizers.SGD(RATE), jit_compile=jit_compile)
    return model


def fit(model, *callbacks, epochs=EPOCHS):
    model.fit(
        X,
        Y,
        BATCH_SIZE,
        epochs,
        sample_weight=WEIGHT,
        callbacks=list(callbacks),
        shuffle=False,
        verbose=0,
    )


@pytest.mark.parametrize("callback", [EachEpoch, EveryTwoBatches])
@pytest.mark.parametrize("jit_compile", JIT_COMPILE)
def test_each_step_uses_the_current_beta(jit_compile, callback):
    model = make_model(jit_compile)
    fit(model, callback())
    kernel = keras.ops.convert_to_numpy(model.dense.kernel)
    np.testing.assert_allclose(kernel, expected(callback.betas), rtol=2e-5)


@compilable
@pytest.mark.parametrize("jit_compile", [True] if BACKEND == "torch" else JIT_COMPILE)
def test_training_with_five_betas_compiles_once(jit_compile):
    if BACKEND == "torch":
        import torch._dynamo

        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
    model, compiled = make_model(jit_compile), []

    class Count(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if BACKEND == "torch":
                stats = torch._dynamo.utils.counters["stats"]
                compiled.append(stats["unique_graphs"])
            else:
                # The Python code runs only while a step is traced.
                compiled.append(model.calls)

    fit(model, EachEpoch(), Count())
    assert compiled == [compiled[0]] * EPOCHS
    assert compiled[0] > 0


@compilable
def test_the_compiler_of_the_backend_compiles_once_for_all_betas():
    betas = [keras.ops.convert_to_tensor(2.0**-k) for k in range(6)]
    y_true, y_pred = map(keras.ops.convert_to_tensor, (Y[:4], X[:4, :2]))
    calls = []

    def loss(beta):
        calls.append(beta)
        return keras.ops.mean(smooth_l1_loss(y_true, y_pred, beta))

    count = None
    if BACKEND == "jax":
        import jax

        run = jax.jit(loss)
    elif BACKEND == "tensorflow":
        import tensorflow as tf

        run = tf.function(loss, autograph=False)
    else:
        import torch
        import torch._dynamo.testing

        torch._dynamo.reset()
        count = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
        run = torch.compile(
            lambda beta: smooth_l1_loss(y_true, y_pred, beta).mean(),
            backend=count,
            fullgraph=True,
        )
    for beta in betas:
        value, _ = oracle.value_and_slope(X[:4, :2] - Y[:4], float(beta))
        np.testing.assert_allclose(float(run(beta)), value.mean(), rtol=1e-6)
    assert (len(calls) if count is None else count.frame_count) == 1


def test_beta_is_saved_with_the_model(tmp_path):
    model = make_model("auto")
    fit(model, EachEpoch(), epochs=2)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert float(loaded.beta.value) == 0.5
    for each in (model, loaded):
        fit(each, epochs=1)
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(loaded.dense.kernel),
        keras.ops.convert_to_numpy(model.dense.kernel),
        rtol=1e-6,
    )


@pytest.mark.parametrize("is_tracked", [False, True])
def test_an_untracked_variable_raises_an_error_on_jax(is_tracked):
    beta = keras.Variable(0.5, trainable=False)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    if is_tracked:
        model.beta = beta
    model.compile("sgd", loss=lambda y, y_pred: smooth_l1_loss(y, y_pred, beta))
    if BACKEND != "jax" or is_tracked:
        model.fit(X, Y, verbose=0)
        return
    with pytest.raises(ValueError, match="beta must not be a variable whose"):
        model.fit(X, Y, verbose=0)


def test_a_layer_can_add_the_loss_with_its_own_beta():
    class Reconstruction(keras.layers.Layer):
        def build(self, input_shape):
            self.beta = self.add_weight(shape=(), initializer="ones", trainable=False)

        def call(self, x):
            self.add_loss(keras.ops.mean(smooth_l1_loss(0 * x, x, self.beta)))
            return x

    inputs = keras.Input((3,))
    layer = Reconstruction()
    model = keras.Model(inputs, layer(inputs))
    model.compile("sgd")
    for beta in (1.0, 0.25):
        layer.beta.assign(beta)
        value, _ = oracle.value_and_slope(X, beta)
        result = model.evaluate(X, verbose=0, batch_size=len(X))
        np.testing.assert_allclose(result, value.mean(), rtol=1e-6)
