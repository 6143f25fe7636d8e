"""The options of a run that learns from a trained model: a teacher, and a graft."""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..utils.checks import check_count, check_non_negative, check_positive
from ..utils.source_names import TEACHER

# Arguments of the transformer that make new mixers, which a graft may choose.
MIXER_ARGUMENTS = (
    "kernel_size",
    "kernel_activation",
    "kernel_pool",
    "kernel_dilation",
    "channel_gate",
    "average_branch",
    "kernel_groups",
    "attention_pool",
)
AUTO = "auto:"


@dataclass
class TeacherConfig:
    """Teacher and graft

    Args:
        teacher: a pipeline folder whose model, of the same classes and the same VAE, gives the outputs that are learnt;
            with objective meanflow, the velocities. If null, they are those of the data.
        teacher_weight: weight of the error against the teacher in the loss of a flow.
        flow_weight: weight of the error against the data in the loss of a flow that has a teacher.
        teacher_guidance_scale: scale of classifier-free guidance of the outputs that a flow learns from its teacher,
            which then need none in sampling; 1 for none.
        graft_init: where --mixer replaces the self-attention of init_from, the new mixer starts with the weights that
            they have in common, such as the projections of values and outputs (values), or anew (fresh).
        graft_steps: number of first updates in which each new mixer alone learns what the self-attention said that it
            replaces. The optimizer and the schedule of the learning rate start over after them.
    """

    teacher: str | None = None
    teacher_weight: float = 1.0
    flow_weight: float = 0.0
    teacher_guidance_scale: float = 1.0
    graft_init: Literal["values", "fresh"] = "values"
    graft_steps: int = 0


DEFAULTS = {each.name: each.default for each in dataclasses.fields(TeacherConfig)}


def check_teacher(options: Mapping[str, Any]) -> None:
    """Check the options of a run, by name.

    Raises:
        ValueError: for an option that has no effect in this run, or a value out of range.
    """
    if options["data"].startswith(TEACHER) and options["teacher"] is None and options["init_from"] is None:
        raise ValueError(f"data={options['data']!r} is drawn by a trained model; give --teacher or --init_from")
    for name in ("teacher_weight", "flow_weight"):
        check_non_negative(name, options[name])
    check_positive("teacher_guidance_scale", options["teacher_guidance_scale"])
    of_flow = [
        name for name in ("teacher_weight", "flow_weight", "teacher_guidance_scale") if options[name] != DEFAULTS[name]
    ]
    if of_flow and options["objective"] == "meanflow":
        remedy = "use --meanflow_guidance_scale" if of_flow[0] == "teacher_guidance_scale" else "leave it out"
        raise ValueError(f"{of_flow[0]}={options[of_flow[0]]!r} is for --objective flow; {remedy}")
    if of_flow and options["teacher"] is None:
        raise ValueError(f"{of_flow[0]}={options[of_flow[0]]!r} needs a teacher; give --teacher, or leave it out")
    if options["teacher"] is not None and options["teacher_weight"] == 0:
        raise ValueError("teacher_weight=0: nothing is learnt from the teacher; leave --teacher out")
    if options["teacher_guidance_scale"] != 1 and options["flow_weight"]:
        raise ValueError(
            f"flow_weight={options['flow_weight']}: the data are not guided, but the teacher is, with "
            f"teacher_guidance_scale={options['teacher_guidance_scale']}; leave one of them out"
        )
    is_graft = options["init_from"] is not None and options["mixer"] is not None
    for name in ("graft_init", "graft_steps"):
        if options[name] != DEFAULTS[name] and not is_graft:
            raise ValueError(f"{name}={options[name]!r} is for a graft; give --init_from and --mixer, or leave it out")
    _check_graft_steps(options)


def _check_graft_steps(options: Mapping[str, Any]) -> None:
    steps = options["graft_steps"]
    check_count("graft_steps", steps, least=0)
    if not steps:
        return
    is_one_step = options["dry_run"] and options["max_steps"] == 1  # what a dry run makes of any number of steps
    if steps >= options["max_steps"] and not is_one_step:
        raise ValueError(
            f"graft_steps={steps} must leave some of max_steps={options['max_steps']} for the training of the whole "
            "model; lower graft_steps, or raise max_steps"
        )
    for name, off in (("repa", None), ("weight_decay", 0)):
        if options[name] != off:
            raise ValueError(
                f"{name}={options[name]!r}: the steps of a graft train the new layers alone; leave out --{name} or "
                "--graft_steps"
            )


def automatic_blocks(mixer: str | list[str] | None) -> int | None:
    """The number of blocks N of a mixer "auto:N", None for another mixer.

    Raises:
        ValueError: if N is no number of blocks.
    """
    if not isinstance(mixer, str) or not mixer.startswith(AUTO):
        return None
    number = mixer.removeprefix(AUTO)
    if not re.fullmatch("[0-9]{1,9}", number):
        raise ValueError(f"mixer={mixer!r}: write the number of blocks that ATConv takes over, such as auto:3")
    check_count(f"mixer={mixer!r}: its number of blocks", int(number))
    return int(number)
