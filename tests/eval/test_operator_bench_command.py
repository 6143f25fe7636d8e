"""eval/operator_bench.py as a command: what is run and reported, and what is refused."""

import operator_bench
import pytest


def test_command(capsys):
    operator_bench.main(["--shapes", "[[2, 4, 64]]", "--rounds", "2"])
    out = capsys.readouterr().out
    assert out.count("| planes | ") == out.count("| depthwise_conv | ") == 2
    assert out.count("| F.linear | ") == out.count("| linear | ") == 2
    assert out.count("| SA | ") == out.count("| ATConv | ") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shapes", "[[1, 5, 64]]"], "N a square"),
        (["--shapes", "[[1, 4, 65]]"], "C=65 must be a multiple of 64 or 72"),
        (["--rounds", "0"], "rounds=0 must be"),
        (["--dtype", "int8"], "dtype='int8'"),
        (["--device", "tpu"], "device='tpu'"),
    ],
)
def test_arguments_that_cannot_be_used(arguments, message, capsys):
    with pytest.raises(SystemExit):
        operator_bench.main(arguments)
    assert message in capsys.readouterr().err
