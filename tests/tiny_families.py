"""Until everybody imports it from there."""

from tests.helpers.models import *  # noqa: F403
