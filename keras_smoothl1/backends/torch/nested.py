"""The values of nested tensors, after a check that rows are as long as y_pred's."""

from typing import Any

import torch


def values(
    x: Any, y_pred: torch.Tensor, name: str, *, per_row: bool = False
) -> torch.Tensor:
    """Returns one value of x for each value of y_pred.

    The rows of x must be as long as those of y_pred. With `per_row`, x may also be a
    number, or have one entry per row.
    """
    is_nested = isinstance(x, torch.Tensor) and x.is_nested
    if per_row and not is_nested:
        return _values_of_rows(x, y_pred, name)
    if not is_nested:
        raise TypeError(
            f"{name} must be a nested tensor with rows as long as those of y_pred. "
            f"Received: {name}={x!r}, y_pred={y_pred!r}"
        )
    if x is y_pred:
        return _jagged(y_pred).values()
    x, y_pred = _jagged(x), _jagged(y_pred)
    if not torch.equal(x.offsets(), y_pred.offsets()):
        raise TypeError(
            f"{name} must have rows as long as those of y_pred. Received: {name} with "
            f"offsets {x.offsets().tolist()}, y_pred with {y_pred.offsets().tolist()}"
        )
    return x.values()


def _values_of_rows(x: Any, y_pred: torch.Tensor, name: str) -> torch.Tensor:
    x = torch.as_tensor(x, device=y_pred.device)
    if x.numel() == 1:
        return x.reshape(())
    lengths = _jagged(y_pred).offsets().diff()
    if tuple(x.shape) != tuple(lengths.shape):
        raise TypeError(
            f"{name} must be a number or have one entry per row of y_pred, if it is "
            f"not nested. Received: {name} of shape {tuple(x.shape)}, y_pred with "
            f"{len(lengths)} rows"
        )
    return x.repeat_interleave(lengths)


def with_rows_of(y_pred: torch.Tensor, losses: torch.Tensor) -> torch.Tensor:
    """Returns the losses as a nested tensor with the rows of y_pred."""
    y_pred = _jagged(y_pred)
    losses = losses.reshape(y_pred.values().shape)
    return torch.nested.nested_tensor_from_jagged(losses, y_pred.offsets())


def _jagged(x: torch.Tensor) -> Any:
    """Returns x in the jagged layout, with all values in one contiguous tensor."""
    if x.layout != torch.jagged:
        x = torch.nested.as_nested_tensor(list(x.unbind()), layout=torch.jagged)
    return x.contiguous()
