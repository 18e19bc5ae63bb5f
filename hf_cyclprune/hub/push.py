"""Push a folder to a repository on the Hub in one commit: all of it arrives, or nothing changes."""

from dataclasses import replace
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id

from hf_cyclprune.card.card import Card
from hf_cyclprune.hub.errors import PushError, explain, explained
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
) -> str:
    """Push a copy of a dense model's folder; return the address of the repository.

    Card, report, record and pictures are added and, if `packed`, `sparse/`. What the file
    inference_times.json holds is on the card, if that has it; the file, which has paths of this
    machine, stays behind. The repository and the branch `revision` are created if they do not
    exist. Where `private` is None, the settings of the account decide whether a new repository is
    private.

    Raises:
        PushError: there is no token, or the Hub cannot be reached, rejects the push, or fails.
        ValueError: `repo_id` is not a valid name.
    """
    check_repo(repo_id)
    with explained(repo_id):  # a repository that cannot be written to is an error before the work
        url = HfApi().create_repo(repo_id, private=private, exist_ok=True)
        branch = Branch(url.repo_id, revision)
        branch.create()
    card = replace(card, repo_id=url.repo_id, model_name=url.repo_name)
    with explained(url.repo_id), staged(Path(folder)) as stage:
        card.report.save(stage)
        card.record.save(stage)
        add_extras(stage, packed, card.bench)
        branch.keep_card(stage)
        write_card(stage, card)
        branch.upload(stage, "Upload pruned model")
    return str(url)


def check_repo(repo_id: str) -> None:
    """Check what a push needs before anything is read: a valid name, and a token.

    Raises:
        PushError: there is no token.
        ValueError: it cannot be the name of a repository.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(
            f"REPO must be 'user/name' in letters, digits, '-', '_' and '.'; got {repo_id!r}. "
            "Choose another name."
        ) from error
    if get_token() is None:
        raise PushError(explain(repo_id, LocalTokenNotFoundError()))
