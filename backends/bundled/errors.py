"""What can go wrong in the recipe, as one tree.

RecipeError
├── CorpusError      a corpus file is missing, cut short or not what it should be
├── TokenizerError   a tokenizer does not fit the recipe
├── CheckpointError  a checkpoint is missing or belongs to another run
└── ExportError      a model folder is missing or does not fit the recipe
"""


class RecipeError(Exception):
    """Something the recipe was given cannot be used; the message says what to do."""


class CorpusError(RecipeError):
    """A corpus file is missing, cut short or not what it should be."""


class TokenizerError(RecipeError):
    """A tokenizer does not fit the recipe."""


class CheckpointError(RecipeError):
    """A checkpoint is missing or belongs to another run."""


class ExportError(RecipeError):
    """A model folder is missing or does not fit the recipe."""
