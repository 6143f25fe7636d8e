"""Checkpoints of AttNet: to folders that timm loads, and back bit for bit."""

import argparse
import json
import os

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from sit_atconv.cli import main
from sit_atconv.convert.attnet import convert_attnet, export_attnet
from sit_atconv.models.attnet import AttNet
from sit_atconv.models.attnet_names import expansion, to_ours, to_reference

SIZES = dict(depths=(1, 1, 2, 1), dims=(8, 12, 16, 20), num_classes=5)


def drawn(seed: int = 0, **arguments) -> AttNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AttNet(**{**SIZES, **arguments})
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.uniform_(0.1, 1.0)
    return model.eval()


def authors_file(file, **weights) -> None:
    """Write a checkpoint as the authors' training script does."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))])
    args = argparse.Namespace(model="AttNet_T2", lr=4e-3, mixup=0.8, device="cuda")
    torch.save({**weights, "optimizer": optimizer.state_dict(), "epoch": 299, "scaler": {}, "args": args}, file)


def load(folder) -> torch.nn.Module:
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        dict(glu_norm=False, use_layer_scale=False),
        dict(glu_norm=(False, True, True, False), glu_dconv=(True, False, True, False), conv_bias=False),
        dict(kernel_sizes=(5, 3, 7, 1), exp_rates=(2.5, 3, 1.7, 4), act_layer="SiLU", in_chans=1),
        dict(glu_norm_rule="variance", num_classes=0),
    ],
)
def test_both_ways(arguments, tmp_path):
    model = drawn(**arguments)
    state = to_reference(model.state_dict())
    torch.save({"model": state}, tmp_path / "model.pth")
    told = {name: arguments[name] for name in ("act_layer", "glu_norm_rule") if name in arguments}
    convert_attnet(tmp_path / "model.pth", tmp_path / "out", **told)
    x = torch.randn(2, model.in_chans, 40, 33)
    assert torch.equal(load(tmp_path / "out")(x), model(x))
    for name in ("back.pth", "back.safetensors"):
        restored = export_attnet(tmp_path / "out", tmp_path / name)
        written = load_file(tmp_path / name) if "safe" in name else torch.load(tmp_path / name)["model"]
        for tensors in (restored, written):
            assert tensors.keys() == state.keys()
            assert all(
                torch.equal(tensors[key], state[key]) and tensors[key].dtype == state[key].dtype for key in state
            )


def test_numbers_of_the_reference(parity_dir, tmp_path):
    folder = parity_dir / "attnet"
    if not folder.is_dir():
        pytest.skip("no reference numbers")
    for file in sorted(folder.glob("attnet_[tx]*x*.safetensors")):
        tensors = load_file(file)
        state = {key[6:]: value for key, value in tensors.items() if key.startswith("state.")}
        if "out.stage0" not in tensors:  # numbers of training
            continue
        save_file(state, tmp_path / file.name)
        convert_attnet(tmp_path / file.name, tmp_path / file.stem)
        with torch.no_grad():
            logits = load(tmp_path / file.stem)(tensors["in.x"])
        torch.testing.assert_close(logits, tensors["out.logits"], rtol=0, atol=2e-5)


def test_the_command(tmp_path, capsys):
    raw, average = drawn(0), drawn(1)
    authors_file(
        tmp_path / "authors.pth",
        model={f"module.{name}": value for name, value in to_reference(raw.state_dict()).items()},
        model_ema=to_reference(average.state_dict()),
    )
    x = torch.randn(1, 3, 32, 32)
    for weights, model in ((None, average), ("model", raw), ("ema", average)):
        out = tmp_path / f"out-{weights}"
        main(["convert", str(tmp_path / "authors.pth"), str(out), *(["--weights", weights] if weights else [])])
        assert f'timm.create_model("local-dir:{out}", pretrained=True)' in capsys.readouterr().out
        assert torch.equal(load(out)(x), model(x))
    main(["convert", str(tmp_path / "out-model"), str(tmp_path / "back.pth")])
    back = torch.load(tmp_path / "back.pth")["model"]
    assert all(torch.equal(value, back[name]) for name, value in to_reference(raw.state_dict()).items())


def test_a_published_size_is_named_and_keeps_what_its_weights_hold(tmp_path):
    """Weights of XXS with RMSNorm, as the authors' comments on its size suggest."""
    model = timm.create_model("attnet_xxs", glu_norm=True, num_classes=7)
    save_file({name: value.half() for name, value in model.state_dict().items()}, tmp_path / "xxs.safetensors")
    facts = convert_attnet(tmp_path / "xxs.safetensors", tmp_path / "out", license="mit")
    assert facts["model"] == "attnet_xxs" and facts["layer scale"] == "no" and "True" in facts["RMSNorm"]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architecture"] == "attnet_xxs" and config["pretrained_cfg"]["license"] == "mit"
    assert config["model_args"]["glu_norm"] == [True] * 4 and "dims" not in config["model_args"]
    assert load_file(tmp_path / "out" / "model.safetensors")["head.fc.weight"].dtype == torch.float16


@pytest.mark.parametrize("hidden", [*range(1, 40), 170, 341, 853, 1024, 1365])
@pytest.mark.parametrize("dim", [2, 7, 64, 288])
def test_an_expansion_gives_the_hidden_channels(dim, hidden):
    assert int(2 * int(dim * expansion(dim, hidden)) / 3) == hidden


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head.scale": torch.ones(1)}, "not parameters of AttNet: head.scale"),
        ({"stages.2.7.norm_1.weight": torch.ones(16)}, "blocks of stage 2 must be numbered from 0 without gaps"),
        ({"stages.0.0.token_mixer.x_proj.weight": torch.ones(8, 8)}, "a 1×1 convolution is needed"),
        ({"stages.0.0.token_mixer.x_proj.weight": torch.ones(8, 9, 1, 1)}, r"value_proj.weight \(8, 9\), not \(8, 8\)"),
        ({"stages.1.0.norm_1.weight": None}, "stages.1.blocks.0.norm1.weight is missing"),
        ({"stages.1.0.norm_1.bias": None}, "stages.1.blocks.0.norm1.bias missing"),
        ({"stages.1.0.channel_mixer.fc1.bias": torch.ones(3)}, "an even number"),
    ],
)
def test_damaged_weights_are_named_and_nothing_is_left(change, message, tmp_path):
    state = {**to_reference(drawn().state_dict()), **change}
    save_file({name: value.clone() for name, value in state.items() if value is not None}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=message):
        convert_attnet(tmp_path / "w.safetensors", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["w.safetensors"]


def test_nothing_in_a_file_runs(tmp_path, capsys):
    class Payload:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'it-ran'}",)

    authors_file(tmp_path / "evil.pth", model=to_reference(drawn().state_dict()), lr_scheduler=Payload())
    with pytest.raises(SystemExit):
        main(["convert", str(tmp_path / "evil.pth"), str(tmp_path / "out")])
    assert "was refused: it holds posix.system" in capsys.readouterr().err
    assert not (tmp_path / "it-ran").exists() and not (tmp_path / "out").exists()


def test_options_of_other_models_are_refused(tmp_path, capsys):
    torch.save(to_reference(drawn().state_dict()), tmp_path / "model.pth")
    with pytest.raises(SystemExit):
        main(["convert", str(tmp_path / "model.pth"), str(tmp_path / "out"), "--vae", "none"])
    assert "vae: no option for an AttNet" in capsys.readouterr().err
    main(["convert", str(tmp_path / "model.pth"), str(tmp_path / "out")])
    for name, options, message in (
        ("back.zip", [], "ending of output='.zip'"),
        ("back.pth", ["--weights", "ema"], "weights: only apply when converting to a folder"),
    ):
        with pytest.raises(SystemExit):
            main(["convert", str(tmp_path / "out"), str(tmp_path / name), *options])
        assert message in capsys.readouterr().err


def test_weights_under_our_names_stay_as_they_are():
    state = drawn().state_dict()
    assert to_ours(state) is state
    with pytest.raises(ValueError, match="no weights of AttNet"):
        to_ours({"weight": torch.ones(1)})


@pytest.mark.parametrize("name", ["new.pth", "new.safetensors", "new"])
def test_a_full_disk_is_named_and_leaves_no_attnet(tmp_path, main_on_a_full_disk, name):
    torch.save({"model": to_reference(drawn().state_dict())}, tmp_path / "model.pth")
    convert_attnet(tmp_path / "model.pth", tmp_path / "folder")
    text = main_on_a_full_disk("convert", tmp_path / ("model.pth" if name == "new" else "folder"), tmp_path / name)
    assert text.splitlines()[-1].startswith(f"sit-atconv: error: {tmp_path / name} cannot be written: ")
    assert {path.name for path in tmp_path.iterdir()} == {"folder", "model.pth"}
