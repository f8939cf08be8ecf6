"""The cost of a step, without a clock: operations on whole tensors, and allocations.

Timings would vary between machines and runs. If a bound here has to grow, measure the
effect with benchmarks/speed.py.
"""

import sys

import numpy as np
import pytest
from helpers.autodiff import BACKEND

from keras_smoothl1 import SmoothL1Error, SmoothL1Loss

SHAPE = (64, 64, 64, 4)
BETAS = [0.1, 0.1, 0.2, 0.5]
Y_TRUE, Y_PRED = np.random.default_rng(0).standard_normal((2, *SHAPE), "float32")
WEIGHT = np.ones(SHAPE[:1], "float32")


def cases(**bounds):
    """Parametrizes a test over variants, each with its bound on one backend."""
    variants = {
        "plain": ({}, None),
        "weights": ({}, WEIGHT),
        "reduce_dims": ({"reduce_dims": (1, 2, 3)}, None),
        "elementwise": ({"reduction": None}, None),
        "beta": ({"beta": BETAS}, None),
    }
    return pytest.mark.parametrize(
        ("settings", "weight", "bound"),
        [(*variants[name], bound) for name, bound in bounds.items()],
        ids=list(bounds),
    )


if BACKEND == "torch":
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    from keras_smoothl1.backends.torch import cpu, internals

    class Cost(TorchDispatchMode):
        """Counts all operations, those on whole tensors, and large new tensors."""

        def __init__(self, given):
            super().__init__()
            self.given = {x.untyped_storage().data_ptr() for x in given}
            self.size = given[0].numel()
            self.storages, self.operations, self.whole = set(), 0, []

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            self.operations += 1
            tensors = [x for x in (result, *args) if isinstance(x, torch.Tensor)]
            sizes = [x.untyped_storage().nbytes() // x.itemsize for x in tensors]
            name = str(function)
            touched = not function.is_view and not name.startswith("aten.new_")
            if touched and max(sizes, default=0) >= self.size:
                self.whole.append(name)
            if isinstance(result, torch.Tensor) and 2 * result.numel() >= self.size:
                self.storages.add(result.untyped_storage().data_ptr())
            return result

    @pytest.fixture
    def allow_modes(monkeypatch):
        """Keeps the fast path, which any mode disables, even one that only counts."""
        monkeypatch.setattr(internals, "no_mode_is_active", lambda: True)

    @cases(
        plain=(1, 8),
        weights=(1, 20),
        reduce_dims=(1, 8),
        elementwise=(2, 10),
        beta=(1, 15),
    )
    def test_a_step_makes_one_pass_and_allocates_only_its_results(
        monkeypatch, allow_modes, settings, weight, bound
    ):
        allocated, operations = bound
        blocks = 8
        monkeypatch.setattr(cpu, "BLOCK_SIZE", Y_PRED.size // blocks)
        y_true, y_pred = torch.tensor(Y_TRUE), torch.tensor(Y_PRED).requires_grad_()
        weight = None if weight is None else torch.tensor(weight)
        loss = SmoothL1Loss(**settings)
        grad_output = torch.ones(SHAPE if loss.reduction is None else ())
        with Cost([y_pred, y_true, grad_output]) as cost:
            loss(y_true, y_pred, weight).backward(grad_output)
        assert len(cost.storages - cost.given) <= allocated
        assert cost.operations <= 15 + operations * blocks

    @pytest.mark.parametrize("weight", [None, WEIGHT])
    def test_a_small_step_uses_no_views_or_blocks(allow_modes, weight):
        y_true, y_pred = torch.tensor(Y_TRUE[0]), torch.tensor(Y_PRED[0])
        weight = None if weight is None else torch.ones(SHAPE[1])
        with Cost([y_pred.requires_grad_(), y_true]) as cost:
            SmoothL1Loss()(y_true, y_pred, weight).backward()
        assert cost.operations <= (14 if weight is None else 23)

    @pytest.mark.parametrize(
        ("true_needs_grad", "weight_shape", "bound"),
        # The mode that counts may stand for one that records operations, so an error of
        # weight 0 is compared with infinity. Plain tensors need 5 operations less.
        [(False, None, 7), (True, None, 8), (False, SHAPE, 17), (True, SHAPE, 18)],
    )
    def test_the_general_path_has_few_operations_on_whole_tensors(
        true_needs_grad, weight_shape, bound
    ):
        y_true, y_pred = torch.tensor(Y_TRUE), torch.tensor(Y_PRED).requires_grad_()
        y_true.requires_grad_(true_needs_grad)
        weight = None if weight_shape is None else torch.ones(weight_shape)
        with Cost([y_pred, y_true]) as cost:
            SmoothL1Loss()(y_true, y_pred, weight).backward()
        assert 1 <= len(cost.whole) <= bound, cost.whole


if BACKEND == "jax":
    import jax

    # The one buffer is for the losses: XLA's sum reads them from memory.
    @cases(
        plain=(1, 4),
        weights=(1, 4),
        reduce_dims=(1, 4),
        elementwise=(1, 3),
        beta=(1, 4),
    )
    def test_a_compiled_step_has_few_loops_and_little_memory(settings, weight, bound):
        temporaries, loops = bound
        loss = SmoothL1Loss(**settings)

        def step(y_true, y_pred, weight):
            value, pull_back = jax.vjp(lambda x: loss(y_true, x, weight), y_pred)
            return value, pull_back(jax.numpy.ones_like(value))

        compiled = jax.jit(step).lower(Y_TRUE, Y_PRED, weight).compile()
        memory = compiled.memory_analysis().temp_size_in_bytes
        assert memory <= 1.01 * temporaries * Y_PRED.nbytes
        entry = compiled.as_text().split("ENTRY")[1]
        assert 1 <= entry.count(" fusion(") <= loops

    @pytest.mark.parametrize(
        ("call", "name"),
        [
            (lambda beta: SmoothL1Loss(beta, "sum"), "_loss"),
            (lambda beta: SmoothL1Error(beta).update_state, "add_batch"),
        ],
    )
    @pytest.mark.parametrize("betas", [(0.1, 0.2, 0.3), (BETAS, BETAS[::-1])])
    def test_an_eager_call_is_compiled_once_for_all_betas(caplog, call, name, betas):
        jax.clear_caches()
        with jax.log_compiles():
            for beta in betas:
                call(beta)(Y_TRUE, Y_PRED)
        compiled = [x for x in caplog.messages if "Compiling" in x and name in x]
        assert len(compiled) == 1


if BACKEND == "tensorflow":
    import tensorflow as tf

    COUNTED = {
        *("Sub", "Minimum", "Maximum", "RealDiv", "Mul", "MulNoNan", "AddV2", "Neg"),
        *("SelectV2", "NotEqual", "Abs", "Sign", "Cast", "Fill", "BroadcastTo", "Sum"),
        *("IsFinite", "LogicalOr"),
    }

    @cases(plain=9, weights=15, reduce_dims=9, elementwise=10, beta=9)
    def test_the_graph_of_a_step_has_few_operations_on_whole_tensors(
        settings, weight, bound
    ):
        loss = SmoothL1Loss(**settings)

        @tf.function(autograph=False)
        def step(y_true, y_pred, weight):
            with tf.GradientTape() as tape:
                tape.watch(y_pred)
                value = loss(y_true, y_pred, weight)
            return value, tape.gradient(value, y_pred)

        weight = None if weight is None else tf.constant(weight)
        graph = step.get_concrete_function(
            tf.constant(Y_TRUE), tf.constant(Y_PRED), weight
        ).graph
        needed, visited = [x.op for x in graph.outputs], set()
        while needed:  # other operations are pruned
            operation = needed.pop()
            if operation not in visited:
                visited.add(operation)
                needed += [x.op for x in operation.inputs]
        whole = sorted(
            operation.type
            for operation in visited
            if operation.type in COUNTED and tuple(operation.outputs[0].shape) == SHAPE
        )
        assert 1 <= len(whole) <= bound, whole

    def test_eager_calls_trace_one_graph_for_all_sizes_and_betas(monkeypatch):
        traced = []
        backend = sys.modules["keras_smoothl1.backends.tensorflow"].TensorFlowBackend
        smooth_l1 = backend.smooth_l1

        def count(self, error, beta):
            traced.append(error.shape)
            return smooth_l1(self, error, beta)

        monkeypatch.setattr(backend, "smooth_l1", count)
        for size, beta in ((16, 0.123), (32, 0.456), (48, 0.789)):
            SmoothL1Loss(beta, "sum", (1, 3))(Y_TRUE[:size], Y_PRED[:size])
        assert traced == [(None,) * len(SHAPE)]

    def test_an_eager_step_computes_only_the_gradients_that_are_asked_for():
        y_true, y_pred, weight = map(tf.constant, (Y_TRUE, Y_PRED, WEIGHT))
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(y_pred)
            value = SmoothL1Loss()(y_true, y_pred, weight)
        assert tape.gradient(value, y_pred) is not None
        assert tape.gradient(value, y_true) is None
        assert tape.gradient(value, weight) is None
