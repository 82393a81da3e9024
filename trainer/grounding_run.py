"""What `evaluate_grounding.py` and `ground_dataset.py` share: a split grounded by all processes, and gone on with."""

import hashlib
import json
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import broadcast_object_list, gather_object
from transformers import PreTrainedModel, ProcessorMixin

from .blocks import Blocks, FileBlocks
from .evaluation import Grounder, ground
from .record_store import RecordStore, record_schema

# Entries of a configuration that change when a checkpoint is moved or saved again.
NOT_OF_THE_MODEL = "_name_or_path", "transformers_version"


@dataclass(frozen=True)
class RunOptions:
    """How a run goes about it; none of this changes the records by more than rounding.

    Args:
        batch_size: phrases a pass.
        num_workers: threads a process that read and prepare batches ahead, and that finish them.
        overwrite: start anew where records are there.
        shard: (i, n): take only every n-th block, from the i-th on, counted from 0; other machines take the others.
    """

    batch_size: int = 64
    num_workers: int = 2
    overwrite: bool = False
    shard: tuple[int, int] = (0, 1)


def make_accelerator(cpu: bool = False, bf16: bool = False) -> Accelerator:
    # One process may have to wait for another far longer than the ten minutes that are usual.
    patience = InitProcessGroupKwargs(timeout=timedelta(days=30))
    return Accelerator(cpu=cpu, mixed_precision="bf16" if bf16 else "no", kwargs_handlers=[patience])


def ground_split(
    grounder: Grounder,
    blocks: Blocks | FileBlocks,
    folder: Path,
    split: str,
    settings: dict[str, Any],
    options: RunOptions,
    name: str,
) -> tuple[RecordStore, float | None]:
    """Grounds what is missing of a split; all processes call it together.

    Args:
        settings: what the records depend on, apart from the data.
        name: of what is grounded, for the progress bar.

    Returns: the store, and pairs per second of this run, all processes together; None when nothing was missing.

    Raises:
        ValueError: the folder has records of other settings; a record cannot be used and the grounder is strict.
    """
    accelerator = grounder.accelerator
    store = RecordStore(folder, split, len(blocks), record_schema(grounder.protocol.metrics, grounder.heatmaps))
    missing: list[int] = []
    if accelerator.is_main_process:
        store.prepare({**settings, "data": blocks.fingerprint(), "blocks": len(blocks)}, options.overwrite)
        index, number = options.shard
        missing = [block for block in store.missing() if block % number == index]
    # All must share the same list, made before anyone writes.
    (missing,) = broadcast_object_list([missing])
    if accelerator.is_main_process and len(missing) < len(range(options.shard[0], len(blocks), options.shard[1])):
        print(f"{name}: going on; {len(missing)} of {len(blocks)} blocks are missing.")
    own = missing[accelerator.process_index :: accelerator.num_processes]
    processes = f" (process 1 of {accelerator.num_processes})" if accelerator.num_processes > 1 else ""
    description = f"{name}{processes}" if accelerator.is_main_process else None
    num_phrases, seconds = ground(grounder, blocks, own, store, options.batch_size, options.num_workers, description)
    accelerator.wait_for_everyone()
    work = gather_object([(num_phrases, seconds)])
    done = sum(phrases for phrases, _ in work)
    return store, done / max(seconds for _, seconds in work) if done else None


def model_settings(model: PreTrainedModel, processor: ProcessorMixin) -> dict[str, str]:
    """Hashes of the weights and of the processor, whatever they are called and wherever they are."""
    weights = hashlib.blake2b(digest_size=16)
    for name, tensor in model.state_dict().items():
        weights.update(name.encode())
        weights.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    config = {key: value for key, value in model.config.to_diff_dict().items() if key not in NOT_OF_THE_MODEL}
    weights.update(json.dumps(config, sort_keys=True, default=str).encode())
    prepared = hashlib.blake2b(digest_size=16)
    prepared.update(processor.image_processor.to_json_string().encode())
    prepared.update(processor.tokenizer.backend_tokenizer.to_str().encode())
    return {"model": weights.hexdigest(), "processor": prepared.hexdigest()}
