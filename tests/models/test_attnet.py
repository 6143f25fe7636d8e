"""AttNet against the reference's numbers, and as a model of timm: what timm's own tests demand of every model."""

import copy
import json

import pytest
import timm
import torch
from timm.models import group_parameters
from torch import nn

import sit_atconv
from sit_atconv.models.attnet import AttNet, checkpoint_filter_fn
from sit_atconv.models.attnet_blocks import Block, GluNorm
from sit_atconv.models.attnet_names import to_ours, to_reference
from sit_atconv.models.attnet_variants import VARIANTS, variant_arguments
from sit_atconv.models.macs import count_operations

# Table of the reference: parameters, and GMACs at 224 pixels with the projection of ATConv ahead of its pooling.
COSTS = {
    "attnet_xxs": (2_853_556, 0.531),
    "attnet_xs": (5_554_902, 1.004),
    "attnet_s": (7_681_316, 1.327),
    "attnet_t1": (13_714_900, 2.421),
    "attnet_t2": (27_010_782, 5.089),
    "attnet_t3": (49_175_682, 9.382),
    "attnet_t4": (87_320_214, 16.725),
}
STRIDES = (4, 8, 16, 32)
assert sit_atconv  # timm knows the models because of this import


def reference_model(entry, state) -> AttNet:
    model = AttNet(**entry["constructor"])
    model.load_state_dict(checkpoint_filter_fn(state, model))
    return model.train(entry["mode"] == "train")


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_outputs_and_maps_equal_the_references(attnet_files, assert_close):
    for entry, tensors, state in attnet_files("model"):
        model = reference_model(entry, state)
        if entry["mode"] == "eval":
            with torch.no_grad():
                features, maps = model.forward_intermediates(tensors["in.x"])
                logits = model.forward_head(features)
                assert_close(model.forward_head(features, pre_logits=True), tensors["out.pre_logits"], 2e-5)
            for i, stage in enumerate(maps):
                assert_close(stage, tensors[f"out.stage{i}"], 1e-4)
            torch.testing.assert_close(logits, tensors["out.logits"], rtol=0, atol=2e-5)
        exact = model.double()(tensors["in.x"].double())
        torch.testing.assert_close(exact, tensors["out64.logits"], rtol=0, atol=1e-10)


def test_training_equals_the_references(attnet_files, assert_close):
    """Gradients of every parameter, the image's, and the buffers of BatchNorm after one step."""
    (case,) = [case for case in attnet_files("model") if case[0]["mode"] == "train"]
    entry, tensors, state = case
    model = reference_model(entry, state)
    x = tensors["in.x"].clone().requires_grad_()
    loss = (model(x) * tensors["in.cotangent"]).sum()
    loss.backward()
    assert_close(loss, tensors["out.loss"], 1e-4)
    ours = to_reference({name: parameter.grad for name, parameter in model.named_parameters()})
    expected = {key.removeprefix("grad."): value for key, value in tensors.items() if key.startswith("grad.")}
    assert set(ours) <= set(expected)
    for name, gradient in ours.items():
        assert_close(gradient, expected[name], 1e-4)
    for name in expected.keys() - ours.keys():
        assert_close(x.grad, expected[name], 1e-4)
    buffers = to_reference(dict(model.named_buffers()))
    after = {key.removeprefix("after."): value for key, value in tensors.items() if key.startswith("after.")}
    assert set(after) == set(buffers)
    for name, value in after.items():
        assert_close(buffers[name], value, 1e-5)


def test_a_block_equals_the_references(attnet_files, assert_close):
    for entry, tensors, state in attnet_files("Block"):
        arguments = dict(entry["constructor"])
        dim, rate = arguments.pop("dim"), arguments.pop("exp_rate")
        block = Block(dim, int(2 * int(dim * rate) / 3), **arguments).eval()
        names = {f"stages.0.0.{name}": value for name, value in state.items()}
        ours = to_ours({"downsample_layers.0.0.0.weight": torch.zeros(1), **names})
        block.load_state_dict(
            {
                name.removeprefix("stages.0.blocks.0."): value
                for name, value in ours.items()
                if name.startswith("stages")
            }
        )
        x = tensors["in.x"].permute(0, 2, 3, 1)
        with torch.no_grad():
            y = block(x)
            assert_close(y.permute(0, 3, 1, 2), tensors["out.block"], 1e-5)
            B, H, W, C = x.shape
            mixed = block.token_mixer(block.norm1(x).reshape(B, H * W, C), (H, W)).reshape(B, H, W, C)
            assert_close(mixed.permute(0, 3, 1, 2), tensors["out.token_mixer"], 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_costs(name):
    with torch.device("meta"):
        model = timm.create_model(name).eval()
    parameters, gmacs = COSTS[name]
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    macs = sum(count for count, _ in count_operations(model, torch.empty(1, 3, 224, 224))) / 2
    for stage, info in zip(model.stages, model.feature_info, strict=True):
        tokens, dim = (224 // info["reduction"]) ** 2, info["num_chs"]
        macs += len(stage.blocks) * (tokens - 9) * dim**2  # the reference projects every token, and pools then
    assert round(macs / 1e9, 3) == gmacs


def test_names_and_shapes_of_t2(parity_dir):
    file = parity_dir / "attnet" / "attnet_T2_shapes.json"
    if not file.is_file():
        pytest.skip("no reference numbers")
    with torch.device("meta"):
        model = timm.create_model("attnet_t2")
    expected = {name: tuple(shape) for name, shape in json.loads(file.read_text())["shapes"].items()}
    reference = to_reference(model.state_dict())
    assert {name: tuple(tensor.shape) for name, tensor in reference.items()} == expected
    assert {name: tensor.shape for name, tensor in to_ours(reference).items()} == {
        name: tensor.shape for name, tensor in model.state_dict().items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_default_configuration(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    config = model.default_cfg
    assert config["tag"] == "untrained"
    assert config["pool_size"] == (7, 7)  # of a 224-pixel image
    assert model.forward_features(torch.empty(1, 3, 224, 224, device="meta")).shape == (1, model.num_features, 7, 7)
    modules, state = dict(model.named_modules()), model.state_dict()
    assert modules[config["first_conv"]].in_channels == 3
    assert modules[config["classifier"]] is model.get_classifier()
    assert state[f"{config['classifier']}.weight"].shape == (1000, model.num_features)
    model.reset_classifier(0)
    assert f"{config['classifier']}.weight" not in model.state_dict()
    with pytest.raises(RuntimeError, match="No pretrained weights"):
        timm.create_model(name, pretrained=True)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (33, 50), (64, 64)])
def test_any_size_and_every_gradient(size, tiny_attnet):
    model = tiny_attnet()
    y = model(images(3, 3, *size))
    assert y.shape == (3, 5)
    y.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"no gradient for {name}"
        assert parameter.grad.isfinite().all()


def test_the_head(tiny_attnet, assert_close):
    model, x = tiny_attnet(), images(2, 3, 70, 40)
    features = model.forward_features(x)
    assert features.shape == (2, model.num_features, 3, 2)
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (2, model.head_hidden_size)
    assert_close(model.get_classifier()(pooled), model(x), 1e-6)
    for pool, shape in (("max", (2, 7)), ("", (2, 7, 3, 2))):
        model.reset_classifier(7, pool)
        assert model(x).shape == shape and model.num_classes == 7
    model.reset_classifier(0, "avg")
    assert_close(model(x), pooled, 1e-6)
    assert tiny_attnet(num_classes=0)(x).shape == (2, 20)


def test_intermediates(tiny_attnet):
    model, x = tiny_attnet(), images(2, 3, 64, 96)
    features, maps = model.forward_intermediates(x)
    assert torch.equal(features, model.forward_features(x)) and torch.equal(features, maps[-1])
    for info, stride, stage in zip(model.feature_info, STRIDES, maps, strict=True):
        assert info["reduction"] == stride
        assert stage.shape == (2, info["num_chs"], 64 // stride, 96 // stride)
    chosen = model.forward_intermediates(x, [0, -2], stop_early=True, intermediates_only=True)
    assert torch.equal(chosen[0], maps[0]) and torch.equal(chosen[1], maps[2]) and len(chosen) == 2
    with pytest.raises(ValueError, match="output_fmt='NHWC'"):
        model.forward_intermediates(x, output_fmt="NHWC")
    pruned = copy.deepcopy(model)
    assert pruned.prune_intermediate_layers([0, 1]) == [0, 1]
    assert len(pruned.stages) == 2 and pruned.num_features == 12
    assert torch.equal(pruned(x), maps[1].mean((2, 3)))


@pytest.mark.parametrize("feature_cls", [None, "list", "dict", "hook", "getter", "fx"])
def test_features_only(feature_cls, tiny_attnet):
    model, x = tiny_attnet(), images(2, 3, 64, 96)
    maps = model.forward_intermediates(x, intermediates_only=True)
    for indices in ((0, 1, 2, 3), (1, 2), (-1,)):
        backbone = tiny_attnet(features_only=True, feature_cls=feature_cls, out_indices=indices)
        stem_and_stages = {name.replace("stages_", "stages."): value for name, value in backbone.state_dict().items()}
        own = model.state_dict()
        loaded = {
            key: own[name] for key, name in zip(backbone.state_dict(), stem_and_stages, strict=True) if name in own
        }
        backbone.load_state_dict(loaded, strict=False)
        if feature_cls is None or feature_cls == "list":
            assert len(loaded) == len(stem_and_stages)
            for found, i in zip(backbone(x), indices, strict=True):
                assert torch.equal(found, maps[i])
        found = backbone(x)
        found = list(found.values()) if isinstance(found, dict) else found
        assert [tuple(each.shape) for each in found] == [tuple(maps[i].shape) for i in indices]
        assert backbone.feature_info.reduction() == [STRIDES[i] for i in indices]
        assert backbone.feature_info.channels() == [maps[i].shape[1] for i in indices]


@pytest.mark.parametrize("indices", [(0, 4), (-5,), 5, 0, (), (1.5,)])
def test_maps_that_do_not_exist_are_refused(indices, tiny_attnet):
    with pytest.raises(ValueError, match=r"out_indices=.* is out of range: AttNet has 4 maps, 0 to 3"):
        tiny_attnet(features_only=True, out_indices=indices)


@pytest.mark.parametrize("output_stride", [8, 16])
def test_a_dilated_network_is_the_same_one_on_a_finer_grid(output_stride, tiny_attnet, assert_close):
    """With kernels that do not depend on the image, its maps hold those of stride 32 at every second place."""
    coarse, fine = tiny_attnet(), tiny_attnet(output_stride=output_stride)
    for block in (module for module in coarse.modules() if isinstance(module, Block)):
        block.token_mixer.kernel_proj.weight.data.zero_()
    fine.load_state_dict(coarse.state_dict())
    x = images(2, 3, 96, 64)
    maps = [model.double().forward_intermediates(x.double(), intermediates_only=True) for model in (coarse, fine)]
    for i, (expected, found) in enumerate(zip(*maps, strict=True)):
        step = STRIDES[i] // min(STRIDES[i], output_stride)
        assert fine.feature_info[i]["reduction"] == min(STRIDES[i], output_stride)
        assert_close(found[:, :, ::step, ::step], expected, 1e-10)


@pytest.mark.parametrize("features_only", [False, True])
def test_torchscript(features_only, tiny_attnet, assert_close):
    for arguments in ({}, dict(act_layer="SiLU", conv_bias=False, glu_norm_rule="variance", use_layer_scale=False)):
        model = tiny_attnet(features_only=features_only, **arguments)
        scripted = torch.jit.script(model)
        for shape in ((2, 3, 64, 64), (1, 3, 33, 50)):
            expected, found = model(images(*shape)), scripted(images(*shape))
            for y, z in zip(expected, found, strict=True) if features_only else ((expected, found),):
                assert_close(z, y, 1e-5)


def test_fx(tiny_attnet, assert_close):
    from timm.models._features_fx import GraphExtractNet

    model, x = tiny_attnet(), images(2, 3, 64, 64)
    traced = GraphExtractNet(model, ["head.fc"])
    assert_close(traced(x), model(x), 1e-6)
    traced.train()(x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in traced.parameters())


@pytest.mark.slow
def test_compiles_whole(tiny_attnet, assert_close):
    model = tiny_attnet(depths=(1, 1, 1, 1))
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=True)
    for shape in ((2, 3, 64, 40), (1, 3, 96, 96)):
        assert_close(compiled(images(*shape)), model(images(*shape)), 1e-5)


def exported(model: nn.Module) -> torch.export.ExportedProgram:
    sizes = {0: torch.export.Dim("B", max=64), 2: torch.export.Dim("H", min=33), 3: torch.export.Dim("W", min=33)}
    return torch.export.export(model, (images(2, 3, 64, 96),), dynamic_shapes=(sizes,), strict=False)


@pytest.mark.slow
def test_export_leaves_batch_and_size_open(tiny_attnet, assert_close):
    model = tiny_attnet(depths=(1, 1, 1, 1))
    program = exported(model).module()
    for shape in ((1, 3, 33, 77), (3, 3, 100, 64)):
        assert_close(program(images(*shape)), model(images(*shape)), 1e-5)


@pytest.mark.slow
def test_onnx(tiny_attnet, tmp_path, assert_close):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model = tiny_attnet(depths=(1, 1, 1, 1))
    torch.onnx.export(exported(model), dynamo=True, input_names=["x"], verbose=False).save(str(tmp_path / "model.onnx"))
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    for shape in ((1, 3, 33, 77), (3, 3, 100, 64)):
        (found,) = session.run(None, {"x": images(*shape).numpy()})
        assert_close(torch.from_numpy(found), model(images(*shape)), 1e-4)


def test_channels_last_stays(tiny_attnet, assert_close):
    model, x = tiny_attnet(), images(2, 3, 64, 96)
    expected = model.forward_intermediates(x, intermediates_only=True)
    model = model.to(memory_format=torch.channels_last)
    copied = []
    hooks = [
        block.register_forward_pre_hook(lambda _, args: copied.append(not args[0].is_contiguous()))
        for stage in model.stages
        for block in stage.blocks
    ]
    found = model.forward_intermediates(x.to(memory_format=torch.channels_last), intermediates_only=True)
    assert len(copied) == len(hooks) and not any(copied)
    for y, z in zip(expected, found, strict=True):
        assert z.is_contiguous(memory_format=torch.channels_last)
        assert_close(z, y, 1e-5)


def test_bfloat16(tiny_attnet, assert_close):
    model, x = tiny_attnet(), images(2, 3, 64, 64)
    expected = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(model(x), expected, 0.1)
    low = model.bfloat16()(x.bfloat16())
    assert low.dtype == torch.bfloat16
    assert_close(low, expected, 0.1)


def test_gradient_checkpointing_changes_nothing(tiny_attnet):
    gradients = []
    for enable in (False, True):
        model = tiny_attnet(drop_path_rate=0.5).train()
        model.set_grad_checkpointing(enable)
        torch.manual_seed(0)
        model(images(4, 3, 64, 64)).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for kept, computed_again in zip(*gradients, strict=True):
        torch.testing.assert_close(computed_again, kept)


def test_drop_path_grows_over_the_blocks_and_leaves_branches_out(tiny_attnet):
    model = tiny_attnet(depths=(1, 2, 3, 1), drop_path_rate=0.6)
    blocks = [block for stage in model.stages for block in stage.blocks]
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in blocks]
    assert rates == torch.linspace(0, 0.6, 7).tolist()
    assert rates == [getattr(block.drop_path2, "drop_prob", 0.0) for block in blocks]
    block, x = blocks[-1].train(), images(1, 3, 3, 20)
    block.drop_path1.drop_prob = block.drop_path2.drop_prob = 0.5
    torch.manual_seed(0)
    outcomes = {(bool((y := block(x)).equal(x)), round(y.sum().item(), 3)) for _ in range(60)}
    assert len(outcomes) == 4  # both branches, either one, none
    assert True in {unchanged for unchanged, _ in outcomes}


def test_groups_of_parameters(tiny_attnet):
    model = tiny_attnet()
    for coarse in (False, True):
        groups = group_parameters(model, model.group_matcher(coarse=coarse))
        assert sorted(name for names in groups.values() for name in names) == sorted(dict(model.named_parameters()))
        layer_of = {name: layer for layer, names in groups.items() for name in names}
        order = [layer_of["stem.conv1.weight"], layer_of["stages.0.blocks.0.norm1.weight"]]
        order += [layer_of["stages.3.blocks.0.gamma2"], layer_of["head.fc.weight"]]
        assert order == sorted(set(order))


def test_initial_values():
    model = AttNet(depths=(1, 1, 1, 1), dims=(16, 16, 16, 128), num_classes=3)
    for name, parameter in model.named_parameters():
        if name.endswith(("gamma1", "gamma2")):
            assert (parameter == 1e-6).all()
        elif parameter.ndim > 1:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.5), name
        else:
            assert (parameter == float(name.endswith("weight"))).all(), name


def test_the_older_rule_of_rmsnorm(assert_close):
    z = images(5, 7, 11).double()
    norm = GluNorm(11, "variance").double()
    norm.weight.data.uniform_(0.5, 1.5)
    centred = z - z.mean(-1, keepdim=True)
    expected = z / (centred.square().sum(-1, keepdim=True) / 10 + 1e-6).sqrt() * norm.weight
    assert_close(norm(z), expected, 1e-12)
    expected = z / (z.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight
    norm.rule = "rms"
    assert_close(norm(z), expected, 1e-12)


def test_weights_for_other_channels_and_classes(tiny_attnet):
    source = tiny_attnet()
    overlay = dict(state_dict=to_reference(source.state_dict()), num_classes=5)
    arguments = dict(depths=(1, 2, 1, 1), dims=(8, 12, 16, 20), pretrained_cfg_overlay=overlay, pretrained=True)
    model = timm.create_model("attnet_t2", in_chans=1, num_classes=2, **arguments)
    assert torch.equal(model.stem.conv1.weight, source.stem.conv1.weight.sum(1, keepdim=True))
    assert torch.equal(model.stages[2].blocks[0].gamma1, source.stages[2].blocks[0].gamma1)
    backbone = timm.create_model("attnet_t2", features_only=True, **arguments)
    x = images(1, 3, 40, 40)
    for found, expected in zip(backbone.eval()(x), source.forward_intermediates(x)[1], strict=True):
        assert torch.equal(found, expected)


def test_weights_of_another_variant_are_named():
    with torch.device("meta"):
        state = to_reference(timm.create_model("attnet_xs").state_dict())
        t2, xs, s = (timm.create_model(name) for name in ("attnet_t2", "attnet_xs", "attnet_s"))
        normed = timm.create_model("attnet_xs", glu_norm=True)
    assert checkpoint_filter_fn(state, xs).keys() == xs.state_dict().keys()
    for model, name in ((t2, "attnet_t2"), (s, "attnet_s")):
        with pytest.raises(ValueError, match=f"weights of attnet_xs, and the model is {name}"):
            checkpoint_filter_fn(state, model)
    with pytest.raises(ValueError, match=r"create it with glu_norm=\[True, True, True, True\]"):
        checkpoint_filter_fn(normed.state_dict(), xs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(depths=(1, 2)), "depths=.* has 2 values; AttNet has 4 stages"),
        (dict(depths=(1, 0, 1, 1)), "depths=0 must be a whole number"),
        (dict(kernel_sizes=4), "kernel_size=4 must be odd"),
        (dict(act_layer="ReLU"), "act_layer='ReLU' is not one of: GELU, SiLU"),
        (dict(output_stride=4), "output_stride=4 is not one of: 8, 16, 32"),
        (dict(drop_path_rate=1), r"drop_path_rate=1 must be in \[0, 1\)"),
        (dict(in_chans=0), "in_chans=0"),
        (dict(glu_norm_rule="l2"), "glu_norm_rule='l2'"),
        (dict(exp_rates=0.1), "without channels"),
    ],
)
def test_arguments_that_cannot_be_used_are_named(arguments, message, tiny_attnet):
    with pytest.raises(ValueError, match=message):
        tiny_attnet(**arguments)


@pytest.mark.parametrize("features_only", [False, True])
@pytest.mark.parametrize(
    ("shape", "message"),
    [((2, 1, 8, 8), "has 1 channels, the model takes 3"), ((2, 3, 0, 8), "has no pixels"), ((3, 8, 8), "has 3 axes")],
)
def test_images_that_cannot_be_used_are_named(shape, message, features_only, tiny_attnet):
    with pytest.raises(ValueError, match=message):
        tiny_attnet(features_only=features_only)(torch.zeros(shape))


@pytest.mark.parametrize("name", ["attnet_t5", "AttNet_T2", "attnet-t2", "atnet_t2"])
def test_unknown_variants_get_a_suggestion(name):
    with pytest.raises(ValueError, match=r"variant='.*' is no size of AttNet; did you mean .*attnet_t\d"):
        variant_arguments(name)
