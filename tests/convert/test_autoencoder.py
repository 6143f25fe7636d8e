"""Autoencoders of LDM's code become an AutoencoderKL that computes the same; what does not fit is refused."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from sit_atconv.cli import main
from sit_atconv.convert.autoencoder import convert_autoencoder
from sit_atconv.models.vae import load_vae

LEVELS, WIDTH, LATENTS = 2, 32, 3


def ldm_state() -> dict[str, torch.Tensor]:
    """Random weights under LDM's names: two levels of 32 channels, attention on the lower one and in the middle."""
    shapes: dict[str, tuple[int, ...]] = {"quant_conv": (6, 6, 1), "post_quant_conv": (3, 3, 1)}

    def resnet(name: str) -> None:
        shapes.update({f"{name}.norm1": (32,), f"{name}.conv1": (32, 32, 3)})
        shapes.update({f"{name}.norm2": (32,), f"{name}.conv2": (32, 32, 3)})

    def attention(name: str) -> None:
        shapes[f"{name}.norm"] = (32,)
        shapes.update({f"{name}.{part}": (32, 32, 1) for part in ("q", "k", "v", "proj_out")})

    for part, way, blocks in (("encoder", "down", 1), ("decoder", "up", 2)):
        shapes[f"{part}.conv_in"] = (32, 3, 3)
        shapes[f"{part}.conv_out"] = (6 if part == "encoder" else 3, 32, 3)
        shapes[f"{part}.norm_out"] = (32,)
        for i in range(LEVELS):
            for j in range(blocks):
                resnet(f"{part}.{way}.{i}.block.{j}")
                if i == 1:
                    attention(f"{part}.{way}.{i}.attn.{j}")
        scaling = "down.0.downsample" if way == "down" else "up.1.upsample"
        shapes[f"{part}.{scaling}.conv"] = (32, 32, 3)
        resnet(f"{part}.mid.block_1")
        attention(f"{part}.mid.attn_1")
        resnet(f"{part}.mid.block_2")
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, (first, *rest) in shapes.items():
        size = (first, rest[0], rest[1], rest[1]) if rest else (first,)
        state[f"{name}.weight"] = torch.randn(size, generator=generator) * 0.05 + (0 if rest else 1)
        state[f"{name}.bias"] = torch.randn(first, generator=generator) * 0.1
    return state


class Naive:
    """LDM's autoencoder, written out."""

    def __init__(self, state: dict[str, torch.Tensor]):
        self.state = state

    def conv(self, x: torch.Tensor, name: str, **options) -> torch.Tensor:
        weight = self.state[f"{name}.weight"]
        return F.conv2d(x, weight, self.state[f"{name}.bias"], **{"padding": weight.shape[-1] // 2, **options})

    def norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return F.group_norm(x, 32, self.state[f"{name}.weight"], self.state[f"{name}.bias"], eps=1e-6)

    def resnet(self, x: torch.Tensor, name: str) -> torch.Tensor:
        h = self.conv(F.silu(self.norm(x, f"{name}.norm1")), f"{name}.conv1")
        return x + self.conv(F.silu(self.norm(h, f"{name}.norm2")), f"{name}.conv2")

    def attention(self, x: torch.Tensor, name: str) -> torch.Tensor:
        h = self.norm(x, f"{name}.norm")
        q, k, v = (self.conv(h, f"{name}.{part}").flatten(2) for part in "qkv")  # (B, C, N)
        weights = (q.transpose(1, 2) @ k / x.shape[1] ** 0.5).softmax(-1)  # (B, N, N)
        return x + self.conv((v @ weights.transpose(1, 2)).reshape(x.shape), f"{name}.proj_out")

    def middle(self, x: torch.Tensor, part: str) -> torch.Tensor:
        x = self.attention(self.resnet(x, f"{part}.mid.block_1"), f"{part}.mid.attn_1")
        return self.resnet(x, f"{part}.mid.block_2")

    def moments(self, x: torch.Tensor) -> torch.Tensor:
        x = self.resnet(self.conv(x, "encoder.conv_in"), "encoder.down.0.block.0")
        x = self.conv(F.pad(x, (0, 1, 0, 1)), "encoder.down.0.downsample.conv", stride=2, padding=0)
        x = self.attention(self.resnet(x, "encoder.down.1.block.0"), "encoder.down.1.attn.0")
        x = F.silu(self.norm(self.middle(x, "encoder"), "encoder.norm_out"))
        return self.conv(self.conv(x, "encoder.conv_out"), "quant_conv")

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        x = self.middle(self.conv(self.conv(z, "post_quant_conv"), "decoder.conv_in"), "decoder")
        for j in range(2):
            x = self.attention(self.resnet(x, f"decoder.up.1.block.{j}"), f"decoder.up.1.attn.{j}")
        x = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"), "decoder.up.1.upsample.conv")
        for j in range(2):
            x = self.resnet(x, f"decoder.up.0.block.{j}")
        return self.conv(F.silu(self.norm(x, "decoder.norm_out")), "decoder.conv_out")


def test_converted_autoencoders_compute_the_same(tmp_path, capsys):
    state = ldm_state()
    others = {"loss.logvar": torch.zeros(1), "foundation_model.weight": torch.zeros(2)}
    torch.save({"state_dict": state | others}, tmp_path / "vavae.pt")
    torch.save(
        {"mean": torch.arange(3.0).view(1, 3, 1, 1), "std": torch.full((1, 3, 1, 1), 2.0)}, tmp_path / "stats.pt"
    )
    main(["convert", str(tmp_path / "vavae.pt"), str(tmp_path / "vae"), "--statistics", str(tmp_path / "stats.pt")])
    printed = capsys.readouterr().out
    assert "foundation_model, loss" in printed
    assert f"--vae {tmp_path / 'vae'}" in printed
    vae, naive = load_vae(str(tmp_path / "vae")), Naive(state)
    assert (vae.config.latents_mean, vae.config.latents_std) == ([0.0, 1.0, 2.0], [2.0] * 3)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        posterior = vae.encode(x).latent_dist
        torch.testing.assert_close(posterior.parameters, naive.moments(x), rtol=1e-4, atol=1e-4)
        decoded = vae.decode(posterior.mean).sample
        torch.testing.assert_close(decoded, naive.decode(posterior.mean), rtol=1e-4, atol=1e-4)


def test_the_checkpoint_of_a_training_holds_the_statistics(tmp_path):
    trained = {"bn.running_mean": torch.tensor([1.0, 2.0, 3.0]), "bn.running_var": torch.tensor([4.0, 9.0, 16.0])}
    torch.save({"ema": trained, "vae": ldm_state()}, tmp_path / "repae.pt")
    convert_autoencoder(tmp_path / "repae.pt", tmp_path / "vae", weights="vae")
    config = json.loads((tmp_path / "vae" / "config.json").read_text())
    assert (config["latents_mean"], config["latents_std"]) == ([1.0, 2.0, 3.0], [2.0, 3.0, 4.0])
    assert config["scaling_factor"] == 1.0


def test_what_does_not_fit_is_refused(tmp_path):
    def message(state: dict[str, torch.Tensor], **options) -> str:
        save_file(state, tmp_path / "file.safetensors")
        with pytest.raises(ValueError) as error:
            convert_autoencoder(tmp_path / "file.safetensors", tmp_path / "vae", **options)
        assert not (tmp_path / "vae").exists()
        return str(error.value)

    state = ldm_state()
    assert "unknown: decoder.mask" in message(state | {"decoder.mask": torch.zeros(1)})
    assert "missing: encoder.mid_block.resnets.0.conv2.weight" in message(
        {name: tensor for name, tensor in state.items() if name != "encoder.mid.block_1.conv2.weight"}
    )
    assert "of another shape: quant_conv.weight" in message(state | {"quant_conv.weight": torch.zeros(6, 8, 1, 1)})
    assert "not those of an autoencoder" in message({"encoder.conv_in.weight": torch.zeros(1)})
    torch.save({"mean": torch.zeros(4), "std": torch.ones(4)}, tmp_path / "stats.pt")
    assert "one for each of 3 channels" in message(state, statistics=tmp_path / "stats.pt")
    torch.save({"var": torch.zeros(4)}, tmp_path / "stats.pt")
    assert "holds var; it needs tensors named mean and std" in message(state, statistics=tmp_path / "stats.pt")
    (tmp_path / "stats.safetensors").write_bytes(b"damaged")
    assert "stats.safetensors' cannot be read" in message(state, statistics=tmp_path / "stats.safetensors")


def test_without_statistics_the_scale_is_unknown(tmp_path):
    save_file(ldm_state(), tmp_path / "file.safetensors")
    assert "none" in convert_autoencoder(tmp_path / "file.safetensors", tmp_path / "vae")["statistics"]
    assert load_vae(str(tmp_path / "vae")).config.scaling_factor is None
