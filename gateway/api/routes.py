"""All routes, in one list."""

from litestar.types import ControllerRouterHandler

from gateway.api.chat import chat_routes
from gateway.api.health import health_routes
from gateway.api.models import model_routes
from gateway.pipeline import Pipeline


def routes(pipeline: Pipeline) -> list[ControllerRouterHandler]:
    """Everything the gateway answers."""
    return [*chat_routes(pipeline), *model_routes(pipeline), *health_routes(pipeline)]
