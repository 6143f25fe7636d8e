"""What people do with diffusers' models and pipelines works with these."""

import pytest
import torch
from diffusers import AutoencoderTiny, AutoModel, DiffusionPipeline, FlowMatchEulerDiscreteScheduler

from sit_atconv import SiTPipeline, SiTTransformer2DModel
from sit_atconv.models.presets import MIXERS
from sit_atconv.ops import linear_onednn
from sit_atconv.sharing.onnx import INPUTS, OUTPUT, export_onnx, export_transformer

LORA_TARGETS = ["qkv", "q_proj", "kv_proj", "kernel_proj", "value_proj", "out_proj", "fc1", "fc2"]
SIZES = [(1, 8, 8), (3, 4, 12), (2, 10, 6)]  # batch, height, width


def draw(pipe):
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipe([1, 4], guidance_scale=2.0, num_inference_steps=3, output_type="pt", generator=generator).images


def inputs(batch: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(height)
    x = torch.randn(batch, 3, height, width, generator=generator)
    return x, torch.rand(batch, generator=generator), torch.randint(0, 6, (batch,), generator=generator)


@pytest.fixture(autouse=True, params=["small", "large"])
def products(request, monkeypatch):
    """Layers as small as these, and the same computed as large ones are on an x86 CPU."""
    if request.param == "large":
        monkeypatch.setattr(linear_onednn, "WORTHWHILE_PRODUCTS", 0)


@pytest.fixture
def pipe(tiny_pipeline):
    vae = AutoencoderTiny(
        encoder_block_out_channels=(4, 4),
        decoder_block_out_channels=(4, 4),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        upsampling_scaling_factor=2,
    )
    return tiny_pipeline(vae=vae.eval(), in_channels=4, mixer="hybrid")


@pytest.fixture
def folder(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "folder")
    return tmp_path / "folder"


def test_to_moves_and_casts_every_model(pipe):
    expected = draw(pipe)
    pipe.to(torch.bfloat16)
    assert {pipe.transformer.dtype, pipe.vae.dtype} == {torch.bfloat16}
    torch.testing.assert_close(draw(pipe).float(), expected, rtol=0, atol=0.1)
    pipe.to("meta")
    assert {pipe.transformer.device.type, pipe.vae.device.type} == {"meta"}


@pytest.mark.parametrize("load", [SiTPipeline.from_pretrained, DiffusionPipeline.from_pretrained])
@pytest.mark.parametrize(
    "options", [{"low_cpu_mem_usage": True}, {"low_cpu_mem_usage": False}, {"device_map": "cpu"}, {"torch_dtype": None}]
)
def test_ways_of_loading(options, load, pipe, folder):
    loaded = load(folder, trust_remote_code=True, **options)
    assert loaded.transformer.dtype == loaded.vae.dtype == torch.float32
    torch.testing.assert_close(draw(loaded), draw(pipe))


@pytest.mark.parametrize("load", [SiTPipeline.from_pretrained, DiffusionPipeline.from_pretrained])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_torch_dtype(dtype, load, pipe, folder):
    loaded = load(folder, trust_remote_code=True, torch_dtype=dtype)
    assert loaded.transformer.dtype == loaded.vae.dtype == dtype
    torch.testing.assert_close(draw(loaded).float(), draw(pipe), rtol=0, atol=0.1)


def test_device_map_spreads_the_blocks(pipe, folder, tmp_path):
    """Blocks that lie on disk are read as they are needed."""
    names = ["patch_embed", "time_embed", "class_embed", "blocks.0", "norm_out", "modulation_out", "proj_out"]
    device_map = {**dict.fromkeys(names, "cpu"), "blocks.1": "disk"}
    options = dict(device_map=device_map, offload_folder=tmp_path / "offload")
    transformer = SiTTransformer2DModel.from_pretrained(folder / "transformer", **options)
    assert transformer.blocks[1].mlp.fc1.weight.device.type == "meta"
    x, t, y = inputs(2, 8, 8)
    x = torch.cat([x, x[:, :1]], dim=1)
    with torch.no_grad():
        torch.testing.assert_close(transformer(x, t, y).sample, pipe.transformer(x, t, y).sample)
    balanced = SiTPipeline.from_pretrained(folder, device_map="balanced")
    torch.testing.assert_close(draw(balanced), draw(pipe))


def test_cpu_offload_hooks(pipe, folder):
    """accelerate's hooks, which `enable_model_cpu_offload` and its sequential sister put on, with a CPU as the GPU."""
    from accelerate import cpu_offload, cpu_offload_with_hook

    whole, piecewise = SiTPipeline.from_pretrained(folder), SiTPipeline.from_pretrained(folder)
    _, hook = cpu_offload_with_hook(whole.transformer, torch.device("cpu"))
    whole._all_hooks = [hook]
    torch.testing.assert_close(draw(whole), draw(pipe))
    cpu_offload(piecewise.transformer, torch.device("cpu"))
    assert piecewise.transformer.blocks[0].mlp.fc1.weight.device.type == "meta"
    torch.testing.assert_close(draw(piecewise), draw(pipe))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_enable_model_cpu_offload(pipe, folder):
    loaded = SiTPipeline.from_pretrained(folder)
    loaded.enable_model_cpu_offload()
    torch.testing.assert_close(draw(loaded).cpu(), draw(pipe), rtol=0, atol=1e-2)
    assert {loaded.transformer.device.type, loaded.vae.device.type} == {"cpu"}


def test_from_pipe_shares_the_components(pipe):
    scheduler = FlowMatchEulerDiscreteScheduler()
    same, other = SiTPipeline.from_pipe(pipe), SiTPipeline.from_pipe(pipe, scheduler=scheduler)
    for copy in (same, other):
        assert copy.transformer is pipe.transformer
        assert copy.vae is pipe.vae
        assert copy.labels == pipe.labels
    assert same.scheduler is pipe.scheduler
    assert other.scheduler is scheduler
    torch.testing.assert_close(draw(same), draw(pipe))


def test_layerwise_casting(pipe, folder):
    loaded = SiTPipeline.from_pretrained(folder)
    loaded.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    exact = {name for name, weight in loaded.transformer.named_parameters() if weight.dtype == torch.float32}
    layers = {"patch_embed", "time_embed.linear_1", "time_embed.linear_2", "blocks.1.mixer.kernel_gen", "proj_out"}
    assert exact == {
        "blocks.1.mixer.inhibition",
        *(f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")),
    }
    assert loaded.transformer.blocks[0].mlp.fc1.weight.dtype == torch.float8_e4m3fn
    torch.testing.assert_close(draw(loaded), draw(pipe), rtol=0, atol=0.3)


def test_lora_is_saved_loaded_fused_and_unloaded(tiny_transformer, tmp_path):
    peft = pytest.importorskip("peft")
    args = inputs(2, 8, 8)
    base = tiny_transformer(mixer="hybrid")
    with torch.no_grad():
        plain = base(*args).sample
        base.add_adapter(peft.LoraConfig(r=2, target_modules=LORA_TARGETS, init_lora_weights=False))
        adapted = base(*args).sample
        assert not torch.allclose(adapted, plain, atol=0.1)
        base.save_lora_adapter(tmp_path)
        with pytest.raises(ValueError, match=r"call fuse_lora\(\) and unload_lora\(\) first"):
            base.save_pretrained(tmp_path / "whole")
        assert not (tmp_path / "whole").exists()

        loaded = tiny_transformer(mixer="hybrid")
        options = dict(prefix=None, weight_name="pytorch_lora_weights.safetensors")
        loaded.load_lora_adapter(tmp_path, **options)
        layers = {name for name, module in loaded.named_modules() if hasattr(module, "lora_A")}
        assert layers == {
            *(f"blocks.0.mixer.{name}" for name in ("qkv", "out_proj")),
            *(f"blocks.1.mixer.{name}" for name in ("kernel_proj", "value_proj", "out_proj")),
            *(f"blocks.{i}.mlp.{name}" for i in (0, 1) for name in ("fc1", "fc2")),
        }
        torch.testing.assert_close(loaded(*args).sample, adapted)
        loaded.fuse_lora()
        loaded.unload_lora()
        loaded.save_pretrained(tmp_path / "fused")
        torch.testing.assert_close(loaded(*args).sample, adapted, rtol=1e-4, atol=1e-5)
        assert loaded.state_dict().keys() == tiny_transformer(mixer="hybrid").state_dict().keys()

        loaded = tiny_transformer(mixer="hybrid")
        loaded.load_lora_adapter(tmp_path, **options)
        loaded.unload_lora()
        torch.testing.assert_close(loaded(*args).sample, plain)


def test_lora_of_a_pipeline(pipe, tmp_path):
    peft = pytest.importorskip("peft")
    plain = draw(pipe)
    config = peft.LoraConfig(r=2, lora_alpha=8, target_modules=LORA_TARGETS, init_lora_weights=False)
    pipe.transformer.add_adapter(config)
    adapted = draw(pipe)
    assert (adapted - plain).abs().max() > 0.05
    layers = peft.get_peft_model_state_dict(pipe.transformer)
    settings = pipe.transformer.peft_config["default"].to_dict()
    pipe.save_lora_weights(tmp_path / "pipeline", layers, transformer_lora_adapter_metadata=settings)
    pipe.transformer.save_lora_adapter(tmp_path / "transformer")
    pipe.unload_lora_weights()
    torch.testing.assert_close(draw(pipe), plain)
    with pytest.raises(ValueError, match=r"load_lora_adapter\(folder, prefix=None\)"):
        pipe.load_lora_weights(tmp_path / "transformer")
    pipe.load_lora_weights(tmp_path / "pipeline", adapter_name="style")
    assert pipe.get_list_adapters() == {"transformer": ["style"]}
    torch.testing.assert_close(draw(pipe), adapted)
    pipe.disable_lora()
    torch.testing.assert_close(draw(pipe), plain)
    pipe.enable_lora()
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    torch.testing.assert_close(draw(pipe), adapted, rtol=1e-3, atol=1e-4)
    pipe.save_pretrained(tmp_path / "fused")
    torch.testing.assert_close(draw(SiTPipeline.from_pretrained(tmp_path / "fused")), adapted, rtol=1e-3, atol=1e-4)


def test_lora_that_cannot_be_read_or_written(pipe, tmp_path):
    with pytest.raises(ValueError, match=r"no weights of an adapter are named transformer\.… in them"):
        pipe.load_lora_weights({})
    with pytest.raises(ValueError, match="use_safetensors=False"):
        pipe.load_lora_weights({}, use_safetensors=False)
    with pytest.raises(ValueError, match="transformer_lora_layers is empty"):
        pipe.save_lora_weights(tmp_path, {})
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file; give a folder"):
        pipe.save_lora_weights(tmp_path / "file", {"x": torch.ones(1)})
    with pytest.raises(ValueError, match="safe_serialization=False would write pickles"):
        pipe.save_lora_weights(tmp_path, {"x": torch.ones(1)}, safe_serialization=False)


def test_auto_model_finds_the_code_of_the_transformer(pipe, folder):
    loaded = AutoModel.from_pretrained(str(folder), subfolder="transformer", trust_remote_code=True)
    assert type(loaded).__module__.startswith("diffusers_modules.")
    expected = pipe.transformer.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())
    with pytest.raises(ValueError, match="contains custom code"):
        AutoModel.from_pretrained(str(folder), subfolder="transformer")


@pytest.mark.parametrize(
    "target", ["class_embed", "modulation", "modulation_out", "proj_out", "linear_1", "patch_embed"]
)
def test_lora_on_layers_of_any_kind(target, tiny_transformer, tiny_pipeline):
    """Layers may be replaced by others, which have their function but not their attributes."""
    peft = pytest.importorskip("peft")
    pipe = tiny_pipeline()
    plain = draw(pipe)
    pipe.transformer.add_adapter(peft.LoraConfig(r=2, target_modules=[target], init_lora_weights=False))
    assert (draw(pipe) - plain).abs().max() > 1e-4
    pipe.transformer.disable_adapters()
    torch.testing.assert_close(draw(pipe), plain)


def test_torchao_quantisation(pipe, folder):
    quantization = pytest.importorskip("torchao.quantization")
    from diffusers import TorchAoConfig

    transformer = SiTTransformer2DModel.from_pretrained(
        folder / "transformer", quantization_config=TorchAoConfig(quantization.Int8WeightOnlyConfig())
    )
    assert type(transformer.blocks[0].mlp.fc1.weight).__module__.startswith("torchao")
    loaded = SiTPipeline.from_pretrained(folder, transformer=transformer)
    torch.testing.assert_close(draw(loaded), draw(pipe), rtol=0, atol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("mixer", [*MIXERS, "hybrid"])
def test_torch_export_leaves_batch_and_grid_free(mixer, tiny_transformer):
    model = tiny_transformer(mixer=mixer)
    exported = export_transformer(model).module()
    with torch.no_grad():
        for size in SIZES:
            torch.testing.assert_close(exported(*inputs(*size)), model(*inputs(*size)).sample)


@pytest.mark.slow
def test_torch_export_of_an_hourglass_takes_odd_grids(tiny_transformer):
    mixer = ["atconv", "attention", "atconv"]
    model = tiny_transformer(num_layers=3, mixer=mixer, middle_layers=1, middle_attention_heads=3, mlp_depthwise=True)
    exported = export_transformer(model).module()
    with torch.no_grad():
        for size in ((3, 8, 8), (1, 6, 10), (2, 10, 12)):
            torch.testing.assert_close(exported(*inputs(*size)), model(*inputs(*size)).sample)


@pytest.mark.slow
@pytest.mark.parametrize("step_conditioning", ["span", "decoupled"])
def test_torch_export_of_mean_velocities_takes_the_ends_of_steps(step_conditioning, tiny_transformer):
    model = tiny_transformer(step_conditioning=step_conditioning)
    exported = export_transformer(model).module()
    with torch.no_grad():
        for size in SIZES:
            x, t, y = inputs(*size)
            s = t + 0.5 * (1 - t)
            torch.testing.assert_close(exported(x, t, y, s), model(x, t, y, end_timestep=s).sample)


@pytest.mark.slow
def test_onnx_agrees_for_every_size(tiny_transformer, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = tiny_transformer(mixer="hybrid")
    export_onnx(model, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for size in SIZES:
        args = inputs(*size)
        (sample,) = session.run([OUTPUT], {name: value.numpy() for name, value in zip(INPUTS, args, strict=True)})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(sample), model(*args).sample, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="exists"):
        export_onnx(model, tmp_path / "model.onnx")
