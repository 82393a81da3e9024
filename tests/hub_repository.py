"""What the Hub of `hub_server.py` keeps, and the rules that it holds its users to."""

import hashlib
import json
import re
from dataclasses import dataclass, field

# What a new repository's .gitattributes says.
LFS_SUFFIXES = ".safetensors", ".parquet", ".png", ".bin", ".pt", ".pth"
LFS_SIZE = 10_000_000


@dataclass
class Repo:
    """One repository: its commits, oldest first, each the files that it has: path → SHA-256 of their bytes."""

    kind: str
    name: str
    private: bool = False
    commits: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)

    def commit(self, files: dict[str, str], message: str) -> str:
        content = json.dumps([self.kind, self.name, len(self.commits), files, message], sort_keys=True)
        self.commits.append((hashlib.sha1(content.encode()).hexdigest(), files))
        self.messages.append(message)
        return self.commits[-1][0]

    def at(self, revision: str) -> tuple[str, dict[str, str]] | None:
        """(commit, files) of a revision; None where there is none such."""
        if revision == "main":
            return self.commits[-1]
        return next((commit for commit in self.commits if commit[0] == revision), None)


def is_lfs(path: str, size: int) -> bool:
    return size > 0 and (size >= LFS_SIZE or path.endswith(LFS_SUFFIXES))


def front_matter_errors(content: str) -> list[str]:
    """What is wrong with a card's metadata, as far as that can be told without a YAML parser."""
    match = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
    if match is None:
        return ["the card does not begin with metadata between two lines of ---"]
    keys = re.findall(r"^([^\s#-][^:]*):(?:\s|$)", match[1], re.MULTILINE)
    return [f"{key} is there twice" for key in set(keys) if keys.count(key) > 1]


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
