"""Until everybody imports it from there."""

from tests.helpers.original_checkpoints import *  # noqa: F403
