import dataclasses
import math
import re

import pytest
from huggingface_hub import ModelCard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hf_cyclprune.card.card import Card
from hf_cyclprune.card.rendering import is_own_card, make_card
from hf_cyclprune.config import PruningConfig
from hf_cyclprune.config_file import load_config, save_config
from hf_cyclprune.methods import METHODS
from hf_cyclprune.reporting.report import SparsityReport, load_report
from hf_cyclprune.reporting.run import RunRecord, load_record
from tests.card.examples import (
    BARE,
    CYCLES,
    FULL,
    OPTIONS,
    PAPER,
    RECORD,
    change,
    check_structure,
    code_of,
    headings_of,
    make_report,
    metadata_of,
    parse,
    tables_of,
    without_code,
    words_of,
)


def test_every_number_of_the_tables_was_counted_or_measured():
    text = make_card(FULL)
    check_structure(text)
    tables = tables_of(text)
    assert tables["metric"] == [
        ["metric", "dense", "pruned"],
        ["accuracy", "0.9000", "0.8400"],
        ["loss", "-", "0.4321"],
    ]
    assert tables["matrix"] == [
        ["matrix", "weights", "zeros", "sparsity"],
        ["attention.query", "200", "160", "80.00%"],
        ["ffn", "400", "320", "80.00%"],
    ]
    assert tables["layer"] == [
        ["layer", "weights", "zeros", "sparsity"],
        ["layer 0", "300", "240", "80.00%"],
        ["layer 1", "300", "240", "80.00%"],
    ]
    assert tables["cycle"] == [
        [
            *("cycle", "last step", "sparsity", "accuracy"),
            *("recovered at edge", "recovered at end", "mask change"),
        ],
        ["1", "500", "80.00%", "0.8100", "-", "-", "-"],
        ["2", "1,000", "79.00%", "0.8300", "25.00%", "1.23%", "3.10%"],
    ]
    assert tables["weights"] == [
        ["weights", "bytes", "MB"],
        ["dense", "4,321,000", "4.3"],
        ["packed", "1,234,567", "1.2"],
    ]
    assert len(tables) == 5


def test_every_number_of_the_text_was_counted_or_measured():
    words = words_of(make_card(FULL))
    assert (
        "This model is lab/base, fine-tuned on GLUE SST2 with cyclical pruning (Srinivas et al. "
        "2022): 80.00% of its target weights are zero, without a pattern (unstructured)."
    ) in words
    assert "from one run, measured on the validation split, with 100 examples." in words
    error = math.sqrt(0.84 * 0.16 / 100)
    assert f"standard error of the pruned model's accuracy is {error:.4f}" in words
    assert "Of the 600 target weights 480 are zero (80.00%)" in words
    assert "that is 48.00% of the 1,000 parameters of the whole model" in words
    assert "In each of 2 cycles sparsity climbs (cubic) to the target over the first 80%" in words
    assert "Every cycle but the first starts from 50% of the target." in words
    assert "The learning rate runs its whole schedule once in each of the 2 cycles." in words
    assert "Settings that differ from the method's own: num_cycles=2." in words
    assert "The weights are those after optimizer step 1,000 of 1,000." in words
    assert "learning_rate: 0.0003 seed: 7 optimizer: adamw_torch, betas=(0.9, 1)" in words
    assert "Versions: hf_cyclprune 0.1.0, torch 2.9." in words


def test_the_code_of_the_card_is_the_code_to_run():
    loading, packed, config, command, citation = code_of(make_card(FULL))
    assert loading == (
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer\n\n"
        'model = AutoModelForSequenceClassification.from_pretrained("lab/sst2-80")\n'
        'tokenizer = AutoTokenizer.from_pretrained("lab/sst2-80")\n'
    )
    assert packed.startswith("import hf_cyclprune")
    assert packed.endswith('from_pretrained("lab/sst2-80", subfolder="sparse")\n')
    assert eval(config, {"PruningConfig": PruningConfig}) == FULL.config
    assert command == RECORD.command + "\n"
    assert PAPER in citation
    compile(loading + packed, "card", "exec")


@pytest.mark.parametrize(
    ("model_class", "shown", "task"),
    [
        ("BertForTokenClassification", "AutoModelForTokenClassification", "token-classification"),
        ("RobertaForMaskedLM", "AutoModelForMaskedLM", "fill-mask"),
        ("BertModel", "BertModel", None),
        ("BertForPreTraining", "BertForPreTraining", None),
        ("MyOwnClass", None, None),
        ("import os; os", None, None),
    ],
)
def test_the_model_is_loaded_with_the_class_that_knows_its_head(model_class, shown, task):
    record = {"card": {}}
    text = make_card(change(model_class=model_class, record=record, repo_id=None))
    assert metadata_of(text).get("pipeline_tag") == task
    if shown is None:
        assert model_class not in text
        assert "`from_pretrained` of the model's class" in text
    else:
        assert f'model = {shown}.from_pretrained("path/to/sst2-80")' in text


def test_pictures_are_shown_with_words_for_who_cannot_see_them():
    inlines = [token for token in parse(make_card(FULL)) if token.type == "inline"]
    images = [child for token in inlines for child in token.children if child.type == "image"]
    assert [image.attrs["src"] for image in images] == list(FULL.pictures.values())
    assert all(len(image.content.split()) > 2 for image in images)


def test_a_share_is_rounded_to_0_or_100_only_if_it_is():
    zeros = make_report().weights[0]
    almost = dataclasses.replace(zeros, shape=(1000, 1000), num_zeros=999_999)
    assert "99.9999%" in words_of(make_card(change(report=SparsityReport((almost,)))))
    cycle = dataclasses.replace(CYCLES[1], recovered_share_at_end=1e-6)
    text = make_card(change(report=make_report(cycles=[CYCLES[0], cycle])))
    assert tables_of(text)["cycle"][2][5] == "0.0001%"
    assert "no weight that was pruned" not in words_of(text)


def test_that_nothing_recovered_is_said():
    cycle = dataclasses.replace(CYCLES[1], recovered_share_at_end=0.0)
    text = make_card(change(report=make_report(cycles=[CYCLES[0], cycle])))
    assert tables_of(text)["cycle"][2][5] == "0.00%"
    assert "In this run no weight that was pruned at the end of a cycle was kept" in words_of(text)
    assert "In this run no weight" not in words_of(make_card(FULL))


def test_a_run_that_is_not_finished_says_so_at_the_top():
    card = change(report=make_report(61), record={"step": 700, "weights_step": 650})
    text = make_card(card)
    check_structure(text)
    assert words_of(text).startswith(
        "sst2-80 Training in progress, or stopped early: these weights are from optimizer step 650 "
        "of 1,000. Their sparsity is 61.00%; the target is 80.00%. This model"
    )


def test_finished_weights_that_miss_the_target_say_so_at_the_top():
    text = make_card(change(report=make_report(61, target=None)))
    assert words_of(text).startswith(
        "sst2-80 Not at the target: the sparsity of these weights is 61.00%; the target is 80.00%. "
    )
    assert words_of(make_card(FULL)).startswith("sst2-80 This model is")


def test_the_best_model_of_a_run_is_called_that():
    text = make_card(change(record={"weights_step": 500}))
    best = "the best of the run by its evaluations."
    assert f"after optimizer step 500 of 1,000, {best}" in words_of(text)


def test_weights_of_a_first_cycle_say_that_more_were_planned():
    text = make_card(change(record={"weights_step": 500}))
    words = words_of(text)
    assert "2 cycles were planned; these weights are from the first one." in words
    assert "were planned" not in make_card(change(record={"weights_step": 501}))
    gradual = PruningConfig(method="gradual", sparsity=0.8)
    assert "were planned" not in make_card(change(config=gradual, record={"weights_step": 500}))


def test_a_run_that_was_resumed_with_another_schedule_tells_no_plan():
    words = words_of(make_card(change(record={"is_plan_kept": False})))
    assert "The run was resumed with another schedule; the last one is shown below." in words
    assert "sparsity climbs" not in words
    assert "The learning rate runs" not in words


def test_weights_of_which_no_run_is_known_are_of_no_step():
    words = words_of(make_card(dataclasses.replace(FULL, record=RunRecord())))
    assert "after optimizer step" not in words
    assert "Training in progress" not in words
    assert "with cyclical pruning" in words


def test_two_sets_of_examples_have_no_common_number():
    text = make_card(change(record={"metrics": {**RECORD.metrics, "eval_accuracy_mm": 0.8}}))
    assert "100 examples" not in text
    assert "binomial" not in text


def config_of(method, **options):
    keeps_zeros = METHODS[method].settings.get("recompute") == "never"
    return PruningConfig(method, sparsity=None if keeps_zeros else 0.8, **options)


@pytest.mark.parametrize("name", METHODS)
def test_the_card_of_every_method_names_it_and_cites_its_paper(name):
    method = METHODS[name]
    text = make_card(change(config=config_of(name)))
    check_structure(text)
    words = words_of(text)
    citation = [code for code in code_of(text) if code.startswith("@")]
    if method.paper is None:
        assert f" with {method.title}: 80.00%" in words
        assert citation == []
    else:
        assert f" with {method.title} ({method.paper.short}): 80.00%" in words
        assert f"({method.paper.url})" in text
        assert citation == [method.paper.bibtex + "\n"]
        assert f"{{{method.paper.key}," in citation[0]
    named = [tag for tag in metadata_of(text)["tags"] if tag in {m.tag for m in METHODS.values()}]
    assert named == [tag for tag in [method.tag] if tag is not None]
    assert f"PruningConfig(method='{name}'" in text
    assert "Settings that differ" not in words
    assert method.sentence.partition("{")[0] in words
    assert ("In the measurements in this library's README" in words) == bool(method.finding)
    assert (method.finding or "") in words
    told = words.partition(" Training ")[2].partition(" The weights are those")[0]
    assert told
    assert re.search(r"0\.\d|[{}]|None", told) is None


@pytest.mark.parametrize(
    "options",
    [{"criterion": "magnitude"}, {"num_cycles": 20}, {"pattern": "2:4"}, {"lr_restarts": True}],
    ids=str,
)
def test_what_was_found_about_a_method_is_said_of_nothing_else(options):
    finding = METHODS["rising"].finding
    assert finding in words_of(make_card(change(config=config_of("rising"))))
    target = {} if "pattern" in options else {"sparsity": 0.8}
    config = PruningConfig("rising", **target, **options)
    words = words_of(make_card(change(config=config)))
    assert finding not in words
    assert ("With its own settings" in words) == ("criterion" in options)


def test_a_run_of_fewer_steps_than_cycles_has_as_many():
    steps = {"total_steps": 2, "weights_step": 2, "step": 2}
    words = words_of(make_card(change(record=steps, config=config_of("rising"))))
    assert "At the start of each of the 2 cycles" in words
    assert "planned; these weights are from the first one" not in words


def test_alternating_dense_and_sparse_phases_are_called_ac_dc_and_not_cyclical_pruning():
    text = make_card(change(config=config_of("ac_dc", num_cycles=2)))
    words = words_of(text)
    assert "with AC/DC, alternating compressed and decompressed training (Peste et al." in words
    assert "Each of 2 cycles trains the dense model for its first 50% and the sparse one" in words
    assert "2106.12379" in code_of(text)[-1]
    assert PAPER not in text
    assert "ac-dc" in metadata_of(text)["tags"]
    assert "The learning rate runs its whole schedule" not in words


def test_the_card_of_the_default_says_how_deep_its_dips_were():
    for sparsity, share in (0.8, "95%"), (0.96, "98.125%"):
        words = words_of(make_card(change(config=PruningConfig(sparsity=sparsity))))
        assert f"it falls to {share} of that climb's height" in words


@pytest.mark.parametrize(
    ("config", "changed", "sentence", "never_falls"),
    [
        (
            config_of("rising", num_cycles=5, reset_ratio=0.7),
            "num_cycles=5, reset_ratio=0.7",
            "each of the 5 cycles but the first it falls to 70% of that climb's height",
            False,
        ),
        (
            config_of("gradual", ramp="linear", criterion="random"),
            "criterion='random', ramp='linear'",
            "Sparsity climbs (linear) to the target over the first 80% of the run",
            False,
        ),
        (
            config_of("gradual", num_cycles=3),
            "num_cycles=3",
            "With its own settings, the method works like this: Sparsity climbs (cubic)",
            False,
        ),
        (
            config_of("cyclical", num_cycles=1),
            "num_cycles=1",
            "Every cycle but the first starts from 50% of the target.",
            True,
        ),
        (
            config_of("cyclical", reset_ratio=1.0),
            "reset_ratio=1.0",
            "Every cycle but the first starts from 100% of the target.",
            True,
        ),
        (
            config_of("rising", reset_ratio=1.0, levels="constant"),
            "reset_ratio=1.0, levels='constant'",
            "With its own settings, the method works like this: Sparsity climbs (cubic)",
            True,
        ),
        (
            PruningConfig("cyclical", recompute="never"),
            "recompute='never'",
            "With its own settings, the method works like this: In each of 4 cycles",
            True,
        ),
        (
            PruningConfig("hold", recompute="climb", sparsity=0.8),
            "recompute='climb'",
            "With its own settings, the method works like this: The zeros that",
            False,
        ),
        (
            PruningConfig("sculpt", initial_sparsity=0.2, sparsity=0.4),
            "initial_sparsity=0.2",
            "The run starts from masks at a sparsity of 20%",
            False,
        ),
    ],
)
def test_settings_that_are_not_the_methods_own_are_listed(config, changed, sentence, never_falls):
    words = words_of(make_card(change(config=config)))
    assert f"Settings that differ from the method's own: {changed}." in words
    assert sentence in words
    assert ("With its own settings" in words) == sentence.startswith("With")
    assert ("Sparsity never falls in this run." in words) == never_falls


def test_a_run_that_held_its_zeros_has_no_target_and_no_method_to_cite():
    config = PruningConfig(method="hold")
    report = make_report(50, ("2:4",), None)
    text = make_card(change(config=config, report=report, record={"step": 10}))
    check_structure(text)
    assert "cyclical" not in text.lower()
    assert "with its zeros kept in place: 50.00%" in words_of(text)
    assert "Their sparsity is 50.00%. This" in words_of(text)
    assert "PruningConfig(method='hold')\n" in code_of(text)
    assert "Citation" not in headings_of(text)
    tags = metadata_of(text)["tags"]
    assert "2:4" in tags
    assert not any(tag.endswith("-pruning") for tag in tags)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "Linear layers inside the transformer's blocks. Embeddings"),
        ({"ignore": ["x"]}, "blocks, without those that ignore names. Embeddings"),
        ({"targets": ["x"]}, "those that the option targets below names. All others were"),
    ],
)
def test_the_card_says_which_weights_it_counts(options, words):
    config = PruningConfig(sparsity=0.8, **options)
    text = make_card(change(config=config))
    assert words in words_of(text)
    assert eval(code_of(text)[2], {"PruningConfig": PruningConfig}) == config


# What is absent


OPTIONAL = {
    f.name: None if f.default is dataclasses.MISSING else f.default
    for f in dataclasses.fields(Card)
    if f.name not in ("model_name", "report", "config", "record")
}
OPTIONAL["pictures"] = {}
IN_RECORD = {
    "metrics": {},
    "base_model": None,
    "card": {},
    "hyperparameters": {},
    "versions": {},
    "command": None,
}


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sets(st.sampled_from(list(OPTIONAL))),
    st.sets(st.sampled_from(list(IN_RECORD))),
    st.sets(st.sampled_from(list(OPTIONS))),
    st.sets(st.sampled_from(list(FULL.pictures))),
    st.booleans(),
)
def test_what_is_not_known_leaves_no_trace(
    missing, missing_in_record, not_given, unseen, has_cycles
):
    options = {name: value for name, value in OPTIONS.items() if name not in not_given}
    pictures = {name: path for name, path in FULL.pictures.items() if name not in unseen}
    card = change(
        record={"card": options, **{name: IN_RECORD[name] for name in missing_in_record}},
        report=make_report(cycles=CYCLES if has_cycles else ()),
        **{"pictures": pictures, **{name: OPTIONAL[name] for name in missing}},
    )
    text = make_card(card)
    check_structure(text)
    assert re.search(r"\b(None|nan|inf|unknown|null)\b|\{\{|\}\}|\{%|\[\]|\(\)|\{\}", text) is None
    assert re.search(r" [,.;:)]|\n\n\n|[^ \n]  [^ =#]", without_code(text)) is None
    shown = {
        "metric": bool(card.record.metrics),
        "cycle": has_cycles,
        "weights": bool(card.dense_bytes or (card.packed_bytes and card.packed_folder)),
    }
    tables = tables_of(text)
    assert {name: name in tables for name in shown} == shown
    assert ("Size on disk" in headings_of(text)) == shown["weights"]
    assert ("Cycles" in headings_of(text)) == (has_cycles or "recovery" in card.pictures)
    assert ("subfolder" in text) == bool(card.packed_folder)
    assert ("AutoTokenizer" in text) == bool(card.has_tokenizer and card.model_class)
    assert ("parameters of the whole model" in text) == bool(card.num_parameters)
    assert ("Command:" in text) == bool(card.record.command)
    assert ("dense" in tables.get("metric", [[]])[0]) == bool(
        card.record.metrics and card.record.dense_metrics
    )


def test_the_card_of_a_run_of_which_little_is_known_is_short():
    text = make_card(BARE)
    check_structure(text)
    assert headings_of(text) == [
        *("bare", "How to use", "Results", "Sparsity by layer", "Training", "Limits", "Citation")
    ]
    assert set(metadata_of(text)) == {"library_name", "tags"}
    assert "The model's answers were not evaluated." in text


# Whose card it is


def test_a_card_is_ours_until_the_line_that_says_so_is_deleted():
    text = make_card(FULL)
    assert is_own_card(text)
    assert is_own_card(text.replace("\n", "\r\n"))
    assert is_own_card(str(ModelCard(text)))
    (mark,) = [line for line in text.splitlines() if line.startswith("<!--")]
    assert "Delete this line" in mark
    assert not is_own_card(text.replace(mark + "\n", ""))
    assert not is_own_card("")
    assert not is_own_card("# A model\n\npruned with hf_cyclprune")


def test_a_folder_gives_the_same_card_as_the_run_that_wrote_it(tmp_path):
    FULL.report.save(tmp_path)
    FULL.record.save(tmp_path)
    save_config(FULL.config, tmp_path)
    loaded = dataclasses.replace(
        FULL,
        report=load_report(tmp_path),
        record=load_record(tmp_path),
        config=load_config(tmp_path),
    )
    assert make_card(loaded) == make_card(FULL)
