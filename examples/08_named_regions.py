# SPDX-License-Identifier: MIT
"""An unrelated program of the same user attaches a region by its name; there is no file.

Arrays need numpy: pip install 'vmalloc[numpy]'.
"""

import importlib.util
import os
import subprocess
import sys

import vmalloc

if not importlib.util.find_spec("numpy"):
    raise SystemExit("arrays need numpy: pip install 'vmalloc[numpy]'")

OTHER = """
import sys, vmalloc
region = vmalloc.Region.attach(sys.argv[1])
region["frame"][:] = 7
region["answer"] = region.array([40, 2])
"""

name = f"frames-{os.getpid()}"  # "frames" would do if only one program has such a region
region = vmalloc.Region("64M", name=name)
region["frame"] = region.zeros((1080, 1920, 3), "u1")
subprocess.run([sys.executable, "-c", OTHER, name], check=True)
print(region["frame"][0, 0])  # [7 7 7]
print(region["answer"].sum())  # 42: what has a name stays when its maker ends
try:
    vmalloc.Region.attach("flames")
except vmalloc.RegionUnavailable as e:
    print(name in str(e))  # True: the message lists what is there
