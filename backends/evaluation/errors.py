"""What can go wrong in an evaluation.

EvaluationError     it failed: a target does not answer, a packaged suite is damaged (exit code 1)
└── UsageError      what was asked for cannot be done: wrong suite, bad file (exit code 2)
"""


class EvaluationError(Exception):
    """Base of all errors of an evaluation. The message says what, which and what to do."""


class UsageError(EvaluationError):
    """The command line, or a file that it names, is wrong."""
