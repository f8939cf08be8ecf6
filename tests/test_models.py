"""Training of Keras models with the loss."""

import keras
import numpy as np
import pytest
from helpers.pairwise import pairwise

from keras_smoothl1 import SmoothL1Error, SmoothL1Loss, smooth_l1_loss

RNG = np.random.default_rng(5)
X = RNG.normal(size=(32, 4)).astype("float32")
Y = (X @ RNG.normal(size=(4, 3))).astype("float32")

EAGER, GRAPH, JIT = {"run_eagerly": True}, {"jit_compile": False}, {"jit_compile": True}
RUN = pytest.mark.parametrize("run", [EAGER, GRAPH, JIT], ids=["eager", "graph", "jit"])


def improves(history, factor=0.9):
    losses = history.history["loss"]
    assert np.isfinite(losses).all()
    return losses[-1] < factor * losses[0]


BETAS = (0.1, 1.0, 10.0)


@pytest.mark.parametrize(
    ("run", "beta"), [(EAGER, 1 / 9), (EAGER, BETAS), (GRAPH, 1 / 9), (JIT, BETAS)]
)
def test_one_output(run, beta):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.compile(
        keras.optimizers.SGD(0.1),
        SmoothL1Loss(beta),
        metrics=[SmoothL1Error(beta)],
        **run,
    )
    history = model.fit(X, Y, epochs=5, batch_size=12, verbose=0)
    assert improves(history)
    loss, error = model.evaluate(X, Y, batch_size=12, verbose=0)
    np.testing.assert_allclose(loss, error, rtol=1e-5)
    direct = SmoothL1Loss(beta)(Y, model.predict(X, verbose=0))
    np.testing.assert_allclose(loss, float(direct), rtol=1e-5)


@pytest.mark.parametrize("name", ["my loss", "_loss", "a/b", "perte_é", None])
def test_any_name_of_the_loss(name):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.compile("sgd", SmoothL1Loss(name=name), jit_compile=False)
    assert np.isfinite(model.fit(X, Y, verbose=0).history["loss"]).all()


@RUN
def test_several_outputs(run):
    inputs = keras.Input((4,))
    outputs = {
        "a": keras.layers.Dense(1, name="a")(inputs),
        "b": keras.layers.Dense(2, name="b")(inputs),
    }
    model = keras.Model(inputs, outputs)
    model.compile(
        keras.optimizers.SGD(0.1),
        loss={"a": SmoothL1Loss(0.5), "b": SmoothL1Loss([1.0, 2.0])},
        loss_weights={"a": 2.0, "b": 1.0},
        metrics={"a": [SmoothL1Error()]},
        **run,
    )
    y = {"a": Y[:, :1], "b": Y[:, 1:]}
    weight = {"a": np.ones(32, "float32"), "b": np.ones(32, "float32")}
    assert improves(model.fit(X, y, sample_weight=weight, epochs=5, verbose=0))


@RUN
def test_the_target_of_a_scalar_output_may_lack_the_last_dimension(run):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.1), SmoothL1Loss(), **run)
    assert improves(model.fit(X, Y[:, 0], epochs=5, verbose=0))


@RUN
def test_the_function_is_usable_as_a_loss(run):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.compile(keras.optimizers.SGD(0.1), smooth_l1_loss, **run)
    assert improves(model.fit(X, Y, batch_size=8, epochs=10, verbose=0))


@pytest.mark.parametrize(
    ("run", "layer"),
    [(EAGER, "embedding"), (GRAPH, "embedding"), (GRAPH, "masking"), (JIT, "masking")],
)
def test_masked_steps_do_not_train(run, layer):
    """The targets of masked steps are NaN: the loss would be NaN if one counted."""
    if layer == "embedding":
        first = keras.layers.Embedding(10, 4, mask_zero=True)
        x = RNG.integers(1, 10, size=(16, 5), dtype="int32")
    else:
        first = keras.layers.Masking()
        x = RNG.normal(size=(16, 5, 4)).astype("float32")
    y = RNG.normal(size=(16, 5, 2)).astype("float32")
    x[:8, 3:] = 0
    y[:8, 3:] = np.nan
    recurrent = keras.layers.LSTM(8, return_sequences=True)
    # Otherwise a nightly build of Keras 3.16 drops the mask in recurrent layers.
    recurrent.supports_masking = True
    model = keras.Sequential([first, recurrent, keras.layers.Dense(2)])
    model.compile(keras.optimizers.SGD(0.5), SmoothL1Loss(), **run)
    # Few epochs: in eager mode, JAX compiles the layer again at each step.
    assert improves(model.fit(x, y, epochs=2, verbose=0), factor=1.0)
    y_pred = model.predict(x, verbose=0)
    counts = ~np.isnan(y)
    expected = SmoothL1Loss()(y[counts], y_pred[counts])
    np.testing.assert_allclose(
        model.evaluate(x, y, batch_size=16, verbose=0), float(expected), rtol=1e-5
    )


@pairwise(
    run=[EAGER, GRAPH, JIT],
    reduce_dims=[None, (1, 2, 3)],
    weight_shape=[(8,), (8, 6), (8, 6, 6, 2)],
)
def test_images_with_weights(run, reduce_dims, weight_shape):
    x = RNG.normal(size=(8, 6, 6, 3)).astype("float32")
    y = x[..., :2] * 2 - 1
    y[0] = np.nan
    weight = RNG.uniform(0.5, 1.5, weight_shape).astype("float32")
    weight[0] = 0
    model = keras.Sequential([keras.Input((6, 6, 3)), keras.layers.Conv2D(2, 1)])
    loss = SmoothL1Loss(0.5, reduce_dims=reduce_dims)
    model.compile(keras.optimizers.SGD(0.3), loss, **run)
    assert improves(model.fit(x, y, sample_weight=weight, epochs=5, verbose=0))


@RUN
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(run, policy):
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(3, dtype=keras.DTypePolicy(policy))]
    )
    model.compile(keras.optimizers.SGD(0.1), SmoothL1Loss(), **run)
    assert improves(model.fit(X, Y, batch_size=8, epochs=10, verbose=0))
