"""The recipes that ship: every setting is known, and says what the paper says where it is the paper's."""

from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file

from modeling_albef_amc import AlbefModel
from tests.conftest import tiny_config
from trainer.amc_config import AmcConfig
from trainer.arguments import DataArguments, ModelArguments, parse_arguments

CONFIGS = Path(__file__).parents[1] / "trainer" / "configs"


def test_the_papers_recipe():
    model, data, args = parse_arguments(
        ModelArguments, DataArguments, AmcConfig, arguments=[str(CONFIGS / "albef_amc_vg.yaml")]
    )
    assert (args.learning_rate, args.weight_decay, args.warmup_steps) == (1e-5, 0.02, 2000)
    assert args.lr_scheduler_kwargs == {"min_lr_rate": 0.1, "warmup_lr_rate": 0.1}  # 1e-6 on both sides
    assert args.per_device_train_batch_size * 8 * args.gradient_accumulation_steps == 512
    assert (args.amc_mean_weight, args.amc_max_weight) == (0.2, 0.8)
    assert (args.amc_margin_mean, args.amc_margin_max, args.amc_reduction) == (0.1, 0.5, "example")
    assert (data.flip, data.gray, data.color_jitter, data.box_choice) == (0.5, 0.2, 0.5, "random")
    assert (model.image_size, data.max_text_length, data.mask_size) == (256, 25, 256)


@pytest.mark.parametrize("path", sorted((CONFIGS / "accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_takes_its_configurations(path):
    config = load_config_from_file(str(path))
    assert config.num_processes == {"one_gpu": 1, "two_nodes": 16}.get(path.stem, 8)
    if path.stem == "fsdp":
        layers = {type(module).__name__ for module in AlbefModel(tiny_config()).modules()}
        assert config.fsdp_config["fsdp_transformer_layer_cls_to_wrap"] in layers
