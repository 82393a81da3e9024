"""What goes wrong and is the visitor's to know."""


class VisitorError(ValueError):
    """A sentence for the visitor: what is wrong, and what to do."""
