"""Knowledge distillation: a student learns the logits of a trained model, not its labels alone.

For one row with the student's logits z and the teacher's v, at hardness h and temperature T
(Hinton, Vinyals and Dean 2015, https://arxiv.org/abs/1503.02531, equation 1 and section 2):

    loss = (1 - h) loss of the labels + h T^2 KL(softmax(v / T) || softmax(z / T))

T^2 keeps the size of the gradients at every temperature. A regression, or a single output, has the
mean of (z - v)^2 instead of the divergence. The loss of a batch is the mean over its rows.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div
from transformers import Trainer

from hf_cyclprune.training.describe import bare_model, find_model_id
from hf_cyclprune.training.teacher import LAST_CYCLE, REMEDY, TeacherOptions, find_teacher

_NO_LABEL = -100


class Distillation:
    """A trained model beside a Trainer, which is never trained or saved, and the loss it gives.

    It has no dropout and no gradient, and runs on the student's device under the same autocast. It
    must read the same token ids. Labels in another order are put into the student's. Where a label
    is -100 its loss counts as little as that of the label. An evaluation has the loss of the labels
    alone.
    """

    def __init__(self, trainer: Trainer, model: nn.Module | None) -> None:
        student: Any = bare_model(trainer)
        self._model = model.eval().to(trainer.args.device) if model is not None else None
        self._trainer: Any = trainer
        model = model if model is not None else student
        self._options = trainer.args if isinstance(trainer.args, TeacherOptions) else None
        self._accepted = inspect.signature(model.forward).parameters
        config, own = getattr(student, "config", None), getattr(model, "config", None)
        kinds = (getattr(config, "problem_type", None), getattr(config, "num_labels", None))
        self._is_regression = kinds[0] == "regression" or (kinds[0] is None and kinds[1] == 1)
        self._order = _order_of_labels(config, own)

    @classmethod
    def find(cls, trainer: Trainer, given: object) -> "Distillation | None":
        """Return the distillation from the teacher given, or that of the arguments; None without.

        Raises:
            ValueError: there are two, it cannot be loaded, or it does not fit the student.
        """
        model = find_teacher(trainer.args, bare_model(trainer), given)
        is_own = getattr(trainer.args, "teacher", None) == LAST_CYCLE
        return cls(trainer, model) if model is not None or is_own else None

    @property
    def model(self) -> nn.Module | None:
        """The teacher; None where it is that of the last cycle, and in the first one."""
        run = self._trainer.pruning_run
        own = run.teacher.model if run is not None and run.teacher is not None else None
        return own if self._model is None else self._model

    @property
    def options(self) -> TeacherOptions:
        """Hardness and temperature as they are now: a search may change the arguments."""
        return self._options or TeacherOptions()

    def hyperparameters(self) -> dict[str, Any]:
        """Return what a record of the run says of the teacher; the path of a folder is left out."""
        return {
            "teacher": find_model_id(self._model) or type(self._model).__name__
            if self._model is not None
            else LAST_CYCLE,
            "teacher_hardness": self.options.teacher_hardness,
            "teacher_temperature": self.options.teacher_temperature,
        }

    def teach(
        self,
        student: nn.Module,
        loss_of_labels: Callable[..., Any],
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return what `compute_loss` of a Trainer returns, with the teacher's loss mixed in.

        Where it is the whole loss (a hardness of 1) there need be no labels.
        """
        hardness = self.options.teacher_hardness
        counted = {"num_items_in_batch": num_items_in_batch}
        model = self.model
        if hardness == 0 or model is None:
            return loss_of_labels(inputs, return_outputs=return_outputs, **counted)
        labels = inputs.get("labels")
        loss: Any = None
        if hardness == 1 and labels is None:
            outputs = student(**inputs)
        else:  # of a copy: with label smoothing the Trainer takes the labels out
            loss, outputs = loss_of_labels(dict(inputs), return_outputs=True, **counted)
        own = self._loss(model, outputs, inputs)
        own = own * self._part_of_batch(labels, num_items_in_batch)
        loss = own if hardness == 1 else (1 - hardness) * loss + hardness * own
        return (loss, outputs) if return_outputs else loss

    def _loss(self, model: nn.Module, outputs: Any, inputs: Mapping[str, Any]) -> Tensor:
        known = self._accepted if len(self._accepted.keys() - {"args", "kwargs"}) else inputs
        given = {name: x for name, x in inputs.items() if name in known and name != "labels"}
        with torch.no_grad(), self._trainer.accelerator.autocast():
            logits = _logits(model.eval()(**given), "teacher")
        student = _logits(outputs, "student")
        if student.shape != logits.shape:
            raise ValueError(
                f"The teacher's logits must have the student's shape, {tuple(student.shape)}; got "
                f"{tuple(logits.shape)}. {REMEDY}"
            )
        logits = logits if self._order is None else logits[..., self._order]
        labels = inputs.get("labels")
        if self._is_regression:
            return teacher_loss(student, logits, labels, None)
        if labels is not None and labels.is_floating_point():
            raise ValueError(
                "With a teacher, labels must be classes that exclude each other; got "
                f"{labels.dtype}. Set problem_type='regression' in the config, or drop the teacher."
            )
        return teacher_loss(student, logits, labels, self.options.teacher_temperature)

    def _part_of_batch(
        self, labels: Tensor | None, num_items_in_batch: Tensor | int | None
    ) -> Tensor | float:
        """Return the share of a micro-batch in its batch, where the Trainer does not divide by it.

        The Trainer divides by the accumulation steps, unless the loss of the labels is a sum that
        was divided by all items of the batch, in all processes; then ours must be one too.
        """
        trainer, args = self._trainer, self._trainer.args
        is_summed = getattr(trainer, "loss_is_scaled_for_ga", None)  # newer transformers
        if is_summed is None:
            accepts = trainer.model_accepts_loss_kwargs and num_items_in_batch is not None
            is_summed = accepts or trainer.compute_loss_func is not None
        if not is_summed:
            return 1.0
        if num_items_in_batch is None or labels is None:
            return 1 / float(trainer.current_gradient_accumulation_steps)
        num_items = torch.as_tensor(num_items_in_batch).flatten()[0]  # one for each GPU, if several
        share = labels.ne(_NO_LABEL).sum() / num_items.to(labels.device)
        if args.n_gpu > 1:  # the student is copied to every GPU, and its losses are averaged
            return share if args.average_tokens_across_devices else share / args.n_gpu
        is_total = args.average_tokens_across_devices
        return share * trainer.accelerator.num_processes if is_total else share


def teacher_loss(
    student: Tensor, teacher: Tensor, labels: Tensor | None, temperature: float | None
) -> Tensor:
    """Return the mean over the rows of the teacher's loss, in fp32.

    Args:
        student: logits.  # (..., C)
        teacher: logits of the same shape.
        labels: if they have the shape of the rows, a row whose label is -100 does not count.
        temperature: of the softmax; None for a regression.
    """
    student, teacher = student.float(), teacher.float()
    if temperature is None:
        rows = (student - teacher).square().mean(-1)
    else:
        ours, theirs = ((z / temperature).log_softmax(-1) for z in (student, teacher))
        rows = kl_div(ours, theirs, reduction="none", log_target=True).sum(-1) * temperature**2
    if labels is None or labels.is_floating_point() or labels.shape != rows.shape:
        return rows.mean()
    is_counted = labels.ne(_NO_LABEL).to(rows.device)
    return torch.where(is_counted, rows, 0.0).sum() / is_counted.sum().clamp(min=1)


def _logits(outputs: Any, whose: str) -> Tensor:
    """Return the logits among the outputs of a model."""
    if isinstance(outputs, Tensor):
        return outputs
    named = outputs if isinstance(outputs, Mapping) else dict(enumerate(outputs))
    large = [x for x in named.values() if isinstance(x, Tensor) and x.dim() > 1]
    logits = named.get("logits", large[0] if large and 0 in named else None)
    if not isinstance(logits, Tensor):
        raise ValueError(
            f"The {whose} must return logits to learn them; got {list(named)}. Choose a model for "
            "classification or regression."
        )
    return logits


def _order_of_labels(student: Any, teacher: Any) -> list[int] | None:
    """Return the teacher's ids of the student's labels; None if the order is the same."""
    own, other = (
        {str(name).lower(): int(i) for i, name in (getattr(c, "id2label", None) or {}).items()}
        for c in (student, teacher)
    )
    if own == other or own.keys() != other.keys():
        return None
    return [other[name] for name in sorted(own, key=lambda name: own[name])]
