"""What the older versions that the project runs on cannot do, see docs/versions.md."""

from importlib import metadata

import pytest
from packaging.version import Version

from modeling_albef_amc.families.auto import check_peft


def needs(requirement: str, what: str) -> pytest.MarkDecorator:
    """Skips a test, of `what`, where a package is older, as in "torch>=2.8"."""
    return pytest.mark.skipif(is_older(requirement), reason=f"{what} needs {requirement}")


def is_older(requirement: str) -> bool:
    """Whether the package that is installed is older than this, as in "torch>=2.8"."""
    package, version = requirement.split(">=")
    return Version(metadata.version(package)) < Version(version)


# Older ones look for the optimizer's state on "cpu:0", which torch does not know.
resumes_processes = needs("transformers>=5.18", "resuming several processes without accelerators")


def why_no_lora() -> str | None:
    """The end of the error that every use of LoRA gives here, where peft and transformers do not fit each other."""
    try:
        check_peft("LoRA needs")
    except ImportError as error:
        return str(error).splitlines()[-1]
    return None
