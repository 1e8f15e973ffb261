"""What the gateway can refuse, and the one table that maps it to HTTP.

GatewayError
├── InvalidRequest            400 invalid_request_error
│   ├── ContextLengthExceeded 400 context_length_exceeded
│   ├── MaxCostExceeded       400 max_cost_exceeded
│   ├── RequestTooLarge       413 request_too_large
│   └── UnsupportedEncoding   415 unsupported_encoding    Accept-Encoding
├── InvalidApiKey             401 invalid_api_key         WWW-Authenticate
├── Forbidden                 403 forbidden
├── PolicyDenied              403 policy_denied
├── ModelNotFound             404 model_not_found
├── NotFound                  404 not_found
├── MethodNotAllowed          405 method_not_allowed    Allow
├── Conflict                  409 conflict              somebody else was quicker
├── RateLimited               429 rate_limit_exceeded   Retry-After
├── BudgetReserved            429 rate_limit_exceeded   Retry-After: others' reservations only
├── BudgetSpent               429 insufficient_quota    x-should-retry: false
├── Unavailable               503 service_unavailable   Retry-After
│   └── LedgerUnavailable     503 ledger_unavailable    nothing could be booked
│   └── BudgetUnavailable     503 budget_unavailable    Retry-After
├── BackendFailed             502 backend_error         broke off, or answered nonsense
└── DeadlineExceeded          504 deadline_exceeded
SettingsError                 configuration; exit code 2
"""

from typing import Any, ClassVar


class GatewayError(Exception):
    """Base: knows its HTTP status, OpenAI `type` and `code`, and extra headers."""

    status: ClassVar[int] = 500
    kind: ClassVar[str] = "api_error"
    code: ClassVar[str] = "internal_error"

    def __init__(
        self, message: str, *, param: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s

    def body(self) -> dict[str, Any]:
        """OpenAI's error shape."""
        return {
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            }
        }

    def headers(self) -> dict[str, str]:
        """Response headers that go with the error."""
        if self.retry_after_s is None:
            return {}
        return {"retry-after": str(max(1, round(self.retry_after_s)))}


class InvalidRequest(GatewayError):
    status, kind, code = 400, "invalid_request_error", "invalid_request_error"


class ContextLengthExceeded(InvalidRequest):
    code = "context_length_exceeded"


class MaxCostExceeded(InvalidRequest):
    code = "max_cost_exceeded"


class RequestTooLarge(InvalidRequest):
    status, code = 413, "request_too_large"


class UnsupportedEncoding(InvalidRequest):
    status, code = 415, "unsupported_encoding"

    def headers(self) -> dict[str, str]:
        """Names the encodings that are read."""
        return {**super().headers(), "accept-encoding": "gzip, deflate"}


class InvalidApiKey(GatewayError):
    status, kind, code = 401, "authentication_error", "invalid_api_key"

    def headers(self) -> dict[str, str]:
        """Names the scheme that is wanted."""
        return {**super().headers(), "www-authenticate": "Bearer"}


class Forbidden(GatewayError):
    status, kind, code = 403, "permission_error", "forbidden"


class PolicyDenied(GatewayError):
    status, kind, code = 403, "permission_error", "policy_denied"


class ModelNotFound(GatewayError):
    status, kind, code = 404, "invalid_request_error", "model_not_found"


class NotFound(GatewayError):
    status, kind, code = 404, "invalid_request_error", "not_found"


class MethodNotAllowed(GatewayError):
    status, kind, code = 405, "invalid_request_error", "method_not_allowed"

    def __init__(self, message: str, *, allow: str) -> None:
        super().__init__(message)
        self.allow = allow

    def headers(self) -> dict[str, str]:
        """Names the methods that the path answers."""
        return {**super().headers(), "allow": self.allow}


class Conflict(GatewayError):
    status, kind, code = 409, "invalid_request_error", "conflict"


class RateLimited(GatewayError):
    status, kind, code = 429, "rate_limit_error", "rate_limit_exceeded"


class BudgetReserved(RateLimited):
    """The budget is taken up by others' reservations only: worth a retry."""


class BudgetSpent(GatewayError):
    status, kind, code = 429, "insufficient_quota", "insufficient_quota"

    def headers(self) -> dict[str, str]:
        """Tells SDKs not to retry."""
        return {**super().headers(), "x-should-retry": "false"}


class Unavailable(GatewayError):
    status, kind, code = 503, "service_unavailable_error", "service_unavailable"

    def headers(self) -> dict[str, str]:
        """Always says when to come back."""
        return {"retry-after": "1", **super().headers()}


class BudgetUnavailable(Unavailable):
    """A budget must be asked, and the database is away."""

    code = "budget_unavailable"


class LedgerUnavailable(Unavailable):
    """What a request costs could not be booked, so none is served."""

    code = "ledger_unavailable"


class BackendFailed(GatewayError):
    status, kind, code = 502, "api_error", "backend_error"


class DeadlineExceeded(GatewayError):
    status, kind, code = 504, "timeout_error", "deadline_exceeded"


class SettingsError(Exception):
    """The configuration is wrong; the message names file, key path, value and what is allowed."""
