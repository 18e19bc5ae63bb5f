from dataclasses import replace

from hf_cyclprune.hub.folder import card_of_folder
from hf_cyclprune.packing.weights import fingerprint
from hf_cyclprune.reporting.cycles import CycleReport
from hf_cyclprune.reporting.run import RunRecord
from hf_cyclprune.training.upstream import own_names


def test_a_card_is_counted_in_the_weights(folder):
    card = card_of_folder(folder)
    assert (card.report.sparsity, card.report.is_at_target) == (0.5, True)
    assert (card.model_name, card.model_class) == ("model", "BertForSequenceClassification")
    record = card.record
    assert (record.step, record.total_steps, record.is_finished) == (4, 8, False)


def test_metrics_of_other_weights_are_left_out(folder):
    card = card_of_folder(folder)
    record = RunRecord(8, 8, 8, metrics={"eval_accuracy": 0.5})
    record.save(folder)
    card.report.save(folder)
    assert card_of_folder(folder).record.metrics == {"eval_accuracy": 0.5}
    path = folder / "sparsity_report.json"
    path.write_text(path.read_text().replace('"num_zeros": 128', '"num_zeros": 127'))
    assert card_of_folder(folder).record.metrics == {}


def test_the_run_of_other_weights_is_left_out(folder, tiny_bert):
    card = card_of_folder(folder)
    cycles = (CycleReport(1, 8, 0.5),)
    record = RunRecord(8, 8, 8, {"eval_accuracy": 0.5}, base_model="lab/base")
    replace(record, fingerprint=fingerprint(folder)).save(folder)
    replace(card.report, cycles=cycles).save(folder)
    read = card_of_folder(folder)
    assert (read.record.metrics, read.report.cycles) == ({"eval_accuracy": 0.5}, cycles)
    model = type(tiny_bert()).from_pretrained(folder)
    with own_names(model):  # transformers 5.0.0 would not use them
        model.save_pretrained(folder, max_shard_size="20KB")  # the same ones in other files
    (folder / "model.safetensors").unlink()
    assert card_of_folder(folder).record.metrics == {"eval_accuracy": 0.5}
    model.classifier.weight.data.zero_()  # as many zeros in the target weights as before
    model.save_pretrained(folder, max_shard_size="20KB")
    other = card_of_folder(folder)
    assert other.report.num_zeros == card.report.num_zeros
    assert (other.record.metrics, other.record.total_steps, other.report.cycles) == ({}, None, ())
    assert other.record.base_model == "lab/base"
