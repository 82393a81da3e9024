"""Until everybody imports it from there."""

from tests.helpers.data import *  # noqa: F403
