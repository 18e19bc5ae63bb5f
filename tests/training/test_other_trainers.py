"""Other Trainers prune with the callback, or as `class Mine(PruningTrainer, Theirs)`."""

from dataclasses import dataclass

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BertConfig,
    BertModel,
    DataCollatorForSeq2Seq,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
)

from hf_cyclprune import (
    PruningArguments,
    PruningCallback,
    PruningConfig,
    PruningTrainer,
    find_targets,
)

WHY_SKIPPED = "this Trainer comes from a package that is not needed otherwise"
SPECIAL = ["<pad>", "<eos>", "<unk>"]
WORDS = ["a", "b", "c", "d"]
SHAPE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def config(pattern, **options):
    sparsity = 0.8 if pattern == "unstructured" else None
    return PruningConfig(pattern=pattern, sparsity=sparsity, num_cycles=2, **options)


def tokenizer():
    vocab = {word: number for number, word in enumerate(SPECIAL + WORDS)}
    inner = Tokenizer(WordLevel(vocab, unk_token="<unk>"))
    inner.pre_tokenizer = WhitespaceSplit()
    names = dict(zip(["pad_token", "eos_token", "unk_token"], SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=inner, **names)


def llama():
    torch.manual_seed(0)
    ids = {"pad_token_id": 0, "eos_token_id": 1}
    return LlamaForCausalLM(LlamaConfig(vocab_size=16, intermediate_size=32, **ids, **SHAPE))


def dataset(**columns):
    datasets = pytest.importorskip("datasets", reason=WHY_SKIPPED)
    return datasets.Dataset.from_dict(columns)


@dataclass
class Case:
    """A Trainer of another package, what it is made of, and how its model is read again."""

    cls: type
    args_cls: type
    load: object
    options: dict


def seq2seq(folder):
    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    model = T5ForConditionalGeneration(T5Config(vocab_size=16, decoder_start_token_id=0, **sizes))
    data = [{"input_ids": [3, 4, 5], "labels": [5, 4, 1]}] * 8
    collator = DataCollatorForSeq2Seq(tokenizer(), model)
    options = {"model": model, "train_dataset": data, "data_collator": collator}
    return Case(
        Seq2SeqTrainer, Seq2SeqTrainingArguments, AutoModelForSeq2SeqLM.from_pretrained, options
    )


def sft(folder):
    trl = pytest.importorskip("trl", reason=WHY_SKIPPED)
    data = dataset(text=["a b c d", "b a"] * 4)
    options = {"model": llama(), "train_dataset": data, "processing_class": tokenizer()}
    return Case(trl.SFTTrainer, trl.SFTConfig, AutoModelForCausalLM.from_pretrained, options)


def dpo(folder):
    trl = pytest.importorskip("trl", reason=WHY_SKIPPED)
    data = dataset(prompt=["a b"] * 8, chosen=[" c"] * 8, rejected=[" d"] * 8)
    options = {"model": llama(), "train_dataset": data, "processing_class": tokenizer()}
    options["ref_model"] = llama()
    return Case(trl.DPOTrainer, trl.DPOConfig, AutoModelForCausalLM.from_pretrained, options)


def sentence_model(folder):
    package = pytest.importorskip("sentence_transformers", reason=WHY_SKIPPED)
    modules = pytest.importorskip("sentence_transformers.models", reason=WHY_SKIPPED)
    torch.manual_seed(0)
    tokenizer().save_pretrained(folder / "bert")
    BertModel(BertConfig(vocab_size=16, intermediate_size=32, **SHAPE)).save_pretrained(
        folder / "bert"
    )
    parts = [modules.Transformer(str(folder / "bert")), modules.Pooling(16)]
    return package.SentenceTransformer(modules=parts, device="cpu")


def sentences(folder):
    package = pytest.importorskip("sentence_transformers", reason=WHY_SKIPPED)
    losses = pytest.importorskip("sentence_transformers.losses", reason=WHY_SKIPPED)
    model = sentence_model(folder)
    options = {
        "model": model,
        "train_dataset": dataset(one=["a b", "c d"] * 4, two=["b a", "d c"] * 4),
        "loss": losses.MultipleNegativesRankingLoss(model),
    }
    return Case(
        package.SentenceTransformerTrainer,
        package.SentenceTransformerTrainingArguments,
        package.SentenceTransformer,
        options,
    )


KINDS = [seq2seq, sft, dpo, sentences]


def settings(folder, **options):
    return {
        "output_dir": str(folder / "out"),
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        **options,
    }


def check(model, pattern, folder, load):
    """Count the zeros in memory, and compare the weights with those that are read again."""
    weights = list(find_targets(model).values())
    if pattern == "2:4":
        assert all(((weight == 0).view(-1, 4).sum(-1) == 2).all() for weight in weights)
    else:
        num_zeros = sum(int((weight == 0).sum()) for weight in weights)
        assert num_zeros == round(0.8 * sum(weight.numel() for weight in weights))
    read = load(str(folder)).state_dict()
    assert all(torch.equal(read[name], weight) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_class_of_both_trainers_prunes_exactly_and_saves_what_it_pruned(kind, pattern, tmp_path):
    case = kind(tmp_path)

    class Both(PruningTrainer, case.cls):
        pass

    args = case.args_cls(**settings(tmp_path))
    trainer = Both(args=args, pruning_config=config(pattern), **case.options)
    trainer.train()
    trainer.save_model()
    check(trainer.model, pattern, tmp_path / "out", case.load)
    assert trainer.sparsity_report().is_at_target
    assert (tmp_path / "out" / "sparsity_report.json").is_file()


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_callback_prunes_exactly_in_the_trainer_of_another_package(kind, pattern, tmp_path):
    case, callback = kind(tmp_path), PruningCallback(config(pattern, lr_restarts=False))
    args = case.args_cls(**settings(tmp_path))
    trainer = case.cls(args=args, callbacks=[callback], **case.options)
    trainer.train()
    trainer.save_model()
    check(trainer.model, pattern, tmp_path / "out", case.load)
    assert callback.report(trainer.model).is_at_target


@pytest.mark.parametrize("kind", KINDS)
def test_a_class_of_both_arguments_has_the_options_and_the_defaults_of_the_other(kind, tmp_path):
    case = kind(tmp_path)

    @dataclass
    class Arguments(case.args_cls, PruningArguments):
        pass

    class Both(PruningTrainer, case.cls):
        pass

    args = Arguments(**settings(tmp_path, sparsity=0.8, num_cycles=2))
    trainer = Both(args=args, **case.options)
    trainer.train()
    assert trainer.sparsity_report().is_at_target
    assert args.learning_rate == case.args_cls("out", use_cpu=True, bf16=False).learning_rate


@pytest.mark.parametrize("kind", KINDS)
def test_a_class_of_both_trainers_resumes_bit_for_bit(kind, tmp_path):
    def run(resume=None):
        case = kind(tmp_path)
        both = type("Both", (PruningTrainer, case.cls), {})
        args = case.args_cls(**settings(tmp_path, save_strategy="steps", save_steps=2))
        trainer = both(args=args, pruning_config=config("unstructured"), **case.options)
        trainer.train(resume_from_checkpoint=resume)
        return trainer.model.state_dict()

    whole = {name: weight.clone() for name, weight in run().items()}
    resumed = run(str(tmp_path / "out" / "checkpoint-2"))
    assert all(torch.equal(resumed[name], weight) for name, weight in whole.items())


def test_an_adapter_that_a_trainer_makes_is_refused(tmp_path):
    trl = pytest.importorskip("trl", reason=WHY_SKIPPED)
    peft = pytest.importorskip("peft", reason=WHY_SKIPPED)
    callback = PruningCallback(config("unstructured", lr_restarts=False))
    trainer = trl.SFTTrainer(
        args=trl.SFTConfig(**settings(tmp_path)),
        callbacks=[callback],
        peft_config=peft.LoraConfig(r=4, target_modules=["q_proj"]),
        **sft(tmp_path).options,
    )
    with pytest.raises(ValueError, match=r"adapters of peft.*merge_and_unload"):
        trainer.train()


def test_setfit_prunes_the_body_of_its_model(tmp_path):
    setfit = pytest.importorskip("setfit", reason=WHY_SKIPPED)
    linear_model = pytest.importorskip("sklearn.linear_model", reason=WHY_SKIPPED)
    head = linear_model.LogisticRegression()
    model = setfit.SetFitModel(model_body=sentence_model(tmp_path), model_head=head)
    callback = PruningCallback(config("unstructured", lr_restarts=False))
    args = setfit.TrainingArguments(
        output_dir=str(tmp_path / "out"),
        batch_size=4,
        max_steps=4,
        report_to="none",
        save_strategy="no",
    )
    data = dataset(text=["a b", "b a", "c d", "d c"], label=[0, 0, 1, 1])
    setfit.Trainer(model=model, args=args, train_dataset=data, callbacks=[callback]).train()
    model.save_pretrained(str(tmp_path / "saved"))
    load = setfit.SetFitModel.from_pretrained
    check(model.model_body, "", tmp_path / "saved", lambda path: load(path).model_body)
    assert callback.report(model).is_at_target
