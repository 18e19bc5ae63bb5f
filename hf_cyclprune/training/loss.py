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

    The heads that count items, of masked and causal language models, do so in `self.loss_function`.
    """
    forward = inspect.unwrap(type(model).forward)
    parameters = inspect.signature(forward).parameters.values()
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    return takes_any and "loss_function" not in forward.__code__.co_names
