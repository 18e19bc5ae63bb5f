"""Push a folder to a repository on the Hub in one commit: all of it arrives, or nothing changes."""

from dataclasses import replace
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from hf_cyclprune.card.card import Card
from hf_cyclprune.hub.errors import explained
from hf_cyclprune.hub.page import add_extras, write_card
from hf_cyclprune.hub.remote import Branch, staged


def push_folder(
    folder: str | Path,
    repo_id: str,
    card: Card,
    *,
    private: bool | None = None,
    revision: str | None = None,
    packed: bool = True,
    message: str = "Upload pruned model",
) -> str:
    """Push a copy of a folder with card, pictures and packed weights; return its address.

    Args:
        folder: a dense model, saved by a run or by save_pretrained; it is not changed.
        repo_id: "user/name"; made if it does not exist.
        card: what the model card, the report and the run record say.
        private: whether a new repository is private; None leaves that to the account's settings.
        revision: a branch, made if it does not exist; None is the main one.
        packed: whether to add `sparse/`.
        message: the title of the commit.

    Raises:
        PushError: the Hub cannot be reached, rejects the push, or fails.
        ValueError: `repo_id` is not a valid name.
    """
    check_repo_id(repo_id)
    with explained(repo_id):  # a repository that cannot be written to is an error before the work
        url = HfApi().create_repo(repo_id, private=private, exist_ok=True)
        branch = Branch(url.repo_id, revision)
        branch.create()
    card = replace(card, repo_id=url.repo_id, model_name=url.repo_name)
    with explained(url.repo_id), staged(Path(folder)) as stage:
        card.report.save(stage)
        card.record.save(stage)
        add_extras(stage, packed)
        branch.keep_card(stage)
        write_card(stage, card)
        branch.upload(stage, message)
    return str(url)


def check_repo_id(repo_id: str) -> None:
    """Raise a ValueError unless it can be the name of a repository."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(
            f"REPO must be 'user/name' in letters, digits, '-', '_' and '.'; got {repo_id!r}. "
            "Choose another name."
        ) from error
