"""Model folders: what loads, what is refused, and in which words."""

from __future__ import annotations

import json
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rl4dlm import models
from rl4dlm.errors import ModelError
from rl4dlm.models.tokenizers import MASK_TOKEN
from rl4dlm.recipe.sections import ModelInit

INIT = ModelInit(d_model=32, n_layers=2, n_heads=4, mlp_hidden_size=48, max_sequence_length=64)
CHARACTERS = "0123456789=\n"


@pytest.fixture(scope="module")
def loaded():
    return models.create(INIT, models.build_char_tokenizer(CHARACTERS), 0)


@pytest.fixture(scope="module")
def good(loaded, tmp_path_factory) -> Path:
    """A finished folder with two shards; tests work on copies."""
    return models.save(
        loaded, tmp_path_factory.mktemp("good") / "model", loaded.tokenizer, max_shard_bytes=40_000
    )


@pytest.fixture
def folder(good, tmp_path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "model"))


def edit_json(file: Path, **changes) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def edit_tensors(folder: Path, edit) -> str:
    """Apply `edit` to the tensors of the first shard and make one file of all; returns its name."""
    tensors = {}
    for shard in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(shard)
        shard.unlink()
    (folder / "model.safetensors.index.json").unlink()
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")
    return "model.safetensors"


def refusal(folder: Path) -> str:
    """The message of `load`, which `inspect` must share."""
    with pytest.raises(ModelError) as load_error:
        models.load(folder)
    with pytest.raises(ModelError) as inspect_error:
        models.inspect(folder)
    assert str(inspect_error.value) == str(load_error.value)
    assert "Fix:" in str(load_error.value)
    return str(load_error.value)


def test_a_loaded_model_carries_the_facts_of_config_and_tokenizer(folder):
    loaded = models.load(folder)
    spec = loaded.spec
    # 12 characters take ids 0-11; start of text, end of text and the mask follow
    assert (spec.mask_id, spec.eos_id, spec.pad_id, spec.stop_ids) == (14, 13, 13, (13,))
    assert (spec.vocab_size, spec.forbidden_ids, spec.max_length) == (15, (14,), 64)
    assert (spec.attention, spec.block_length) == ("full", None)
    assert (loaded.family, loaded.source) == ("llada", folder)
    assert not loaded.module.training


def test_inspect_gives_the_facts_without_reading_weights(folder):
    facts = models.inspect(folder)
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    # 15 rows x 32 twice, per layer 4 x 32^2 + 3 x 32 x 48 + 2 x 32, and the last norm of 32
    assert facts.num_parameters == 2 * 15 * 32 + 2 * (4 * 1024 + 3 * 1536 + 64) + 32
    assert facts.bytes_on_disk == 4 * facts.num_parameters < size
    assert (facts.family, facts.dtype, facts.vocab_size, facts.max_length) == ("llada", "float32", 15, 64)
    assert (facts.hidden_size, facts.num_layers, facts.mlp_size) == (32, 2, 48)
    assert (facts.num_heads, facts.num_kv_heads, facts.head_dim) == (4, 4, 8)


def test_describe_gives_the_same_facts_about_a_model_in_memory(loaded, folder):
    assert models.describe(loaded) == models.ModelFacts(
        **{**vars(models.inspect(folder)), "bytes_on_disk": 0}
    )


def test_inspect_is_quick_however_large_the_weights_are(tmp_path, published):
    data = published(d_model=2048, vocab_size=32768, embedding_size=32768, mlp_hidden_size=8192, n_layers=16)
    family = models.FAMILIES["llada"]
    from rl4dlm.models.families import parameter_shapes

    header, end = {}, 0
    for name, shape in parameter_shapes(family, family.read_config(data, "t")).items():
        size = 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    (tmp_path / "config.json").write_text(json.dumps(data))
    with (tmp_path / "model.safetensors").open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        stream.truncate(8 + len(text) + end)  # sparse: 2 GB without a byte on disk
    started = time.perf_counter()
    facts = models.inspect(tmp_path)
    assert facts.bytes_on_disk == end > 2_000_000_000 and facts.dtype == "bfloat16"
    assert time.perf_counter() - started < 2.0


def test_load_casts_to_the_dtype_asked_for(folder, loaded):
    module = models.load(folder, dtype=torch.bfloat16).module
    for parameter, original in zip(module.parameters(), loaded.module.parameters(), strict=True):
        assert torch.equal(parameter, original.bfloat16())


def test_a_loaded_model_does_not_change_when_its_files_are_overwritten(folder, loaded):
    module = models.load(folder).module
    for shard in folder.glob("*.safetensors"):
        with shard.open("r+b") as stream:  # in place: a mapped file would show through
            stream.write(b"A" * shard.stat().st_size)
    for parameter, original in zip(module.parameters(), loaded.module.parameters(), strict=True):
        assert torch.equal(parameter, original)


def test_the_tokenizer_and_spec_load_without_the_weights(folder):
    expected = models.load(folder).spec
    for shard in folder.glob("*.safetensors"):
        shard.unlink()
    tokenizer, spec = models.load_tokenizer(folder)
    assert spec == expected
    assert models.encode(tokenizer, "12=") == (1, 2, 10)


def test_a_folder_that_does_not_exist_is_refused(tmp_path):
    assert "no such folder" in refusal(tmp_path / "nothing")
    file = tmp_path / "file"
    file.write_text("")
    assert "is a file" in refusal(file)


def test_a_missing_or_broken_configuration_is_refused(folder):
    config = folder / "config.json"
    config.write_text('{"model_type": "llada", ')
    assert f"{config} cannot be read (not JSON" in refusal(folder)
    config.write_text("[]")
    assert f"{config} holds a list" in refusal(folder)
    config.unlink()
    assert f"{config} is missing" in refusal(folder)


def test_a_missing_configuration_key_is_named(folder):
    data = json.loads((folder / "config.json").read_text())
    del data["rope_theta"]
    (folder / "config.json").write_text(json.dumps(data))
    assert "config.json: required key 'rope_theta' is missing" in refusal(folder)


def test_another_architecture_is_refused(folder):
    edit_json(folder / "config.json", model_type="gpt2")
    assert "model_type = 'gpt2' is not a family" in refusal(folder)


def test_a_folder_without_weights_is_refused(folder):
    for file in [*folder.glob("*.safetensors"), folder / "model.safetensors.index.json"]:
        file.unlink()
    assert "has neither model.safetensors nor" in refusal(folder)


def test_pickle_weights_are_refused_with_the_remedy(folder):
    for file in [*folder.glob("*.safetensors"), folder / "model.safetensors.index.json"]:
        file.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"x")
    message = refusal(folder)
    assert "pickle format (pytorch_model.bin)" in message and "safetensors.torch.save_file" in message


def test_a_missing_shard_is_named(folder):
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.unlink()
    assert f"{shard} is missing" in refusal(folder)


def test_a_missing_tensor_is_named(folder):
    edit_tensors(folder, lambda tensors: tensors.pop("model.transformer.blocks.1.up_proj.weight"))
    message = refusal(folder)
    assert "tensor model.transformer.blocks.1.up_proj.weight is missing (1 missing)" in message
    assert str(folder) in message


def test_an_unexpected_tensor_is_named_with_its_file(folder):
    file = edit_tensors(folder, lambda tensors: tensors.update({"model.extra.weight": torch.zeros(2)}))
    assert f"{folder / file}: tensor model.extra.weight is unexpected" in refusal(folder)


def test_a_misshapen_tensor_is_named_with_both_shapes(folder):
    name = "model.transformer.ln_f.weight"
    file = edit_tensors(folder, lambda tensors: tensors.update({name: torch.zeros(31)}))
    message = refusal(folder)
    assert f"{folder / file}: tensor {name} has shape [31], config.json asks for [32]" in message


def test_a_quantised_tensor_is_refused(folder):
    name = "model.transformer.ln_f.weight"
    edit_tensors(folder, lambda tensors: tensors.update({name: torch.zeros(32, dtype=torch.int8)}))
    assert f"tensor {name} has dtype I8" in refusal(folder)


@pytest.mark.parametrize("keep", [0, 5, 60, 4000, -1])
def test_a_truncated_shard_is_named(folder, keep):
    shard = sorted(folder.glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:keep])
    assert f"{shard} is truncated or damaged" in refusal(folder)


@pytest.mark.parametrize(
    "junk", [b"\x00" * 64, b"\xff" * 64, struct.pack("<Q", 2) + b"[]", b"\x05" + b"\0" * 7]
)
def test_a_file_of_something_else_is_refused(folder, junk):
    shard = sorted(folder.glob("*.safetensors"))[0]
    shard.write_bytes(junk)
    assert f"{shard} is truncated or damaged" in refusal(folder)


def test_an_index_that_does_not_say_what_the_shards_hold_is_refused(folder):
    index = folder / "model.safetensors.index.json"
    good = json.loads(index.read_text())
    name, *_, other = sorted(set(good["weight_map"].values()))
    tensor = next(t for t, file in good["weight_map"].items() if file == name)
    edit_json(index, weight_map={**good["weight_map"], tensor: other})
    assert f"{folder / other}: tensor {tensor} is missing" in refusal(folder)
    index.write_text("{}")
    assert "has no weight_map" in refusal(folder)


def test_a_mask_that_config_and_tokenizer_place_differently_is_refused(folder):
    edit_json(folder / "config.json", mask_token_id=3)
    with pytest.raises(
        ModelError, match=rf"mask_token_id = 3 in config.json.*{MASK_TOKEN[2:10]}.* the id 14"
    ):
        models.load(folder)
    with pytest.raises(ModelError, match="mask_token_id = 3"):
        models.load_tokenizer(folder)


def test_a_declared_mask_token_of_another_spelling_must_agree_too(folder):
    edit_json(folder / "tokenizer_config.json", mask_token="3")
    with pytest.raises(ModelError, match=r"mask_token_id = 14 in config.json.* gives 3 the id 3"):
        models.load_tokenizer(folder)


def test_an_undeclared_mask_token_must_agree_too(folder):
    edit_json(folder / "tokenizer_config.json", mask_token=None)
    assert models.load_tokenizer(folder)[0].mask_token is None
    edit_json(folder / "config.json", mask_token_id=3)
    with pytest.raises(ModelError, match="mask_token_id = 3"):
        models.load_tokenizer(folder)


def test_a_mask_beyond_the_embedding_matrix_is_refused(folder):
    edit_json(folder / "config.json", mask_token_id=15)
    assert "mask_token_id = 15 lies beyond the 15 rows" in refusal(folder)


def test_a_tokenizer_larger_than_the_embedding_matrix_is_refused(folder):
    models.build_char_tokenizer(CHARACTERS + "abc").save_pretrained(folder)
    with pytest.raises(ModelError, match=r"ids up to 17, but embedding_size = 15.*Fix:"):
        models.load(folder)


def test_rows_beyond_the_tokenizer_are_forbidden(tmp_path, published, tiny):
    tokenizer = models.build_char_tokenizer(
        "0123456789+-*/=()"
    )  # 17 characters, then bos 17, eos 18, mask 19
    module = tiny(mask_token_id=19, eos_token_id=18, pad_token_id=18)
    loaded = models.load(models.save(module, tmp_path / "m", tokenizer))
    assert loaded.spec.forbidden_ids == (19, 20, 21, 22, 23)
    logits = loaded.module(torch.tensor([[19, 1]]))
    assert torch.isneginf(logits[..., 19:]).all() and torch.isfinite(logits[..., :19]).all()


def test_the_end_of_turn_token_is_a_stop_id_where_the_vocabulary_has_it():
    tokenizer = models.build_bpe_tokenizer(["a b"], 270, chat_template=True)
    spec = models.create(INIT, tokenizer, 0).spec
    assert spec.stop_ids == (tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|eot_id|>"))


def test_a_missing_or_broken_tokenizer_is_refused(folder):
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"the tokenizer cannot be read.*Fix:"):
        models.load(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"tokenizer.json is missing.*trust_remote_code"):
        models.load(folder)


def test_a_tokenizer_may_come_through_auto_tokenizer_when_its_code_is_trusted(folder):
    plain, spec = models.load_tokenizer(folder)
    trusted, same = models.load_tokenizer(folder, trust_remote_code=True)
    assert same == spec and models.encode(trusted, "12=") == models.encode(plain, "12=")


def lie(folder: Path, change: Callable[[dict[str, Any]], None], pad: int = 0) -> None:
    """Rewrite the first shard's header, its tensors as they were, `pad` more bytes at the end."""
    shard = min(folder.glob("*.safetensors"))
    content = shard.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    entries = json.loads(content[8 : 8 + length])
    change(entries)
    text = json.dumps(entries).encode()
    shard.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :] + b"\0" * pad)


def first(entries: dict[str, Any]) -> dict[str, Any]:
    return next(entry for name, entry in entries.items() if name != "__metadata__")


LIES = {
    "a shape that is larger than its bytes": lambda e: first(e).update(shape=[4096, 4096]),
    "a shape that is smaller than its bytes": lambda e: first(e).update(shape=[1]),
    "a negative size": lambda e: first(e).update(shape=[-1, -32]),
    "a size that is no integer": lambda e: first(e).update(shape=[2.0, 3]),
    "a shape of nothing but a number": lambda e: first(e).update(shape=7),
    "an astronomic shape": lambda e: first(e).update(shape=[2**62, 2**62]),
    "another width of numbers": lambda e: first(e).update(dtype="F64"),
    "two tensors in one place": lambda e: list(e.values())[-1].update(
        data_offsets=first(e)["data_offsets"], shape=first(e)["shape"]
    ),
    "offsets before the data": lambda e: first(e).update(data_offsets=[-8, 0]),
    "an entry without offsets": lambda e: first(e).pop("data_offsets"),
    "an entry that is no object": lambda e: e.update({"model.extra": 3}),
    "metadata alone": lambda e: [e.pop(name) for name in list(e) if name != "__metadata__"],
}


@pytest.mark.parametrize("name", LIES)
def test_a_header_that_lies_is_refused_before_anything_is_made(name, folder):
    lie(folder, LIES[name])
    assert "is truncated or damaged" in refusal(folder)


def test_a_header_longer_than_any_is_not_read(folder):
    shard = min(folder.glob("*.safetensors"))
    with shard.open("r+b") as stream:  # sparse: a petabyte without a byte on disk
        stream.write(struct.pack("<Q", 2**40))
        stream.truncate(2**41)
    started = time.perf_counter()
    assert "its header has 1,099,511,627,776 bytes" in refusal(folder)
    assert time.perf_counter() - started < 2.0


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", "a/b.safetensors"])
def test_an_index_stays_in_its_folder(name, folder):
    index = folder / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    edit_json(index, weight_map={**weight_map, next(iter(weight_map)): name})
    assert "which is no file of this folder" in refusal(folder)


def test_layers_that_the_files_cannot_hold_are_refused_before_they_are_built(folder):
    edit_json(folder / "config.json", n_layers=1000)
    started = time.perf_counter()
    assert "config.json asks for 1000 layers, and the files hold" in refusal(folder)
    assert time.perf_counter() - started < 1.0


def test_a_hub_name_without_network_is_refused_at_once(monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(name, allow_patterns):
        raise LocalEntryNotFoundError("cannot reach it\nsecond line")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    message = refusal("GSAI-ML/LLaDA-8B-Instruct")
    assert "GSAI-ML/LLaDA-8B-Instruct is not a folder here and the hub cannot be reached" in message
    assert "second line" not in message and "hf download GSAI-ML/LLaDA-8B-Instruct" in message


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("GatedRepoError", "access to this hub repository must be granted first"),
        ("RepositoryNotFoundError", "is neither a folder here nor a repository on the hub"),
    ],
)
def test_a_hub_repository_that_is_gated_or_not_there_is_refused(monkeypatch, kind, words):
    import httpx
    import huggingface_hub
    from huggingface_hub import errors

    def refuse(name, allow_patterns):
        raise getattr(errors, kind)(
            "no", response=httpx.Response(404, request=httpx.Request("GET", "http://hub"))
        )

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    assert words in refusal("no/such-model")


def test_a_hub_name_loads_from_a_snapshot_of_weights_and_small_files(folder, monkeypatch):
    import huggingface_hub

    asked = []

    def snapshot(name, allow_patterns):
        asked.append(allow_patterns)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert models.load("someone/model").source == folder
    assert "*.safetensors" in asked[-1] and not [p for p in asked[-1] if p.endswith((".py", ".bin"))]
    models.load_tokenizer("someone/model")
    assert "*.safetensors" not in asked[-1]


def test_inspecting_a_hub_name_reads_remote_headers_only(folder, monkeypatch):
    import huggingface_hub

    facts = models.inspect(folder)
    headers = models.loading.read_headers(folder)
    tensors = {name: SimpleNamespace(dtype=h.dtype, shape=list(h.shape)) for name, h in headers.items()}
    for shard in folder.glob("*.safetensors"):
        shard.unlink()
    remote = SimpleNamespace(files_metadata={"model.safetensors": SimpleNamespace(tensors=tensors)})
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, allow_patterns: str(folder))
    monkeypatch.setattr(huggingface_hub, "get_safetensors_metadata", lambda name: remote)
    assert models.inspect("someone/model") == facts


def test_the_same_seed_makes_the_same_model_and_another_seed_another(loaded):
    tokenizer = models.build_char_tokenizer(CHARACTERS)
    before = torch.random.get_rng_state()
    again, other = models.create(INIT, tokenizer, 0), models.create(INIT, tokenizer, 1)
    assert torch.equal(torch.random.get_rng_state(), before)
    for a, b, c in zip(*(m.module.parameters() for m in (loaded, again, other)), strict=True):
        assert torch.equal(a, b)
        assert a.dim() == 1 or not torch.equal(a, c)


def test_a_made_model_needs_a_mask_token():
    tokenizer = models.build_char_tokenizer(CHARACTERS)
    tokenizer.mask_token = None
    with pytest.raises(ModelError, match="no mask token"):
        models.create(INIT, tokenizer, 0)


def test_the_denoiser_calls_the_module_or_what_is_given_in_its_place(loaded):
    ids = torch.tensor([[1, 14, 14]])
    select = ids == 14
    own = models.denoiser(loaded)
    torch.testing.assert_close(own.logits(ids, None, select), loaded.module(ids)[select])
    scores = own.token_logp(ids, None, select, torch.ones_like(ids), 0.5)
    expected = torch.log_softmax(loaded.module(ids)[select] / 0.5, -1)[:, 1]
    torch.testing.assert_close(scores, expected)
    other = models.denoiser(loaded, model=lambda *args, **kwargs: "engine", device="cuda:1")
    assert other.logits(ids, None, select) == "engine"
    assert other.device == "cuda:1" and other.spec == loaded.spec
