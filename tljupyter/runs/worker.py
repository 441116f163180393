"""The process behind a live training: `python -m tljupyter.runs.worker FOLDER`."""

# A plain file, not made from a notebook. It runs `tljupyter work FOLDER`, by name and not by import: the command lies
# above this room, and knows how a model is written down for others.

import runpy
import sys

if __name__ == "__main__":
    sys.argv[:] = ["tljupyter", "work", *sys.argv[1:]]
    runpy.run_module("tljupyter", run_name="__main__")
