"""`kleash label ARGUMENTS` with simulated people: two of them open a link, vote until no pair is left, and leave.

They choose the response that names more of the good things of tests/docs/hub.py. Run as a program in place of the
command, which would serve until it is stopped; the command itself is run as given, on a free port.
"""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # as a program, from another working directory
    sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from tests.docs.hub import GOOD

PEOPLE = 2


def main(arguments: list[str]) -> int:
    """Serve, vote, stop; the exit code is the server's."""
    from kleash.labels.store import Store

    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "kleash", *arguments, "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    link = server.stdout.readline()
    if not link.startswith("annotator"):
        return server.wait()
    print(link, end="")
    store = Store.open(arguments[arguments.index("--store") + 1])
    tokens = [store.invite().token for _ in range(PEOPLE)]
    store.close()
    try:
        votes = [_votes(port, token) for token in tokens]
        print(f"votes: {votes}", file=sys.stderr)
        server.send_signal(signal.SIGINT)
        return server.wait(20)
    finally:
        server.kill()


def _votes(port: int, token: str) -> int:
    """All votes of one person; their number."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:

        def ask(method: str, path: str, body: Any = None, **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            text = response.read()
            assert response.status < 400, text
            return response, text

        cookie = ask("GET", f"/join/{token}")[0].headers["set-cookie"].partition(";")[0]
        page = ask("GET", "/", cookie=cookie)[1].decode()
        headers = {"cookie": cookie, "x-csrf": page.split('data-csrf="')[1].partition('"')[0]}
        headers["content-type"] = "application/json"
        count = 0
        while pairs := json.loads(ask("GET", "/api/pairs?count=5", cookie=cookie)[1])["pairs"]:
            for pair in pairs:
                sides = pair["html"].partition('id="side-A"')[2].partition('id="side-B"')
                left, right = (sum(side.count(word) for word in GOOD) for side in (sides[0], sides[2]))
                choice = "tie" if left == right else "left" if left > right else "right"
                vote = {"key": f"{token[:8]}-{count:012d}", "assignment": pair["id"], "choice": choice}
                ask("POST", "/api/vote", vote, **headers)
                count += 1
        return count


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
