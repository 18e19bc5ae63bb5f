"""Pushes of a Trainer, as the Hub received them."""

import errno
import json
import os
import re
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_cyclprune import PruningConfig, PruningTrainer
from hf_cyclprune.card.rendering import make_card
from hf_cyclprune.files import STATE_NAME
from hf_cyclprune.glue.teacher import FOLDER as TEACHER
from hf_cyclprune.hub.errors import PushError
from hf_cyclprune.hub.folder import card_of_folder
from hf_cyclprune.packing.verification import verify
from hf_cyclprune.packing.weights import fingerprint
from hf_cyclprune.reporting.run import load_record
from tests.hub.connect import connect
from tests.hub.pages import check_page, contents
from tests.hub.server import READ_TOKEN, WRITE_TOKEN, HubServer

REPO = "tester/pruned"
CYCLES = PruningConfig(sparsity=0.8, num_cycles=2)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with HubServer(lfs_threshold=50_000) as server:
        connect(server, monkeypatch, tmp_path / "home", token=None)
        yield server


@pytest.fixture
def make(tiny_bert, examples, arguments):
    """Builds a Trainer that pushes."""

    def build(cls=PruningTrainer, config=CYCLES, seed=0, **options):
        given = {
            "max_steps": 12,
            "save_strategy": "steps",
            "save_steps": 4,
            "push_to_hub": True,
            "hub_model_id": REPO,
            "hub_token": WRITE_TOKEN,
            **options,
        }
        pruning = {"pruning_config": config} if cls is PruningTrainer else {}
        return cls(
            model=tiny_bert(seed),
            args=TrainingArguments(**arguments(**given)),
            train_dataset=examples,
            eval_dataset=examples,
            **pruning,
        )

    return build


def steps_of(hub, repo=REPO, revision="main"):
    """Yields for each commit of a checkpoint the step in its title, the step in its record, and
    whether its card says that training goes on."""
    for commit in hub.commits(repo, revision)[::-1]:
        named = re.search(r"step (\d+)$", commit.title)
        if named:
            files = contents(commit)
            record, card = json.loads(files["pruning_run.json"]), files["README.md"].decode()
            yield int(named[1]), record["step"], "Training in progress" in card


def pages(hub, repo=REPO, revision="main"):
    """Files of each commit that has weights in its root, the oldest first."""
    found = [contents(commit) for commit in hub.commits(repo, revision)[::-1]]
    return [files for files in found if "model.safetensors" in files]


def check_history(hub, tmp_path, repo=REPO, revision="main"):
    """Check every commit; sparse/ and pictures/ lie only beside their own weights."""
    sparsities = []
    for files in pages(hub, repo, revision):
        is_final = any(path.startswith("pictures/") for path in files)
        has_packed = any(path.startswith("sparse/") for path in files)
        assert is_final >= has_packed
        sparsities.append(check_page(files, tmp_path, is_final, has_packed))
    return sparsities


BEST = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 4}
STRATEGIES = {
    "end": ({"hub_strategy": "end"}, 1),
    "every_save": ({"hub_strategy": "every_save", "hub_always_push": True}, 4),
    "checkpoint": ({"hub_strategy": "checkpoint", "hub_always_push": True}, 7),
    "all_checkpoints": ({"hub_strategy": "all_checkpoints", "hub_always_push": True}, 7),
    "epochs": ({"save_strategy": "epoch", "hub_always_push": True, "max_steps": 32}, 3),
    "best at the end": ({**BEST, "hub_always_push": True}, 4),
    "saved if best": (
        {**BEST, "save_strategy": "best", "eval_steps": 2, "metric_for_best_model": "loss"},
        2,
    ),
    "private, on a branch": ({"hub_private_repo": True, "hub_revision": "side"}, 2),
}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_push_tells_the_truth_about_its_weights(strategy, hub, make, tmp_path):
    options, least = STRATEGIES[strategy]
    if strategy == "every_save":  # the next save comes while this one is sent
        hub.slow(0.3, "POST", "/objects/batch")
    trainer = make(**options)
    trainer.train()
    trainer.push_to_hub()
    revision = options.get("hub_revision", "main")
    for named, step, goes_on in steps_of(hub, revision=revision):
        assert (step, goes_on) == (named, named < 12)
    sparsities = check_history(hub, tmp_path, revision=revision)
    assert len(sparsities) >= least
    assert sparsities[-1] == pytest.approx(0.8, abs=1e-3), "the model is at the target"
    assert (
        len(
            {name for files in pages(hub, revision=revision)[:-1] for name in files}
            & {"sparse/config.json", "pictures/schedule.png"}
        )
        == 0
    )
    assert hub.is_private(REPO) == options.get("hub_private_repo", False)
    if revision != "main":
        assert hub.files(REPO).keys() == {".gitattributes"}
    places = {"checkpoint": "last-checkpoint", "all_checkpoints": "checkpoint-8"}
    if strategy in places:
        assert f"{places[strategy]}/{STATE_NAME}" in hub.files(REPO), "it can be resumed"
    assert hub.find(WRITE_TOKEN) == []


class Saves(TrainerCallback):
    """Does what a person might do in the middle of a run."""

    def __init__(self, step, act):
        self.step, self.act = step, act

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.act()


def test_a_push_after_training_takes_what_push_to_hub_takes(hub, make, tmp_path):
    trainer = make(push_to_hub=False, hub_token=None, hub_model_id="pruned")
    trainer.train()
    assert hub.requests == []
    trainer.push_to_hub(token=WRITE_TOKEN, private=True, packed=False)
    assert hub.is_private(REPO)
    trainer.push_to_hub("Another", token=WRITE_TOKEN, revision="v2", blocking=False).result()
    trainer.push_to_hub("Third", token=WRITE_TOKEN, language="en", tags="mine")
    trainer.push_to_hub("Without", token=WRITE_TOKEN, packed=False)
    check_history(hub, tmp_path)
    check_history(hub, tmp_path, revision="v2")
    titles = [commit.title for commit in hub.commits(REPO)[::-1]]
    assert titles == ["initial commit", "End of training", "Third", "Without"]
    assert "sparse/config.json" in hub.files(REPO, "v2")
    assert "- mine" in hub.files(REPO)["README.md"].decode()
    assert hub.find(WRITE_TOKEN) == []


def test_save_model_pushes_all_of_the_page(hub, make, tmp_path):
    trainer = make(save_strategy="no")
    trainer.train()
    trainer.save_model()
    assert hub.commits(REPO)[0].title == "Model save"
    assert check_history(hub, tmp_path) == [pytest.approx(0.8, abs=1e-3)]


def test_training_again_leaves_no_packed_copy_of_other_weights(hub, make, tmp_path):
    for seed in range(2):
        trainer = make(seed=seed, hub_always_push=True)
        for _ in range(2 - seed):  # the same Trainer, and another one
            trainer.train()
            trainer.push_to_hub()
    assert len(check_history(hub, tmp_path)) >= 3 * 3
    trainer.save_model(_internal_call=True)
    trainer.create_model_card()
    assert not list((tmp_path / "out").glob("sparse/*"))
    assert "subfolder" not in (tmp_path / "out" / "README.md").read_text()
    finals = [files for files in pages(hub) if "sparse/config.json" in files]
    assert len({files["sparse/model.sparse.safetensors"] for files in finals}) >= 2


def test_without_pruning_the_push_is_that_of_trainer(hub, make, tmp_path):
    for cls, name in ((Trainer, "tester/stock"), (PruningTrainer, "tester/own")):
        options = {"hub_model_id": name, "hub_always_push": True}
        options["output_dir"] = str(tmp_path / name)
        trainer = make(cls, None, **options)
        trainer.train()
        trainer.push_to_hub()
    stock, own = hub.commits("tester/stock"), hub.commits("tester/own")
    assert [commit.title for commit in own] == [commit.title for commit in stock]
    for ours, theirs in zip(own, stock, strict=True):
        ours, theirs = contents(ours), contents(theirs)
        assert ours.keys() == theirs.keys()
        same = {path for path in ours if ours[path] == theirs[path]}
        assert set(ours) - same <= {"training_args.bin", "README.md"}


def test_create_model_card_alone_writes_a_card_and_asks_no_hub(hub, make, tmp_path):
    trainer = make(push_to_hub=False)
    trainer.train()
    trainer.save_model()
    trainer.create_model_card(language="en")
    assert "80.00%" in (tmp_path / "out" / "README.md").read_text()
    assert hub.requests == []


MINE = "# Mine, in Latin-1: \xe9\xe8".encode("latin-1")


def test_the_card_of_a_person_stays(hub, make, tmp_path):
    """It may be here or on the Hub, also while training pushes."""
    hub.add_repo(REPO, {"README.md": b"---\nlicense: mit\n---\n"})
    trainer = make(hub_always_push=True)
    trainer.train()
    trainer.push_to_hub()
    assert b"hf_cyclprune model card" in hub.files(REPO)["README.md"]
    hub.add_files(REPO, {"README.md": b"# Written on the Hub"})
    trainer.train()
    trainer.push_to_hub()
    assert hub.files(REPO)["README.md"] == b"# Written on the Hub"
    (tmp_path / "out" / "README.md").write_bytes(b"# Written here")
    trainer.push_to_hub()
    assert hub.files(REPO)["README.md"] == b"# Written here"
    (tmp_path / "out" / "README.md").write_bytes(MINE)
    trainer.create_model_card()
    assert (tmp_path / "out" / "README.md").read_bytes() == MINE


def holds(folder, text):
    return [path for path in folder.rglob("*") if path.is_file() and text in path.read_bytes()]


@pytest.mark.parametrize("cls", [Trainer, PruningTrainer])
def test_no_file_and_no_request_holds_the_token(cls, hub, make, tmp_path):
    options = {"report_to": ["tensorboard"], "hub_strategy": "all_checkpoints"}
    trainer = make(cls, logging_steps=2, hub_always_push=True, **options)
    trainer.args.hub_token = WRITE_TOKEN  # set again by hand
    trainer.train()
    trainer.args.hub_token = WRITE_TOKEN
    trainer.push_to_hub()
    found = [path.name for path in holds(tmp_path, WRITE_TOKEN.encode())]
    if cls is Trainer:
        assert set(found) == {"training_args.bin"}, "if this fails, Secret is not needed any more"
    else:
        assert found == hub.find(WRITE_TOKEN) == []
        assert any(path.startswith("runs/") for path in hub.files(REPO))
        args = torch.load(tmp_path / "out" / "training_args.bin", weights_only=False)
        assert args.hub_token is None


def weights_of(trainer):
    return {name: w.clone() for name, w in trainer.model.state_dict().items()}


def check_saved(folder, trainer):
    saved = safetensors.torch.load_file(folder / "model.safetensors")
    assert all(torch.equal(saved[name], w) for name, w in weights_of(trainer).items())


FAULTS = {
    "the server is down": lambda hub: hub.stop(),
    "500 on the weights": lambda hub: hub.fail_next("PUT", "/lfs/", times=None),
    "500 on the commit": lambda hub: hub.fail_next("POST", "/commit/", times=None),
    "cut in a file": lambda hub: hub.cut_connection("PUT", "/lfs/", 99, "request", times=None),
    "403": lambda hub: hub.fail_next("POST", "/preupload/", 403, times=None),
}


@pytest.mark.parametrize(
    ("fault", "strategy"),
    [*((fault, "every_save") for fault in FAULTS), ("500 on the weights", "checkpoint")],
)
def test_a_push_that_fails_in_training_is_a_warning_and_training_goes_on(
    fault, strategy, hub, make, tmp_path
):
    trainer = make(hub_always_push=True, hub_strategy=strategy)
    trainer.add_callback(Saves(6, lambda: FAULTS[fault](hub)))
    with pytest.warns(UserWarning, match="A push .*failed.*'tester/pruned'") as caught:
        trainer.train()
    assert any("Your files are intact" in str(w.message) or "403" in str(w.message) for w in caught)
    assert trainer.state.global_step == 12
    before = len(hub.commits(REPO))
    with pytest.raises(PushError, match=r"push to 'tester/pruned'|token may not write to") as error:
        trainer.push_to_hub()
    assert "\n" not in str(error.value)
    assert WRITE_TOKEN not in str(error.value)
    assert len(hub.commits(REPO)) == before
    check_saved(tmp_path / "out", trainer)
    check_history(hub, tmp_path)
    hub.clear_faults()
    hub.start()
    trainer.push_to_hub()
    assert check_history(hub, tmp_path)[-1] == pytest.approx(0.8, abs=1e-3)


def test_a_push_that_fails_before_it_begins_leaves_no_card_without_weights(hub, make, tmp_path):
    trainer = make(hub_always_push=True)
    trainer.add_callback(Saves(2, hub.stop))
    with pytest.warns(UserWarning, match="A push failed while training goes on"):
        trainer.train()
    names = {"README.md", "pruning_run.json", "model.safetensors"}
    assert not names & set(os.listdir(trainer.args.output_dir))
    assert not list((tmp_path / "out").glob("_*"))
    hub.start()


def test_after_a_failed_push_weights_and_record_in_output_dir_are_of_one_step(hub, make, tmp_path):
    """Otherwise `hf-cyclprune push` would upload old weights with a newer record."""
    trainer = make(hub_always_push=True, max_steps=16)
    trainer.add_callback(Saves(8, hub.stop))
    with pytest.warns(UserWarning, match="A push .*failed"):
        trainer.train()
    out = tmp_path / "out"
    record = card_of_folder(out).record
    assert record.fingerprint == fingerprint(out)
    step = record.weights_step
    assert verify(out, out / f"checkpoint-{step}") is None
    assert f"optimizer step {step} of 16" in (out / "README.md").read_text()
    assert not list(out.glob("_*"))
    hub.start()


def test_a_model_that_saves_something_else_than_itself_is_saved_with_its_record(make, tmp_path):
    trainer = make(push_to_hub=False)
    trainer.train()

    def save_adapter(folder, **options):
        (Path(folder) / "adapter_model.safetensors").write_bytes(b"an adapter")

    trainer.model.save_pretrained = save_adapter
    trainer.save_model(tmp_path / "adapter")
    record = load_record(tmp_path / "adapter")
    assert (record.step, record.fingerprint) == (12, None)


def test_training_asks_once_what_the_repository_holds(hub, make):
    trainer = make(hub_always_push=True, max_steps=16, save_steps=2)
    trainer.train()
    listings = [r for r in hub.requests if r.method == "GET" and "/tree/" in r.path]
    assert len(listings) == 1
    assert len(hub.commits(REPO)) >= 7


def test_a_dense_run_stays_on_the_card(hub, make, tmp_path):
    trainer = make(push_to_hub=False)
    trainer.train()
    loss = trainer.evaluate()["eval_loss"]
    (tmp_path / "dense").mkdir()
    (tmp_path / "dense" / "all_results.json").write_text(json.dumps({"eval_loss": 0.1234}))
    trainer.create_model_card(dense_run=tmp_path / "dense")
    trainer.push_to_hub(token=WRITE_TOKEN)
    row = f"| loss | 0.1234 | {loss:.4f} |"
    assert row in hub.files(REPO)["README.md"].decode()
    assert row in make_card(card_of_folder(tmp_path / "out"))


def test_one_fault_is_met_by_trying_again(hub, make, tmp_path):
    trainer = make(save_strategy="no")
    trainer.train()
    hub.cut_connection("PUT", "/lfs/", after=99, during="request")
    hub.fail_next("POST", "/preupload/")
    trainer.push_to_hub()
    check_history(hub, tmp_path)


def test_a_push_that_nobody_waits_for_warns_of_its_failure(hub, make):
    trainer = make(save_strategy="no")
    trainer.train()
    hub.fail_next("POST", "/commit/", times=None)

    def push():
        trainer.push_to_hub(blocking=False).exception()
        trainer._finish_current_push()

    with pytest.warns(UserWarning, match=r"A push in the background failed.*: 500"):
        push()


def test_a_trainer_says_why_it_cannot_push(hub, make, monkeypatch):
    def refused(**options):
        with pytest.raises(PushError) as error:
            make(**options)
        assert "\n" not in str(error.value)
        return str(error.value)

    hub.add_repo("stranger/model", {"a.txt": b""})
    own = {"hub_model_id": "stranger/model", "hub_revision": "side"}
    assert "may not write to 'stranger/model': the Hub answered 403" in refused(**own)
    answer = "may not write to 'tester/pruned': the Hub answered 403"
    assert answer in refused(hub_token=READ_TOKEN)
    for token in ("hf_wrong", None):
        answer = "'tester/pruned' needs a valid token for the Hub: the Hub answered 401"
        assert answer in refused(hub_token=token)
    hub.stop()
    assert "The Hub cannot be reached for the push to 'tester/pruned'" in refused()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "while HF_HUB_OFFLINE is set" in refused()
    assert not hub.has_repo(REPO)


def fails_half_way(path):
    """Writes half of a file, and then the disk is full."""
    Path(path).write_bytes(b"half")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def test_a_full_disk_loses_nothing(hub, make, tmp_path, monkeypatch):
    trainer = make(save_strategy="no")
    trainer.train()
    trainer.push_to_hub()
    folder = tmp_path / "out"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    num_commits = len(hub.commits(REPO))

    def check(name, full):
        with monkeypatch.context() as patch:
            patch.setattr(name, full)
            with pytest.raises(PushError, match="has no room"):
                trainer.push_to_hub()
        now = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        changed = [path for path in before | now if before.get(path) != now.get(path)]
        return {path.relative_to(folder).parts[0] for path in changed}

    def save(model, place, **options):
        fails_half_way(Path(place) / "model.safetensors")

    assert check("transformers.PreTrainedModel.save_pretrained", save) == set()
    card = "hf_cyclprune.hub.page.Path.write_text"
    assert check(card, lambda path, *_, **__: fails_half_way(path)) == set()
    pack = "hf_cyclprune.hub.page.pack_with"
    # which belong to the weights that were there before
    assert check(pack, lambda *places: fails_half_way(f"{places[-1]}.x")) == {"sparse", "pictures"}
    assert len(hub.commits(REPO)) == num_commits
    assert not list(folder.glob("_*"))
    trainer.push_to_hub()
    check_history(hub, tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such limits")
def test_a_disk_that_fills_while_the_weights_are_written_leaves_the_old_ones(hub, make, tmp_path):
    import resource

    trainer = make(save_strategy="no")
    trainer.train()
    trainer.push_to_hub()
    folder = tmp_path / "out"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    trainer.train()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, hard))
    try:
        with pytest.raises(PushError, match=r"has no room.*File too large"):
            trainer.push_to_hub()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    trainer.push_to_hub()
    assert len(check_history(hub, tmp_path)) == 2


def test_the_teacher_of_a_run_is_not_pushed(hub, make, tiny_bert):
    trainer = make(hub_strategy="end", save_strategy="no")
    folder = Path(trainer.args.output_dir) / TEACHER
    tiny_bert(1).save_pretrained(folder)
    trainer.train()
    trainer.push_to_hub()
    assert "model.safetensors" in hub.files(REPO)
    assert [name for name in hub.files(REPO) if TEACHER in name] == []
