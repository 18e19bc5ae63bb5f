"""A folder -> a repository on the Hub, in one commit: all of it is there, or nothing changes."""

from dataclasses import replace
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from hf_cyclprune.card.card import Card
from hf_cyclprune.hub.errors import explained
from hf_cyclprune.hub.page import add_extras, write_card, write_facts
from hf_cyclprune.hub.remote import Branch
from hf_cyclprune.hub.stage import staged


def push_folder(
    folder: str | Path,
    repo_id: str,
    facts: Card,
    *,
    private: bool | None = None,
    revision: str | None = None,
    packed: bool = True,
    message: str = "Upload pruned model",
) -> str:
    """Push a model's folder with its card, pictures and a packed copy; where it is on the Hub.

    `folder` itself is not changed.

    Args:
        folder: a dense model, saved by a run or by save_pretrained.
        repo_id: "user/name"; made if it is not there.
        facts: for the card, the report and the record.
        private: of a new repository; None is what the account's settings say.
        revision: a branch, made if it is not there; None is the main one.
        packed: whether to add `sparse/`.
        message: of the commit.

    Raises:
        PushError: the Hub cannot be reached, refuses, or fails.
        ValueError: `repo_id` is not one.
    """
    check_repo_id(repo_id)
    with explained(repo_id):  # what is refused shows before the work begins
        url = HfApi().create_repo(repo_id, private=private, exist_ok=True)
        branch = Branch(url.repo_id, revision)
        branch.create()
    facts = replace(facts, repo_id=url.repo_id, model_name=url.repo_name)
    with explained(url.repo_id), staged(Path(folder)) as stage:
        write_facts(stage, facts)
        add_extras(stage, packed)
        branch.keep_card(stage)
        write_card(stage, facts)
        branch.upload(stage, message)
    return str(url)


def check_repo_id(repo_id: str) -> None:
    """Raise a ValueError unless it is the name of a repository."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(
            f"REPO must be 'user/name' in letters, digits, '-', '_' and '.'; got {repo_id!r}. "
            "Choose another name."
        ) from error
