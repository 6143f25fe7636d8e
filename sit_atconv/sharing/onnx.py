"""Export the transformer as a graph for other runtimes: by torch.export, and from there to ONNX.

Batch size, height and width stay dynamic in both.

Shapes: B batch, C channels, (H, W) token grid.
"""

import copy
import importlib.util
from pathlib import Path

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from ..models.transformer_sit import SiTTransformer2DModel
from ..utils.files import check_new_file

INPUTS, OUTPUT = ("hidden_states", "timestep", "class_labels"), "sample"
END_INPUT = "end_timestep"  # a fourth input, of models that know the end of a step
MAX_BATCH, MAX_SIDE = 1024, 1024  # in samples, and in tokens along one side


class _Sample(nn.Module):
    """The transformer with a tensor as its output."""

    def __init__(self, transformer: SiTTransformer2DModel):
        super().__init__()
        self.transformer = transformer

    def forward(self, hidden_states, timestep, class_labels, end_timestep=None):
        options = dict(return_dict=False, end_timestep=end_timestep)
        return self.transformer(hidden_states, timestep, class_labels, **options)[0]


def input_names(transformer: SiTTransformer2DModel) -> tuple[str, ...]:
    """The names of the inputs of an exported transformer."""
    return INPUTS if transformer.config.step_conditioning == "none" else (*INPUTS, END_INPUT)


def export_transformer(transformer: SiTTransformer2DModel) -> ExportedProgram:
    """Export with torch.export: (x_t (B, C, height, width), t (B,), labels (B,)) -> (B, out_channels, height, width).

    A model of mean velocities has s (B,), the ends of the steps, as its fourth input.
    B may be any size from 1, height and width any from 2 patches, or 3 for an hourglass. The model is exported in eval
    mode and left as is. The program of a model on a GPU uses the operator `sit_atconv::depthwise_conv_v3`, so it needs
    this package to run.
    """
    p, config = transformer.config.patch_size, transformer.config
    batch = Dim("B", min=2, max=MAX_BATCH)
    # An exported program takes sizes of 1 to be constants, also that of the grid in the middle of an hourglass.
    height, width = (Dim(n, min=3 if config.middle_layers else 2, max=MAX_SIDE) for n in "HW")
    options = dict(device=transformer.device)
    example = (
        torch.zeros(2, config.in_channels, 4 * p, 6 * p, dtype=transformer.dtype, **options),
        torch.zeros(2, **options),
        torch.zeros(2, dtype=torch.long, **options),
        torch.zeros(2, **options),
    )[: len(input_names(transformer))]
    shapes = ({0: batch, 2: p * height, 3: p * width}, {0: batch}, {0: batch}, {0: batch})[: len(example)]
    training = transformer.training
    try:
        return torch.export.export(_Sample(transformer).eval(), example, dynamic_shapes=shapes, strict=False)
    finally:
        transformer.train(training)


def export_onnx(transformer: SiTTransformer2DModel, file: str | Path) -> None:
    """Write the transformer as an ONNX file, whose inputs and output are named as `input_names` and `OUTPUT` say.

    Raises:
        ValueError: if the file exists.
        ImportError: if onnx or onnxscript is not installed.
    """
    check_new_file("file", file)
    if missing := [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]:
        raise ImportError(f"ONNX export needs {' and '.join(missing)}: pip install 'sit-atconv[onnx]'")
    # On a CPU all operations are PyTorch's own; on a GPU the convolution is an operator of this package.
    program = export_transformer(copy.deepcopy(transformer).cpu())
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    exported = torch.onnx.export(
        program, dynamo=True, input_names=input_names(transformer), output_names=[OUTPUT], verbose=False
    )
    assert exported is not None  # it is only without `dynamo`
    exported.save(str(file))
