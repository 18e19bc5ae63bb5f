"""The contract of the rows in METHODS."""

import re

import pytest
import torch
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    TrainingArguments,
)

from hf_cyclprune import (
    CRITERIA,
    METHODS,
    PruningConfig,
    PruningTrainer,
    criterion,
    find_targets,
    prune_,
)
from hf_cyclprune.card.rendering import make_card
from hf_cyclprune.demo.model import find_model
from hf_cyclprune.demo.sentences import make_task
from hf_cyclprune.methods import Method, Plan
from hf_cyclprune.pruning.pruned_weights import PRUNED_WEIGHTS, pruned_weights

PAPERS_BY_HAND = {
    "cyclical": ("Srinivas et al. 2022", "2202.01290"),
    "gradual": ("Zhu & Gupta 2017", "1710.01878"),
    "gradual_restarts": ("Kurtic et al. 2022", "2203.07259"),
    "rising": ("Srinivas et al. 2022", "2202.01290"),
    "one_shot": ("Han et al. 2015", "1506.02626"),
    "iterative": ("Han et al. 2015", "1506.02626"),
    "frozen_restarts": ("Srinivas et al. 2022", "2202.01290"),
    "ac_dc": ("Peste et al. 2021", "2106.12379"),
    "one_cycle": ("Hubens et al. 2022", "2107.02086"),
    "pgd": ("Blumensath & Davies 2009", "0805.0510"),
    "sculpt": ("Gadhikar et al. 2024", "2406.02773"),
    "dpf": ("Lin et al. 2020", "2006.07253"),
    "ste": ("Bengio et al. 2013", "1308.3432"),
    "sr_ste": ("Zhou et al. 2021", "2102.04010"),
    "set": ("Mocanu et al. 2018", "1707.04780"),
    "rigl": ("Evci et al. 2020", "1911.11134"),
    "granet": ("Liu et al. 2021", "2106.10404"),
    "greg": ("Wang et al. 2021", "2012.09243"),
    "movement": ("Sanh et al. 2020", "2005.07683"),
    "soft_movement": ("Sanh et al. 2020", "2005.07683"),
    "snip": ("Lee et al. 2019", "1810.02340"),
    "platon": ("Zhang et al. 2022", "2206.12562"),
    "fisher": ("Theis et al. 2018", "1801.05787"),
    "wanda": ("Sun et al. 2023", "2306.11695"),
    "lookahead": ("Park et al. 2020", "2002.04809"),
    "cyclical_stored": ("Srinivas et al. 2022", "2202.01290"),
    "swap": ("Srinivas et al. 2022", "2202.01290"),
    "hold": None,
}


def test_the_methods_of_the_literature_are_there_with_their_papers():
    found = {
        name: None if row.paper is None else (row.paper.short, row.paper.url.rpartition("/")[2])
        for name, row in METHODS.items()
    }
    assert found == PAPERS_BY_HAND


@pytest.mark.parametrize("name", METHODS)
def test_a_row_sets_fields_of_the_config_and_training_arguments_that_exist(name):
    row = METHODS[name]
    assert set(row.settings) <= set(Plan.__dataclass_fields__)
    assert set(row.training) <= set(TrainingArguments.__dataclass_fields__)
    assert all(value != getattr(Plan(), field) for field, value in row.settings.items())


@pytest.mark.parametrize("name", METHODS)
def test_a_row_explains_itself(name):
    row = METHODS[name]
    plan = PruningConfig(method=name, sparsity=None if name == "hold" else 0.9).plan
    assert row.sentence.format(**vars(plan)).endswith(".")
    assert row.formula
    assert (row.paper is None) == (row.tag is None) == (name == "hold")


def test_titles_are_unique():
    assert len({row.title for row in METHODS.values()}) == len(METHODS)


def test_every_paper_has_an_entry_under_its_key_and_an_address():
    for row in METHODS.values():
        if row.paper is not None:
            assert re.match(rf"@\w+{{{row.paper.key},\n", row.paper.bibtex)
            assert re.fullmatch(r"https://arxiv\.org/abs/\d{4}\.\d{4,5}", row.paper.url)
            assert re.search(r" (20\d\d)$", row.paper.short)[1] in row.paper.bibtex


@pytest.fixture(scope="module")
def task():
    """Sentences of the standard library, tokenized, and what makes batches of them."""
    tokenizer = AutoTokenizer.from_pretrained(find_model())
    train, _ = make_task(400, 1)
    encoded = [
        {**tokenizer(row["text"], truncation=True, max_length=24), "labels": row["label"]}
        for row in train
    ]
    return encoded, DataCollatorWithPadding(tokenizer), len(tokenizer)


def new_model(vocab_size):
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=vocab_size,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=32,
        )
    )


@pytest.mark.parametrize("wanted", [{"sparsity": 0.8}, {"pattern": "2:4"}], ids=str)
@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_on_a_real_task_and_ends_at_its_exact_sparsity(
    name, wanted, task, arguments
):
    examples, collator, vocab_size = task
    model = new_model(vocab_size)
    keeps_zeros = METHODS[name].settings.get("recompute") == "never"
    if keeps_zeros:
        prune_(model, PruningConfig(**wanted))
    start = {name: weight.detach().clone() for name, weight in find_targets(model).items()}
    options = {"max_steps": 32, "learning_rate": 5e-3, "warmup_steps": 2, "logging_steps": 8}
    options |= METHODS[name].training
    trainer = PruningTrainer(
        model,
        TrainingArguments(**arguments(**options)),
        train_dataset=examples,
        data_collator=collator,
        pruning_config=PruningConfig(method=name, **({} if keeps_zeros else wanted)),
    )
    trainer.train()
    share, weights = wanted.get("sparsity", 0.5), find_targets(model).values()
    is_by_layer = "pattern" in wanted or METHODS[name].settings.get("scope") is None
    found, sizes = [int((w == 0).sum()) for w in weights], [w.numel() for w in weights]
    if not is_by_layer:  # exact in all matrices together
        found, sizes = [sum(found)], [sum(sizes)]
    assert found == [round(share * size) for size in sizes]
    if "pattern" in wanted:
        assert all(((weight.view(-1, 4) != 0).sum(1) <= 2).all() for weight in weights)
    assert trainer.pruner.is_at_target
    assert all(not torch.equal(weight, start[name]) for name, weight in find_targets(model).items())


def test_a_row_of_a_user_is_a_method(monkeypatch, tiny_bert):
    row = Method(
        title="half at once",
        formula="s_t / 2, then a climb",
        sentence="Sparsity begins at {initial_sparsity}.",
        settings={"num_cycles": 1, "initial_sparsity": 0.4},
    )
    monkeypatch.setitem(METHODS, "half", row)
    schedule = PruningConfig(method="half", sparsity=0.8).build_schedule(10)
    assert schedule.sparsity_at(1) == pytest.approx(0.4)
    assert schedule.sparsity_at(10) == 0.8


def test_a_method_a_criterion_and_a_policy_from_outside_work_together(monkeypatch, train):
    @criterion("closest_to_one", is_signed=False)
    def closest_to_one(weight):
        return 1 / (1 + (weight.abs() - 1).abs())

    @pruned_weights("half")
    class Half(PRUNED_WEIGHTS["stored"]):
        """Returns with half of the value that it had when it was pruned."""

        def take(self, name, position):
            super().take(name, position)
            self.values[name].mul_(0.5)

    row = Method(
        title="pruning to one half",
        formula="s_t / 2, then s_t",
        sentence="Weights far from one are pruned, and return with half of their value.",
        settings={"criterion": "closest_to_one", "pruned_weights": "half", "num_cycles": 2},
    )
    monkeypatch.setitem(METHODS, "to_half", row)
    config = PruningConfig(method="to_half", sparsity=0.8)
    trainer = train(PruningTrainer, pruning_config=config)
    assert trainer.sparsity_report().is_at_target
    assert int(trainer.pruner.num_returned) > 0
    assert "with pruning to one half" in make_card(trainer.model_card())


@pytest.fixture(autouse=True)
def _registries():
    """What a test registers is gone after it."""
    before = [(registry, dict(registry)) for registry in (CRITERIA, PRUNED_WEIGHTS)]
    yield
    for registry, rows in before:
        registry.clear()
        registry.update(rows)


def steps_of_returns(**options):
    """The pruner of the default with random gradients, and after which steps weights returned."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(64, 32))
    optimizer = torch.optim.AdamW([weight], lr=0.01)
    config = PruningConfig(sparsity=0.9, interval_steps=2, **options)
    pruner = config.build_pruner({"w": weight}, 40, optimizer)
    num_returned, steps = 0, []
    for t in range(1, 41):
        pruner.begin_step(t)
        weight.grad = torch.randn_like(weight)
        pruner.before_update(t)
        optimizer.step()
        pruner.step(t)
        if int(pruner.num_returned) > num_returned:
            num_returned = int(pruner.num_returned)
            steps.append(t)
    return pruner, steps


@pytest.mark.parametrize("regrowth", [None, "gradient"])
@pytest.mark.parametrize("regrowth_at", [None, "steps", "until_last_edge"])
def test_when_the_default_lets_weights_return(regrowth_at, regrowth):
    options = {"regrowth_at": regrowth_at, "regrowth": regrowth, "regrowth_until": 1.0}
    pruner, steps = steps_of_returns(**options)
    assert pruner.schedule.edges == (0, 20, 40)
    assert 21 in steps
    assert (steps[0] == 21) == (regrowth_at is None)
    assert (steps[-1] == 21) == (regrowth_at != "steps")


def test_by_default_no_weight_returns_where_sparsity_does_not_fall():
    assert steps_of_returns(reset_ratio=1.0)[1] == []
