"""Which heads have their loss multiplied by accumulation steps and processes, and should not.

transformers 5 hands `num_items_in_batch` to every model whose forward takes keyword arguments and
then leaves the division to it. BERT-style classification heads ignore the argument: their loss and
gradients grow with the number of accumulation steps and of processes
(https://github.com/huggingface/transformers/issues/47688).
"""

import inspect

from torch import nn


def is_loss_inflated(model: nn.Module) -> bool:
    """Whether the model's forward takes any keyword but computes its loss without them.

    A model counts items if its forward, or one that it builds on, names `num_items_in_batch` or
    computes the loss in `self.loss_function`; and its author may say so by `accepts_loss_kwargs`.
    """
    if getattr(model, "accepts_loss_kwargs", None) is not None:
        return False
    forwards = [
        inspect.unwrap(vars(cls)["forward"])
        for cls in type(model).__mro__
        if inspect.isfunction(vars(cls).get("forward"))
    ]
    parameters = inspect.signature(forwards[0]).parameters if forwards else {}
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    counts_items = any(
        "loss_function" in forward.__code__.co_names
        or "num_items_in_batch" in inspect.signature(forward).parameters
        for forward in forwards
    )
    return takes_any and not counts_items
