"""Ports that are taken, and a missing Gradio, are known before anything is loaded."""

import importlib.util
import socket

import pytest

from sit_atconv.demo.address import check_address, check_gradio


def test_a_port_in_use_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ValueError, match=rf"port={port} of host='127.0.0.1' cannot be used: .*name another"):
            check_address("127.0.0.1", port)
        check_address("127.0.0.1", None)
    check_address("127.0.0.1", port)


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_ports_that_do_not_exist_are_refused(port):
    with pytest.raises(ValueError, match=f"port={port} must be between 1 and 65535"):
        check_address("127.0.0.1", port)


def test_a_host_elsewhere_is_refused():
    with pytest.raises(ValueError, match=r"host='192\.0\.2\.1' cannot be used"):
        check_address("192.0.2.1", None)


def test_a_missing_gradio_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'sit-atconv\[demo\]'"):
        check_gradio()
