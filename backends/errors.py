"""What can go wrong in a backend.

BackendError
├── InvalidRequestError        the request itself is wrong (400)
│   └── ContextLengthError     prompt and answer cannot fit the context (400)
├── BackendUnavailableError    not reachable, not ready, refused the connection (503)
│   └── BackendOverloadedError its queue is full, it said 503 (503, retry_after_s)
│       └── BackendRateLimitedError it said 429: well, and asked too much (503, retry_after_s)
├── BackendTimeoutError        no answer in time (504)
├── BackendStreamError         it broke off in the middle of an answer (502)
├── BackendResponseError       it answered something that is no OpenAI response, or a 5xx (502)
└── ModelLoadError             a model folder cannot be served (start-up)
"""


class BackendError(Exception):
    """Base of all errors raised by a backend. The message says what, which and what to do."""

    def __init__(self, message: str, *, backend: str = "", param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.backend = backend
        self.param = param


class InvalidRequestError(BackendError):
    """The request can never be answered as it is; `param` names the field."""


class ContextLengthError(InvalidRequestError):
    """Prompt plus answer exceed the model's context or the KV cache."""


class BackendUnavailableError(BackendError):
    """The backend cannot be reached or is not ready."""


class BackendOverloadedError(BackendUnavailableError):
    """The backend refuses more work for now."""

    def __init__(self, message: str, *, backend: str = "", retry_after_s: float = 1.0) -> None:
        super().__init__(message, backend=backend)
        self.retry_after_s = retry_after_s


class BackendRateLimitedError(BackendOverloadedError):
    """The backend is well, and wants no more requests for `retry_after_s`."""


class BackendTimeoutError(BackendError):
    """The backend did not answer, or fell silent, for longer than allowed."""


class BackendStreamError(BackendError):
    """The backend broke off in the middle of a streamed answer."""


class BackendResponseError(BackendError):
    """The backend's answer is not an OpenAI response; `status` is its HTTP status."""

    def __init__(self, message: str, *, backend: str = "", status: int = 502) -> None:
        super().__init__(message, backend=backend)
        self.status = status


class ModelLoadError(BackendError):
    """A model folder is missing something, or something in it is wrong."""
