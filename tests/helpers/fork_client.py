"""Ask the fork server to run a console script. Pass on signals, and exit with the script's exit code.

`python -ISE fork_client.py SOCKET NAME ARGUMENT …` takes hardly longer than the start of Python, because this module
imports next to nothing.
"""

import _socket
import os
import signal
import sys

LENGTH_BYTES = 8
NUMBER_BYTES = 8


def main(address: str, arguments: list[str]) -> None:
    """Send the order, and end like the script: with the same exit code, or by the same signal."""
    server = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    server.connect(address)
    variables = [name + b"=" + value for name, value in os.environb.items()]
    folder = os.getcwdb()  # noqa: PTH109 - importing pathlib takes longer than the rest
    parts = [folder, str(len(arguments)).encode(), *map(os.fsencode, arguments), *variables]
    order = b"\0".join(parts)
    descriptors = b"".join(number.to_bytes(4, sys.byteorder) for number in range(3))
    server.sendmsg([len(order).to_bytes(LENGTH_BYTES, "big")], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, descriptors)])
    server.sendall(order)
    process = _receive_number(server)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda received, _frame: os.kill(process, received))
    # Close these descriptors here. Then only the script has them open, and its readers notice when it closes them.
    for descriptor in range(3):
        os.close(descriptor)
    exit_code = _receive_number(server)
    if exit_code < 0:
        if exit_code != -signal.SIGKILL:
            signal.signal(-exit_code, signal.SIG_DFL)
        os.kill(os.getpid(), -exit_code)
    os._exit(exit_code)


def _receive_number(server: _socket.socket) -> int:
    return int.from_bytes(server.recv(NUMBER_BYTES, _socket.MSG_WAITALL), "big", signed=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
