import pytest

from hf_cyclprune.reporting.run import RECORD_NAME, RunRecord, load_record

RECORD = RunRecord(
    step=30,
    weights_step=20,
    total_steps=40,
    metrics={"eval_accuracy": 0.75},
    log_history=[{"step": 10, "loss": 0.5, "sparsity": 0.4, "cycle": 1}],
    base_model="org/base",
    card={"language": "en"},
    versions={"torch": "2"},
)


def test_a_record_comes_back_as_it_was_saved(tmp_path):
    assert RECORD.save(tmp_path / "new") == tmp_path / "new" / RECORD_NAME
    assert load_record(tmp_path / "new") == RECORD
    assert not RECORD.is_finished


def test_a_folder_without_a_record_has_none(tmp_path):
    assert load_record(tmp_path) is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"step": 1}'])
def test_a_record_that_cannot_be_read_is_an_error(tmp_path, text):
    (tmp_path / RECORD_NAME).write_text(text)
    with pytest.raises(ValueError, match="must be as hf_cyclprune wrote it"):
        load_record(tmp_path)
