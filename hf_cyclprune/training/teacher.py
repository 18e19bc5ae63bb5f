"""The teacher of a distillation: which model it is, and whether it fits the student."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoConfig, TrainingArguments

from hf_cyclprune.checks import check_fraction, check_positive
from hf_cyclprune.engines.zero import is_zero3
from hf_cyclprune.packing.weights import model_class
from hf_cyclprune.training.upstream import loaded_whole

LAST_CYCLE = "last_cycle"
REMEDY = "Pass a model that was fine-tuned on the same task."


@dataclass
class TeacherOptions:
    """Whom a student learns from, and how much; each is also a flag.

    Raises:
        ValueError: names the argument, its rule, the value and the remedy.
    """

    teacher: str | None = field(
        default=None,
        metadata={
            "help": "Trained model whose logits the model learns too: a name on the Hub, or a "
            "folder; 'last_cycle' is the model itself, as it was at the end of the previous "
            "cycle. In hf-cyclprune glue, 'self' fine-tunes the same model without pruning first."
        },
    )
    teacher_hardness: float = field(
        default=0.5,
        metadata={"help": "Share of the teacher's loss, in [0, 1]; the labels have the rest."},
    )
    teacher_temperature: float = field(
        default=2.0,
        metadata={"help": "The logits are divided by it. Raise it to learn more of small ones."},
    )

    def check_teacher(self) -> None:
        """Check every field; called again when a Trainer is made."""
        if self.teacher is not None and not isinstance(self.teacher, str):
            raise ValueError(
                "teacher must be a folder or a name on the Hub; got "
                f"{type(self.teacher).__name__}. Pass a model to PruningTrainer(teacher=...)."
            )
        check_fraction("teacher_hardness", self.teacher_hardness)
        check_positive("teacher_temperature", self.teacher_temperature)


def find_teacher(args: TrainingArguments, student: nn.Module, given: object) -> nn.Module | None:
    """Return the teacher that is given, or else that of the arguments, loaded; None without one.

    Raises:
        ValueError: there are two, it cannot be loaded, or it does not fit the student.
    """
    if isinstance(args, TeacherOptions):
        args.check_teacher()
        if given is not None and args.teacher is not None:
            raise ValueError(
                f"teacher must be given once; got '{args.teacher}' in PruningArguments and "
                "another. Drop one of the two."
            )
        given = given if given is not None else args.teacher
    if given is None or getattr(args, "teacher", None) == LAST_CYCLE:
        return None
    if given == LAST_CYCLE:
        raise ValueError(
            f"teacher='{LAST_CYCLE}' must be one of the PruningArguments, whose run it belongs to. "
            "Write PruningArguments(teacher='last_cycle', ...)."
        )
    if given is student:
        raise ValueError(
            "teacher must be another model than the one that is trained; got the same one. Load it "
            "a second time."
        )
    if not isinstance(given, nn.Module | str | Path):
        raise ValueError(
            f"teacher must be a model, a folder or a name on the Hub; got {given!r}. {REMEDY}"
        )
    model = given if isinstance(given, nn.Module) else load_teacher(str(given), student)
    if any(is_zero3(weight) or weight.is_meta for weight in model.parameters()):
        raise ValueError(
            "teacher must be whole in every process; got a model that was loaded for ZeRO-3, or "
            "for FSDP with cpu_ram_efficient_loading. Pass its folder or its name on the Hub."
        )
    _check_fit(model, student, type(model).__name__ if given is model else str(given))
    return model


def load_teacher(name: str, student: nn.Module) -> nn.Module:
    """Load a teacher, never with code of its own, from a folder or the Hub.

    Raises:
        ValueError: there is no such model, or it is not of the student's kind.
    """
    if name == "self":
        raise ValueError(
            "teacher='self' is for hf-cyclprune glue, which trains a dense model first. Train one "
            "without pruning yourself, and pass its folder."
        )
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        cls = model_class(config)
        kinds = [c.__name__.rpartition("For")[2] for c in (cls, type(student))]
        if kinds[0] == kinds[1] or "For" not in type(student).__name__:
            with loaded_whole():
                model: nn.Module = cls.from_pretrained(name, trust_remote_code=False)
            return model
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise ValueError(
            f"teacher must be a folder with a model or the name of one on the Hub; got '{name}': "
            f"{reason}. Check its spelling and the network."
        ) from error
    raise ValueError(
        f"teacher must have a head for the student's task, as {type(student).__name__} has; got "
        f"'{name}', a {cls.__name__}. {REMEDY}"
    )


def _check_fit(teacher: Any, student: Any, name: str) -> None:
    wanted, found = (getattr(model, "config", None) for model in (student, teacher))
    if getattr(wanted, "problem_type", None) == "multi_label_classification":
        raise ValueError(
            "teacher must be left out with problem_type 'multi_label_classification'; got "
            f"'{name}', but the divergence compares classes that exclude each other. Leave it out."
        )
    numbers = [getattr(config, "num_labels", None) for config in (wanted, found)]
    if None not in numbers and numbers[0] != numbers[1]:
        raise ValueError(
            f"teacher must have the student's num_labels, {numbers[0]}; got '{name}', whose "
            f"num_labels is {numbers[1]}. {REMEDY}"
        )
