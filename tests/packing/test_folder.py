import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, safe_open, save_file
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
)

from hf_cyclprune import load_packed, pack, save_packed, unpack, verify
from hf_cyclprune.cli import main
from hf_cyclprune.packing import file as file_module
from hf_cyclprune.packing import folder as folder_module
from tests.packing.models import (
    BIAS,
    DENSE,
    PACKED,
    QUERY,
    assert_same_weights,
    contents,
    new_model,
)
from tests.packing.reader import read_file


def test_a_packed_folder_holds_the_packed_weights_and_a_config_that_lists_them(made):
    assert contents(made / "packed").keys() == {"config.json", PACKED}
    config = json.loads((made / "packed" / "config.json").read_text())
    entry = config.pop("quantization_config")
    assert config == json.loads((made / "dense" / "config.json").read_text())
    assert entry.pop("tensors") == sorted(load_file(made / "dense" / DENSE))
    assert entry == {
        "quant_method": "hf_cyclprune",
        "version": 1,
        "weights": PACKED,
        "dtype": "float32",
    }
    assert (made / "packed" / PACKED).stat().st_size < 0.7 * (made / "dense" / DENSE).stat().st_size
    with safe_open(made / "packed" / PACKED, "pt") as file:
        assert f"{QUERY}.packed" in file.keys()  # noqa: SIM118
        assert BIAS in file.keys()  # noqa: SIM118


def test_the_second_reader_finds_the_dense_weights_in_a_packed_file(made):
    expected = load_file(made / "dense" / DENSE)
    found = read_file(made / "packed" / PACKED)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name] == ("F32", tuple(tensor.shape), tensor.numpy().tobytes())


def test_unpack_gives_the_files_of_the_dense_folder_byte_by_byte(made, tmp_path):
    unpack(made / "packed", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(made / "dense")


def test_shards_come_back_byte_by_byte(made, tmp_path):
    unpack(made / "packed_shards", tmp_path / "out")
    before, after = contents(made / "dense_shards"), contents(tmp_path / "out")
    index = f"{DENSE}.index.json"
    assert json.loads(before.pop(index))["weight_map"] == json.loads(after.pop(index))["weight_map"]
    assert len(before) > 3
    assert before == after


def test_the_index_of_shards_comes_back_byte_by_byte(made, tmp_path):
    unpack(made / "packed_shards", tmp_path / "out")
    index = f"{DENSE}.index.json"
    assert (tmp_path / "out" / index).read_bytes() == (made / "dense_shards" / index).read_bytes()


def test_unpacked_folders_load_without_this_library(made, tmp_path):
    for name in ("packed", "packed_shards"):
        unpack(made / name, tmp_path / name)
        loaded = BertForSequenceClassification.from_pretrained(tmp_path / name)
        assert_same_weights(loaded, new_model())


@pytest.mark.parametrize("name", ["packed", "packed_shards"])
def test_load_packed_gives_the_model_that_was_saved(made, tmp_path, name):
    model = load_packed(made / name)
    assert type(model) is BertForSequenceClassification
    assert not model.training
    assert not hasattr(model.config, "quantization_config")
    assert_same_weights(model, new_model())
    model.save_pretrained(tmp_path / "again")
    plain = BertForSequenceClassification.from_pretrained(made / "dense")
    plain.save_pretrained(tmp_path / "expected")
    assert contents(tmp_path / "again") == contents(tmp_path / "expected")


def test_load_packed_passes_options_on(made):
    model = load_packed(str(made / "packed"), dtype=torch.float16)
    assert_same_weights(model, new_model().half())


def test_save_packed_writes_what_pack_does(made, tmp_path):
    save_packed(new_model(), tmp_path / "deep" / "out")
    assert contents(tmp_path / "deep" / "out") == contents(made / "packed")
    assert os.listdir(tmp_path / "deep") == ["out"]
    save_packed(new_model(), tmp_path / "half", dtype=torch.bfloat16)
    pack(made / "dense", tmp_path / "half2", torch.bfloat16)
    assert contents(tmp_path / "half") == contents(tmp_path / "half2")


def test_packing_twice_gives_the_same_bytes(made, tmp_path):
    pack(str(made / "dense"), str(tmp_path / "out"))
    assert contents(tmp_path / "out") == contents(made / "packed")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_packing_in_another_dtype_gives_the_rounded_weights(made, tmp_path, dtype):
    pack(made / "dense", tmp_path / "packed", dtype)
    assert_same_weights(load_packed(tmp_path / "packed"), new_model().to(dtype))
    unpack(tmp_path / "packed", tmp_path / "dense")
    new_model().to(dtype).save_pretrained(tmp_path / "expected")
    assert contents(tmp_path / "dense") == contents(tmp_path / "expected")


def test_a_dtype_that_cannot_hold_the_weights_is_refused(dense, tmp_path):
    weights = load_file(dense / DENSE)
    weights[BIAS][0] = 1e6
    save_file(weights, dense / DENSE, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"float16, in which '{BIAS}' becomes infinite"):
        pack(dense, tmp_path / "out", torch.float16)
    pack(dense, tmp_path / "out", torch.bfloat16)
    for dtype in (torch.float64, "bfloat16"):
        with pytest.raises(ValueError, match=r"dtype must be one of torch\.float32, torch\.bf"):
            pack(dense, tmp_path / "other", dtype)


def test_integers_and_doubles_travel_with_the_floats(dense, tmp_path):
    tensors = load_file(dense / DENSE)
    tensors |= {"ids": torch.arange(16)[None], "flags": torch.ones(3, 3, dtype=torch.bool)}
    tensors |= {"scalar": torch.tensor(2.5), "none": torch.zeros(0, 3)}
    save_file(tensors, dense / DENSE, {"format": "pt"})
    pack(dense, tmp_path / "packed")
    unpack(tmp_path / "packed", tmp_path / "out")
    assert verify(dense, tmp_path / "out") is None
    assert verify(dense, tmp_path / "packed") is None
    assert contents(tmp_path / "out") == contents(dense)
    pack(dense, tmp_path / "half", torch.bfloat16)
    found = read_file(tmp_path / "half" / PACKED)
    assert {found[name][0] for name in ("ids", "flags", "scalar")} == {"I64", "BOOL", "BF16"}


def test_pickles_and_checkpoints_do_not_travel_but_other_files_do(dense, tmp_path):
    kept = ["tokenizer.json", "vocab.txt", "README.md", "pruning_report.json", ".gitattributes"]
    dropped = ["training_args.bin", "optimizer.pt", "rng_state.pth", "x.pkl", "tf_model.h5"]
    for name in kept + dropped:
        (dense / name).write_bytes(f"content of {name}".encode())
    (dense / "checkpoint-1").mkdir()
    (dense / "checkpoint-1" / "a.txt").touch()
    pack(dense, tmp_path / "packed")
    unpack(tmp_path / "packed", tmp_path / "out")
    for folder, weights in (("packed", PACKED), ("out", DENSE)):
        assert set(os.listdir(tmp_path / folder)) == {*kept, "config.json", weights}
        for name in kept:
            assert (tmp_path / folder / name).read_bytes() == (dense / name).read_bytes()


@pytest.mark.parametrize("name", ["x.pickle", "x.joblib", "X.BIN"])
def test_pickles_under_other_names_do_not_travel(dense, tmp_path, name):
    (dense / name).touch()
    pack(dense, tmp_path / "packed")
    assert name not in os.listdir(tmp_path / "packed")


def test_adapters_travel_but_masks_and_stale_shards_do_not(dense, tmp_path):
    names = (
        "adapter_model.safetensors",
        "pruning_state.safetensors",
        "model-00001-of-2.safetensors",
    )
    for name in names:
        (dense / name).write_bytes(b"content")
    pack(dense, tmp_path / "packed")
    unpack(tmp_path / "packed", tmp_path / "out")
    for folder, weights in (("packed", PACKED), ("out", DENSE)):
        assert set(os.listdir(tmp_path / folder)) == {names[0], "config.json", weights}


def test_other_metadata_of_a_file_come_back(dense, tmp_path):
    tensors = load_file(dense / DENSE)
    save_file(tensors, dense / DENSE, {"format": "pt", "author": "somebody"})
    pack(dense, tmp_path / "packed")
    unpack(tmp_path / "packed", tmp_path / "out")
    with safe_open(tmp_path / "out" / DENSE, "pt") as file:
        assert file.metadata() == {"format": "pt", "author": "somebody"}


def test_links_as_in_the_cache_of_the_hub_are_followed(dense, tmp_path):
    (tmp_path / "links").mkdir()
    for path in dense.iterdir():
        (tmp_path / "links" / path.name).symlink_to(path)
    pack(tmp_path / "links", tmp_path / "packed")
    assert verify(tmp_path / "packed", dense) is None
    assert not any(path.is_symlink() for path in (tmp_path / "packed").iterdir())


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path):
    model = new_model(head="ForMaskedLM")
    model.save_pretrained(tmp_path / "dense")
    pack(tmp_path / "dense", tmp_path / "packed")
    loaded = load_packed(tmp_path / "packed")
    table = loaded.bert.embeddings.word_embeddings.weight
    assert loaded.cls.predictions.decoder.weight is table
    assert_same_weights(loaded, model)


def test_a_file_of_the_old_names_of_layer_norms_loads_as_the_dense_one(dense, tmp_path):
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): t
        for name, t in load_file(dense / DENSE).items()
    }
    save_file(old, dense / DENSE, {"format": "pt"})
    pack(dense, tmp_path / "packed")
    for loaded in (
        load_packed(tmp_path / "packed"),
        BertForSequenceClassification.from_pretrained(tmp_path / "packed"),
    ):
        assert_same_weights(loaded, new_model())


@pytest.mark.parametrize("work", [pack, unpack])
def test_a_target_with_files_is_refused_and_left_alone(made, tmp_path, work):
    source = made / ("dense" if work is pack else "packed")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"'.*out' is not a new or empty folder"):
        work(source, tmp_path / "out")
    with pytest.raises(ValueError, match="is not a new or empty folder"):
        work(source, tmp_path / "out" / "notes.txt")
    assert contents(tmp_path / "out") == {"notes.txt": b"mine"}
    assert os.listdir(tmp_path) == ["out"]


def test_save_packed_refuses_a_folder_with_files(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not a new or empty folder"):
        save_packed(new_model(), tmp_path / "out")
    assert contents(tmp_path / "out") == {"notes.txt": b"mine"}
    assert os.listdir(tmp_path) == ["out"]


def test_an_empty_folder_is_used(made, tmp_path):
    (tmp_path / "out").mkdir()
    pack(made / "dense", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(made / "packed")
    assert os.listdir(tmp_path) == ["out"]


def test_what_is_packed_or_quantized_already_is_refused(made, dense, tmp_path):
    config = json.loads((dense / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq"}
    (dense / "config.json").write_text(json.dumps(config))
    for source in (made / "packed", dense):
        with pytest.raises(ValueError, match=r"is packed or quantized. Unpack it first"):
            pack(source, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_unpacking_what_is_not_packed_is_refused(made, dense, tmp_path):
    with pytest.raises(ValueError, match=r"is not packed\. Pack it first"):
        unpack(made / "dense", tmp_path / "out")
    with pytest.raises(ValueError, match=r"is not packed\. Pack it first"):
        load_packed(dense)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["config.json", DENSE, "folder"])
def test_a_folder_without_a_model_is_refused(dense, tmp_path, damage):
    if damage == "folder":
        dense = tmp_path / "nothing"
    else:
        (dense / damage).unlink()
    for work in (lambda: pack(dense, tmp_path / "out"), lambda: verify(dense, dense)):
        with pytest.raises(ValueError, match=rf"There is no .* in '{dense}'"):
            work()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["", "[]", "{", "3", "null"])
def test_a_config_of_something_else_is_refused(dense, tmp_path, content):
    (dense / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json in .* cannot be read"):
        pack(dense, tmp_path / "out")


def assert_refused_or_kept(dense, out, name):
    try:
        pack(dense, out)
    except ValueError as error:
        message = str(error)
    else:
        assert verify(dense, out) is None
        return
    assert name in message


@pytest.mark.parametrize("dtype", [torch.uint16, torch.float8_e4m3fn, torch.complex64])
def test_tensors_of_other_types_are_refused_or_kept(dense, tmp_path, dtype):
    save_file(load_file(dense / DENSE) | {"odd": torch.zeros(3, 4).to(dtype)}, dense / DENSE)
    assert_refused_or_kept(dense, tmp_path / "out", "'odd'")


def test_a_tensor_that_is_named_like_a_packed_one_is_refused_or_kept(dense, tmp_path):
    save_file(load_file(dense / DENSE) | {"odd.packed": torch.zeros(4)}, dense / DENSE)
    assert_refused_or_kept(dense, tmp_path / "out", "'odd.packed'")


@pytest.mark.parametrize("function", ["encode", "write_file", "write_json", "copy_files"])
@pytest.mark.parametrize("has_folder", [False, True])
@pytest.mark.parametrize("name", ["dense", "dense_shards"])
def test_a_failure_in_the_middle_leaves_no_folder_and_no_temporary_one(
    made, tmp_path, monkeypatch, function, has_folder, name
):
    modules = [module for module in (file_module, folder_module) if hasattr(module, function)]
    real, calls = getattr(modules[0], function), []

    def fail(*args, **options):
        calls.append(args)
        if len(calls) > (1 if function == "write_file" and name == "dense_shards" else 0):
            raise OSError("disk full")
        return real(*args, **options)

    if has_folder:
        (tmp_path / "out").mkdir()
    for module in modules:
        monkeypatch.setattr(module, function, fail)
    works = [lambda: pack(made / name, tmp_path / "out")]
    if name == "dense":
        works.append(lambda: save_packed(new_model(), tmp_path / "out"))
    if function != "encode":
        works.append(lambda: unpack(made / name.replace("dense", "packed"), tmp_path / "out"))
    for work in works:
        calls.clear()
        with pytest.raises(OSError, match="disk full"):
            work()
        assert os.listdir(tmp_path) == (["out"] if has_folder else [])
        assert not has_folder or not any((tmp_path / "out").iterdir())


def test_a_headless_model_comes_out_of_a_packed_classifier(made):
    for folder in (made / "packed", made / "packed_shards"):
        assert_same_weights(AutoModel.from_pretrained(folder), new_model().bert)


def test_a_classifier_begins_with_the_weights_of_a_packed_headless_model(tmp_path):
    save_packed(new_model(head="Model"), tmp_path / "packed")
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "packed")
    assert_same_weights(model.bert, new_model(head="Model"))
    assert model.classifier.weight.std() > 0


def test_the_verbs_pack_verify_and_unpack(made, tmp_path, capsys):
    dense, packed, out = (str(path) for path in (made / "dense", tmp_path / "p", tmp_path / "out"))
    assert main(["pack", dense, packed]) == 0
    before = (made / "dense" / DENSE).stat().st_size
    after = (tmp_path / "p" / PACKED).stat().st_size
    line = f"{before:,} bytes of weights -> {after:,} ({after / before:.1%})\n"
    assert capsys.readouterr().out == line
    assert main(["verify", dense, packed]) == 0
    assert capsys.readouterr().out == "The weights are the same, bit by bit.\n"
    assert main(["unpack", packed, out]) == 0
    assert contents(out) == contents(dense)


def test_the_verb_pack_says_that_another_dtype_changes_the_weights(made, tmp_path, capsys):
    assert main(["pack", str(made / "dense"), str(tmp_path / "p"), "--dtype", "bfloat16"]) == 0
    assert "The weights were rounded to bfloat16" in capsys.readouterr().out
    assert main(["verify", str(made / "dense"), str(tmp_path / "p")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("hf-cyclprune: error: The weights are not the same: '")
    assert error.count("\n") == 1
    assert load_packed(tmp_path / "p").dtype == torch.bfloat16


def save_dense(folder, weight=None):
    """Save a model whose weights have no zeros, or are all like `weight`, drawn with 32 bits."""
    model = new_model()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        bits = torch.randint(-(2**31), 2**31, parameter.shape, generator=generator)
        drawn = bits.to(torch.int32).view(torch.float32)
        parameter.data = torch.where(drawn == 0, 1.0, drawn) if weight is None else weight(drawn)
    model.save_pretrained(folder)


@pytest.mark.parametrize("work", [pack, save_packed])
def test_a_model_without_a_weight_that_packing_shortens_is_refused(tmp_path, work):
    save_dense(tmp_path / "dense")
    source = (
        tmp_path / "dense"
        if work is pack
        else BertForSequenceClassification.from_pretrained(tmp_path / "dense")
    )
    with pytest.raises(ValueError, match=r"cannot be packed: nothing in it is sparse.* Prune it"):
        work(source, tmp_path / "out")
    assert os.listdir(tmp_path) == ["dense"]


def test_the_verb_pack_says_that_nothing_in_a_model_is_sparse(tmp_path, capsys):
    dense, out = str(tmp_path / "dense"), str(tmp_path / "out")
    save_dense(dense, weight=lambda drawn: torch.full_like(drawn, 0.1))
    assert main(["pack", dense, out]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert "bytes of weights" in first
    assert second.startswith("Nothing in this model is sparse: no weight has more than 5% zeros.")


def test_the_verb_pack_says_no_such_thing_of_a_model_with_one_sparse_weight(tmp_path, capsys):
    model = new_model()
    for parameter in model.parameters():
        parameter.data.fill_(0.1)
    model.get_parameter(QUERY).data[:2] = 0
    model.save_pretrained(tmp_path / "dense")
    assert main(["pack", str(tmp_path / "dense"), str(tmp_path / "out")]) == 0
    assert "Nothing" not in capsys.readouterr().out


def test_a_folder_that_cannot_be_written_to_is_refused(made, tmp_path, capsys):
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "out"
    for argv in (["pack", str(made / "dense")], ["unpack", str(made / "packed")]):
        assert main([*argv, str(out)]) == 1
        line = f"OUT must be a folder that can be written to; got '{out}': Not a directory. Name"
        assert line in capsys.readouterr().err


def test_errors_of_the_verbs_are_one_line(made, packed, tmp_path, capsys):
    content = bytearray((packed / PACKED).read_bytes())
    content[-1] ^= 16  # blobs come last
    (packed / PACKED).write_bytes(content)
    dense, packed, out = (str(path) for path in (made / "dense", packed, tmp_path / "out"))
    for argv in (
        ["pack", packed, out],
        ["pack", dense, dense],
        ["pack", str(tmp_path / "none"), out],
        ["unpack", dense, out],
        ["unpack", packed, out],
        ["unpack", packed, dense],
        ["verify", dense, packed],
        ["verify", dense, str(tmp_path)],
    ):
        assert main(argv) == 1
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith("hf-cyclprune: error: ")
        assert printed.err.count("\n") == 1
        assert not Path(out).exists()


def test_an_unknown_dtype_is_refused_by_the_parser(made, tmp_path):
    with pytest.raises(SystemExit) as caught:
        main(["pack", str(made / "dense"), str(tmp_path / "out"), "--dtype", "int8"])
    assert caught.value.code == 2


def test_the_report_of_a_packed_folder_is_that_of_the_dense_one(made, capsys):
    reports = []
    for name in ("dense", "packed", "packed_shards"):
        assert main(["report", str(made / name), "--json"]) == 0
        reports.append(json.loads(capsys.readouterr().out))
    assert reports[0] == reports[1] == reports[2]
