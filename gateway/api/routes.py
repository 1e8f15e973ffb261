"""All routes, in one list."""

from collections.abc import Mapping

from litestar.handlers import ASGIRouteHandler, HTTPRouteHandler

from gateway.api.admin import admin_routes
from gateway.api.batches import batch_routes
from gateway.api.chat import Handler, chat_routes
from gateway.api.feedback import feedback_routes
from gateway.api.files import file_routes
from gateway.api.health import health_routes, installed_version
from gateway.api.models import model_routes
from gateway.api.openapi import schema_routes
from gateway.api.reports import report_routes
from gateway.api.requests import request_routes
from gateway.api.tokenize import tokenize_routes
from gateway.batches.runner import BatchRunner
from gateway.dashboard.pages import dashboard_routes
from gateway.pipeline import Pipeline


def routes(
    pipeline: Pipeline, batches: BatchRunner, chats: Mapping[str, Handler]
) -> list[ASGIRouteHandler | HTTPRouteHandler]:
    """Everything the gateway answers; `chats` by path."""
    found: list[ASGIRouteHandler | HTTPRouteHandler] = [
        *chat_routes(chats),
        *model_routes(pipeline),
        *file_routes(pipeline, batches),
        *batch_routes(pipeline, batches),
        *request_routes(pipeline),
        *feedback_routes(pipeline),
        *report_routes(pipeline),
        *tokenize_routes(pipeline),
        *admin_routes(pipeline),
        *health_routes(pipeline),
        *dashboard_routes(pipeline),
    ]
    return [*found, *schema_routes(pipeline, found, installed_version())]
