"""Strict loading: what a folder lacks, or holds beyond the model, is an error. What is saved can be loaded again."""

import hashlib
import json
import os
import shutil
import signal

import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file, save_file

from sit_atconv import SiTTransformer2DModel
from sit_atconv.models.weight_files import HASHES_FILE, stored_hashes, verify_weights


@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
def test_missing_and_extra_weights_are_errors(low_cpu_mem_usage, tiny_transformer, tmp_path):
    tiny_transformer().save_pretrained(tmp_path)
    (tmp_path / HASHES_FILE).unlink()  # the changes are meant
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)

    save_file({name: value for name, value in weights.items() if name != "proj_out.bias"}, file)
    with pytest.raises(ValueError, match=r"missing weights: proj_out\.bias"):
        SiTTransformer2DModel.from_pretrained(tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)

    save_file({**weights, "blocks.9.extra": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match=r"unexpected weights: blocks\.9\.extra"):
        SiTTransformer2DModel.from_pretrained(tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)

    save_file(weights, file)
    _, info = SiTTransformer2DModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]


def files_of(folder) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def add_adapter(model):
    peft = pytest.importorskip("peft")
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["fc1"]), adapter_name="first")


def delete_adapter(model):
    add_adapter(model)
    model.delete_adapters("first")


def compile_block(model):
    model.blocks[0] = torch.compile(model.blocks[0])


def parametrize(model):
    torch.nn.utils.parametrizations.weight_norm(model.proj_out)


def wrap_layer(model):
    model.proj_out = torch.nn.Sequential(model.proj_out)


def widen_layer(model):
    model.class_embed = torch.nn.Embedding(model.class_embed.num_embeddings + 1, model.class_embed.embedding_dim)


def drop_layer(model):
    model.proj_out.bias = None


def change_config(model):
    model.register_to_config(num_layers=model.config.num_layers + 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (add_adapter, "LoRA adapter"),
        (delete_adapter, r"base_layer\.weight is not in a model.* more; call unload_lora\(\)"),
        (compile_block, r"_orig_mod\..* is not in a model.*layer\.compile\(\)"),
        (parametrize, r"proj_out\.parametrizations\.weight\.original0 is not in a model.*undo"),
        (wrap_layer, r"proj_out\.0\.weight is not in a model"),
        (widen_layer, r"class_embed\.weight has the shape .*, not .*undo"),
        (drop_layer, r"proj_out\.bias is missing"),
        (change_config, r"blocks\.2\.\S+ is missing"),
    ],
)
@pytest.mark.parametrize("exists", [True, False])
def test_what_could_not_be_loaded_again_is_not_saved(change, message, exists, tiny_transformer, tmp_path):
    folder = tmp_path / "model"
    model = tiny_transformer()
    if exists:
        model.save_pretrained(folder)
    before = files_of(tmp_path)
    change(model)
    with pytest.raises(ValueError, match=message):
        model.save_pretrained(folder)
    assert files_of(tmp_path) == before
    assert folder.exists() == exists


def test_the_remedies_work(tiny_transformer, tmp_path):
    expected = tiny_transformer().state_dict()
    for name, change, remedy in (
        ("adapter", delete_adapter, lambda model: model.unload_lora()),
        ("compiled", lambda model: model.blocks[0].compile(), lambda model: model),
        ("wrapped", wrap_layer, lambda model: setattr(model, "proj_out", model.proj_out[0])),
    ):
        model = tiny_transformer()
        change(model)
        remedy(model)
        model.save_pretrained(tmp_path / name)
        loaded = SiTTransformer2DModel.from_pretrained(tmp_path / name).state_dict()
        torch.testing.assert_close(loaded, expected, rtol=0, atol=0)
    torch.compile(tiny_transformer()).save_pretrained(tmp_path / "whole")
    loaded = SiTTransformer2DModel.from_pretrained(tmp_path / "whole").state_dict()
    torch.testing.assert_close(loaded, expected, rtol=0, atol=0)


@pytest.mark.parametrize("shards, calls", [(None, 1), ("5KB", 1), ("5KB", 2)])
def test_a_full_disk_leaves_the_older_model(shards, calls, tiny_transformer, tmp_path, monkeypatch):
    tiny_transformer(seed=1).save_pretrained(tmp_path, max_shard_size="5KB")
    before, save, done = files_of(tmp_path), safetensors.torch.save_file, []

    def run_out(tensors, file, *args, **options):
        done.append(file)
        if len(done) == calls:
            raise safetensors.SafetensorError("No space left on device")
        save(tensors, file, *args, **options)

    monkeypatch.setattr(safetensors.torch, "save_file", run_out)
    with pytest.raises(safetensors.SafetensorError):
        tiny_transformer(seed=2).save_pretrained(tmp_path, max_shard_size=shards or "1GB")
    assert len(done) == calls
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("shards", ["5KB", "1GB"])
def test_a_flipped_bit_is_found(shards, tiny_transformer, tmp_path):
    model = tiny_transformer()
    model.save_pretrained(tmp_path, max_shard_size=shards)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert stored_hashes(tmp_path) == {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    assert verify_weights(tmp_path) == len(files)
    content = bytearray(files[-1].read_bytes())
    content[-5] ^= 1
    files[-1].write_bytes(content)
    with pytest.raises(ValueError, match=rf"not as it was saved: {files[-1].name} has another SHA-256; get it again"):
        SiTTransformer2DModel.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has another SHA-256"):
        SiTTransformer2DModel.from_pretrained(tmp_path.parent, subfolder=tmp_path.name)
    SiTTransformer2DModel.from_pretrained(tmp_path, verify_weights=False)
    (tmp_path / HASHES_FILE).unlink()
    SiTTransformer2DModel.from_pretrained(tmp_path)


def test_each_variant_keeps_its_hash(tiny_transformer, tmp_path):
    model = tiny_transformer()
    model.save_pretrained(tmp_path)
    model.half().save_pretrained(tmp_path, variant="fp16", max_shard_size="5KB")
    model.save_pretrained(tmp_path, variant="fp16")  # its shards are superseded
    names = {"diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"}
    assert stored_hashes(tmp_path).keys() == names == {file.name for file in tmp_path.glob("*.safetensors")}
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(b"damaged")
    assert verify_weights(tmp_path, "fp16") == 1
    SiTTransformer2DModel.from_pretrained(tmp_path, variant="fp16")
    for options in ({}, {"every_variant": True, "variant": "fp16"}, {"variant": "bf16"}):
        with pytest.raises(ValueError, match=r"model\.safetensors has another SHA-256"):
            verify_weights(tmp_path, **options)
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    assert verify_weights(tmp_path, "fp16") == 1  # a download fetches one variant
    with pytest.raises(ValueError, match=r"model\.safetensors is missing"):
        verify_weights(tmp_path, every_variant=True)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"sha256": 3}', "[" * 100_000])
def test_damaged_hashes_are_named(content, tiny_transformer, tmp_path):
    model = tiny_transformer()
    model.save_pretrained(tmp_path)
    (tmp_path / HASHES_FILE).write_text(content)
    with pytest.raises(ValueError, match=r"weights\.json is damaged.*verify_weights=False"):
        SiTTransformer2DModel.from_pretrained(tmp_path)
    SiTTransformer2DModel.from_pretrained(tmp_path, verify_weights=False)
    model.save_pretrained(tmp_path)
    assert verify_weights(tmp_path) == 1


def test_a_moved_folder_is_still_verified(tiny_transformer, tmp_path):
    tiny_transformer().save_pretrained(tmp_path / "a")
    shutil.move(tmp_path / "a", tmp_path / "b")
    assert verify_weights(tmp_path / "b") == 1


def shard(folder, **options):
    """Save a model in shards, and return its index."""
    options.pop("model").save_pretrained(folder, max_shard_size="2KB", **options)
    (index,) = folder.glob("*.index*.json")
    return index


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("file", ["w.bin", "../w.safetensors", "/w.safetensors", "w.safetensors.pt", 3, None])
def test_an_index_names_safetensors_beside_it_only(file, variant, tiny_transformer, tmp_path):
    index = shard(tmp_path, model=tiny_transformer(), variant=variant)
    SiTTransformer2DModel.from_pretrained(tmp_path, variant=variant)
    content = json.loads(index.read_text())
    content["weight_map"][next(iter(content["weight_map"]))] = file
    index.write_text(json.dumps(content))
    torch.save({}, tmp_path / "w.bin")
    with pytest.raises(ValueError, match=r"names the file .* safetensors files beside the index only"):
        SiTTransformer2DModel.from_pretrained(tmp_path, variant=variant)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": []}}', "[" * 100_000])
def test_a_damaged_index_is_named(content, tiny_transformer, tmp_path):
    shard(tmp_path, model=tiny_transformer()).write_text(content)
    with pytest.raises(ValueError, match="is damaged: it is no index of weights"):
        SiTTransformer2DModel.from_pretrained(tmp_path)


def test_a_pipe_named_as_an_index_is_not_waited_for(tiny_transformer, tmp_path):
    tiny_transformer().save_pretrained(tmp_path)
    os.mkfifo(tmp_path / "x.index.json")
    signal.alarm(20)  # ends the process if the pipe is opened
    try:
        SiTTransformer2DModel.from_pretrained(tmp_path)
    finally:
        signal.alarm(0)


def test_pickles_are_refused(tiny_transformer, tmp_path):
    model = tiny_transformer()
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="use_safetensors=False would read pickles"):
        SiTTransformer2DModel.from_pretrained(tmp_path, use_safetensors=False)
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        SiTTransformer2DModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_layers", 20_000),
        ("num_layers", 10**12),
        ("attention_head_dim", 10**7),
        ("num_attention_heads", 10**7),
        ("num_classes", 10**12),
        ("kernel_size", 1001),
        ("mlp_ratio", 1e12),
        ("mlp_ratio", float("inf")),
        ("mlp_ratio", float("nan")),
        ("in_channels", 10**12),
        ("out_channels", 10**12),
        ("timestep_at_noise", float("nan")),
        ("class_dropout_prob", "0.1"),
    ],
)
def test_absurd_sizes_in_a_config_are_refused_before_anything_is_built(field, value, tiny_transformer, tmp_path):
    tiny_transformer().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, field: value}))
    with pytest.raises(ValueError, match=field):
        SiTTransformer2DModel.from_pretrained(tmp_path)


def test_misspelt_arguments_are_refused(tiny_transformer, tmp_path):
    model = tiny_transformer()
    model.save_pretrained(tmp_path)
    for load in (
        lambda **options: SiTTransformer2DModel.from_config(model.config, **options),
        lambda **options: SiTTransformer2DModel.from_pretrained(tmp_path, **options),
    ):
        with pytest.raises(ValueError, match=r"has no option num_layer; did you mean num_layers\?"):
            load(num_layer=3)
    assert SiTTransformer2DModel.from_config(model.config, num_layers=3).config.num_layers == 3


@pytest.mark.parametrize("field", ["patch_size", "kernel_size", "num_classes"])
def test_a_config_that_was_changed_later_is_not_saved(field, tiny_transformer, tmp_path):
    """Also a field that had its default, which diffusers leaves out when it builds a model from the config."""
    model = SiTTransformer2DModel(sample_size=8, num_layers=1, num_attention_heads=1, attention_head_dim=8)
    model.register_to_config(**{field: model.config[field] + 2})
    with pytest.raises(ValueError, match=r"could not be loaded again: .* has the shape"):
        model.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_offloaded_weights_are_not_saved_but_the_remedy_works(tiny_transformer, tmp_path):
    from accelerate import cpu_offload
    from accelerate.hooks import remove_hook_from_module

    model = tiny_transformer()
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    cpu_offload(model, "cpu")
    with pytest.raises(ValueError, match=r"not in memory, such as .*remove_hook_from_module\(model, recurse=True\)"):
        model.save_pretrained(tmp_path)
    remove_hook_from_module(model, recurse=True)
    model.save_pretrained(tmp_path)
    loaded = SiTTransformer2DModel.from_pretrained(tmp_path).state_dict()
    torch.testing.assert_close(loaded, expected, rtol=0, atol=0)


def test_sparse_weights_are_not_saved(tiny_transformer, tmp_path):
    model = tiny_transformer()
    model.proj_out.weight = torch.nn.Parameter(model.proj_out.weight.detach().to_sparse())
    with pytest.raises(ValueError, match=r"are sparse, such as proj_out\.weight; make them dense by to_dense\(\)"):
        model.save_pretrained(tmp_path / "new")
