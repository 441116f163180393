"""What `import tljupyter` costs beyond an empty interpreter, and that it does not load torch."""

import subprocess
import sys
import time

from tests.bench import Options, Row


def measure(options: Options) -> list[Row]:
    seconds = best_time("import tljupyter") - best_time("pass")
    heavy = "import sys, tljupyter; print(len({'torch', 'numpy', 'pandas', 'sklearn'} & set(sys.modules)))"
    loaded = int(subprocess.run([sys.executable, "-c", heavy], capture_output=True, check=True).stdout)
    return [
        Row(
            "import tljupyter",
            max(seconds, 0.0),
            "s",
            at_most=0.3,
            note="best of 5, interpreter start taken off",
        ),
        Row("of torch, numpy, pandas, sklearn loaded by it", loaded, "", at_most=0),
    ]


def best_time(statement: str, times: int = 5) -> float:
    "Shortest wall time of a fresh interpreter that runs `statement`."
    found = []
    for _ in range(times):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", statement], check=True)
        found.append(time.perf_counter() - start)
    return min(found)
