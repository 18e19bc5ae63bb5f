"""What is known of divided weights in each process, and what is asked of no other."""

import pytest
from transformers import Trainer

from hf_cyclprune import PruningConfig, PruningTrainer
from hf_cyclprune.engines.ranks import Ranks
from hf_cyclprune.training.counts import SAVE_WHOLE

CONFIG = PruningConfig(sparsity=0.8, num_cycles=2)


@pytest.fixture
def divided(train, monkeypatch):
    """A trained Trainer that takes its weights for divided ones."""
    trainer = train(PruningTrainer, args={"max_steps": 4}, pruning_config=CONFIG)
    monkeypatch.setattr(Ranks, "is_divided", True)
    return trainer


def test_a_card_of_divided_weights_is_about_those_that_were_saved(divided, tmp_path):
    assert divided.model_card() is None
    divided._save(str(tmp_path / "whole"), state_dict=divided.model.state_dict())
    card = divided.model_card()
    assert card.report.num_zeros == sum(divided.pruner.num_pruned)
    assert (tmp_path / "whole" / "sparsity_report.json").is_file()


def test_without_whole_weights_there_is_no_card(divided, tmp_path):
    """As ZeRO-3 saves by default: an empty file, which the Trainer deletes."""
    divided._save(str(tmp_path / "whole"), state_dict=divided.model.state_dict())
    divided._save(str(tmp_path / "parts"), state_dict={})
    assert divided.model_card() is None
    assert not (tmp_path / "parts" / "sparsity_report.json").exists()
    with pytest.raises(ValueError, match=r"saved last, but none were.*stage3_gather"):
        divided.create_model_card()


def test_a_checkpoint_without_whole_weights_is_not_pushed(divided, monkeypatch, tmp_path):
    monkeypatch.setattr(Trainer, "_push_from_checkpoint", lambda *_: pytest.fail("pushed"))
    divided.push_in_progress = None
    with pytest.warns(UserWarning, match="A checkpoint has no whole weights to push") as seen:
        divided._push_from_checkpoint(str(tmp_path))
    assert SAVE_WHOLE in str(seen[0].message)
