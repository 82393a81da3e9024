"""Trains a vision-language model with Attention Mask Consistency.

accelerate launch train.py trainer/configs/scenes_with_amc.yaml --model outputs/scenes/base
python train.py --help
"""

from trainer.process_group import run_script
from trainer.training import main

if __name__ == "__main__":
    run_script(main)
