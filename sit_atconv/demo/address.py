"""Where the demo is served, and whether it can be: checked before PyTorch is imported and pipelines are loaded."""

import importlib.util
import socket


def check_gradio() -> None:
    """Raise ValueError unless Gradio is installed."""
    if importlib.util.find_spec("gradio") is None:
        raise ValueError("the demo needs Gradio: pip install 'sit-atconv[demo]'")


def check_address(host: str, port: int | None) -> None:
    """Check that a page can be served at a port of this machine; None stands for any free port.

    Raises:
        ValueError: if the port is taken or may not be used, or the host is not one of this machine.
    """
    if port is not None and not 1 <= port <= 65535:
        raise ValueError(f"port={port} must be between 1 and 65535, or left out for a free one")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as opened:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # ports of servers that just ended are free
            opened.bind(address)
    except socket.gaierror as error:
        raise ValueError(f"host={host!r} is not an address of this machine: {error.strerror}") from error
    except OSError as error:
        raise ValueError(
            f"port={port} of host={host!r} cannot be used: {error.strerror}; name another, or leave --port out for a "
            "free one"
        ) from error
