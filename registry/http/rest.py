"""The REST application: every controller below /registry/v1, its OpenAPI document, one guard and one error handler."""

from __future__ import annotations

from litestar import Litestar, Router
from litestar.datastructures import State
from litestar.openapi import OpenAPIConfig
from litestar.openapi.spec import Components, SecurityScheme

from registry.http.access import OPEN, require_access
from registry.http.controllers.adapters import AdapterController
from registry.http.controllers.aliases import AliasController
from registry.http.controllers.bases import BaseController
from registry.http.controllers.events import EventController
from registry.http.controllers.files import FileController
from registry.http.controllers.identity import whoami
from registry.http.controllers.insight import InsightController
from registry.http.controllers.mirrors import MirrorController
from registry.http.controllers.operations import livez, metrics, readyz
from registry.http.controllers.publishing import PublishController
from registry.http.controllers.safekeeping import AuditController, KeyController, QuotaController, SignatureController
from registry.http.controllers.tenants import TenantController, TokenController
from registry.http.controllers.trust import (
    AttestationController,
    CanaryController,
    GateController,
    PolicyController,
    SplitController,
    TenantPolicyController,
)
from registry.http.controllers.upkeep import LeaseController, UpkeepController
from registry.http.controllers.versions import ResolveController, VersionController
from registry.http.controllers.webhooks import (
    TenantWebhookController,
    WebhookController,
    WebhookPolicyController,
)
from registry.http.document import DocumentPlugin
from registry.http.errors import handle_error
from registry.http.request_id import send_request_id
from registry.http.service import RegistryService
from registry.http.strict_body import StrictRequest

API_VERSION = "1"
ROOT = "/registry/v1"
DOCUMENT_PATH = "/registry/openapi.json"
CONTROLLERS = (
    whoami,
    AdapterController,
    VersionController,
    FileController,
    PublishController,
    ResolveController,
    AliasController,
    PolicyController,
    GateController,
    AttestationController,
    CanaryController,
    SplitController,
    InsightController,
    BaseController,
    TenantController,
    TenantPolicyController,
    TokenController,
    QuotaController,
    UpkeepController,
    LeaseController,
    AuditController,
    KeyController,
    SignatureController,
    EventController,
    TenantWebhookController,
    WebhookController,
    WebhookPolicyController,
    MirrorController,
)
"""Every subject of the API, in the order of its documentation."""


def create_rest_app(service: RegistryService) -> Litestar:
    """The application over a service, which it neither starts nor stops."""
    return Litestar(
        route_handlers=[Router(ROOT, route_handlers=CONTROLLERS), livez, readyz, metrics],
        guards=[require_access],
        before_send=[send_request_id],
        request_class=StrictRequest,
        exception_handlers={Exception: handle_error},
        request_max_body_size=service.settings.body_bytes,
        openapi_config=OpenAPIConfig(
            title="Loraplex registry",
            version=API_VERSION,
            description="Adapters with immutable versions, aliases with a history, tenants with tokens.",
            use_handler_docstrings=True,
            security=[{"token": []}],
            components=Components(security_schemes={"token": SecurityScheme(type="http", scheme="bearer")}),
            render_plugins=[DocumentPlugin(path=["/", "/openapi.json"])],  # the document alone, no pages
            openapi_router=Router(DOCUMENT_PATH, route_handlers=[], opt={OPEN: True}, include_in_schema=False),
        ),
        state=State({"service": service}),
        logging_config=None,
        debug=False,
    )
