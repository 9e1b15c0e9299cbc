# SPDX-License-Identifier: MIT
"""A server and two clients that are started apart; the server is killed, and what has a name stays.

No file, no address, no order of starting: whoever is first makes the region. As long as one process has it,
what the others named is kept (`vmalloc hold NAME` is such a process).
Arrays need numpy: pip install 'vmalloc[numpy]'.
"""

import importlib.util
import os
import signal
import subprocess
import sys

import vmalloc

if not importlib.util.find_spec("numpy"):
    raise SystemExit("arrays need numpy: pip install 'vmalloc[numpy]'")

SERVER = """
import sys, time, vmalloc
region = vmalloc.Region.open_or_create(sys.argv[1], "64M")
region["model"] = region.full(1_000_000, 0.5)
print("serving", flush=True)
time.sleep(600)
"""
CLIENT = """
import sys, vmalloc
region = vmalloc.Region.open_or_create(sys.argv[1], "64M")
print(region["model"].sum(), flush=True)
sys.stdin.readline()
print(region["model"].sum(), flush=True)
"""


def start(code: str, name: str) -> "subprocess.Popen[str]":
    words = [sys.executable, "-c", code, name]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


name = f"service-{os.getpid()}"
server = start(SERVER, name)
assert server.stdout is not None
print(server.stdout.readline().strip())
clients = [start(CLIENT, name) for _ in range(2)]
for client in clients:
    assert client.stdout is not None
    print(client.stdout.readline().strip())
server.send_signal(signal.SIGKILL)
server.wait()
print("the server was killed")
region = vmalloc.Region.attach(name)  # the clients have it
for client in clients:
    print(client.communicate("\n")[0].strip())
print(region.names())
