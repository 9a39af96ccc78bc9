"""What test_processes.py runs in each of two processes: several short runs, one after another."""

import json
import os
import signal
import sys
from pathlib import Path

from fastssl.train import pretrain
from fastssl.train.methods.simclr import SimCLR


def main() -> None:
    out, runs, victim = Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])
    if int(os.environ["RANK"]) == victim:
        SimCLR.after_step = lambda self, progress: os.kill(os.getpid(), signal.SIGKILL)
    for name, method, keywords in runs:
        pretrain(method, out=out / name, **keywords)


if __name__ == "__main__":
    main()
