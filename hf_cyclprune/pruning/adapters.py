"""Adapters of peft, such as LoRA: small matrices that are trained beside frozen weights.

Zeros in them are not zeros of the model: merged, a sparse product is added to a dense weight.
"""

from torch import nn


def check_no_adapters(model: nn.Module) -> None:
    """Raise for a model that holds a module of peft, however it was put there.

    Goes by the package of the modules' classes, so peft need not be installed. A model whose
    adapters were merged has none left.

    Raises:
        ValueError: names the first such module.
    """
    for name, module in model.named_modules():
        if any(cls.__module__.partition(".")[0] == "peft" for cls in type(module).__mro__):
            place = f"at '{name}'" if name else "around the model"
            raise ValueError(
                "The model must not be trained through adapters of peft; got a "
                f"{type(module).__name__} {place}. Zeros in adapters are lost when they are "
                "merged. Merge them first, model = model.merge_and_unload().requires_grad_(True), "
                "or train the whole model without adapters."
            )
