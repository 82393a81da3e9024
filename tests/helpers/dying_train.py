"""train.py, one process of which is killed after a step: `DIES="RANK STEP [MARK]"`; once only, if it leaves a mark.

torchrun --nproc_per_node 2 tests/helpers/dying_train.py --dataset …
"""

import os
import signal
import sys
from pathlib import Path

from transformers import TrainerCallback

from trainer import training
from trainer.amc_trainer import AmcTrainer
from trainer.process_group import end_process_group

RANK, STEP, *MARK = os.environ["DIES"].split(" ")


class Die(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if os.environ["RANK"] == RANK and state.global_step == int(STEP) and not any(Path(m).exists() for m in MARK):
            for mark in MARK:
                Path(mark).touch()
            os.kill(os.getpid(), signal.SIGKILL)


class Mortal(AmcTrainer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.add_callback(Die())


if __name__ == "__main__":
    training.AmcTrainer = Mortal
    training.main(sys.argv[1:])
    end_process_group()
