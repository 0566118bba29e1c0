"""Run as `python -I stock_worker.py`: plain diffusers in a process of its own, for one script after another.

Each line that it reads is a folder, a script and what its main is given; it answers with what went wrong, or null.
"""

import json
import os
import runpy
import sys

answers = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)  # what the libraries print is no answer
for line in sys.stdin:
    folder, script, *given = json.loads(line)
    os.chdir(folder)
    try:
        made = runpy.run_path(script)
        if "main" in made:
            made["main"](*given)
        ours = sorted(name for name in sys.modules if name.partition(".")[0] == "fewstep")
        wrong = f"it imported {ours[0]}" if ours else None
    except BaseException as error:
        wrong = repr(error)
    print(json.dumps(wrong), file=answers)
