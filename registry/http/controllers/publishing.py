"""Publishing: an adapter's files arrive as a form, are judged, and become its next version."""

from __future__ import annotations

from typing import Any

from litestar import Controller, Request, Response, post
from litestar.openapi.datastructures import ResponseSpec

from registry.http.parameters import NamePart, TenantPart
from registry.http.service import RegistryService, caller_of, service_of
from registry.http.upload import receive_upload
from registry.names import AdapterName
from registry.principal import Principal, Role
from registry.publication import Publication

OPTIONS = ("base_fingerprint", "visibility", "message")


class PublishController(Controller):
    """New versions."""

    path = "/adapters/{tenant:str}/{name:str}/versions"
    tags = ("versions",)

    @post(
        request_max_body_size=None,
        status_code=201,
        responses={
            200: ResponseSpec(Publication, generate_examples=False, description="These files are a version already."),
            422: ResponseSpec(None, generate_examples=False, description="The adapter is refused: `rejected_adapter`."),
        },
    )
    async def publish(
        self, request: Request[Any, Any, Any], tenant: TenantPart, name: NamePart
    ) -> Response[Publication]:
        """Publish the files of a multipart/form-data body.

        Each part with a file name is a file of the adapter; the fields `base_fingerprint`, `visibility` and `message`
        are optional texts. Files are streamed to disk; each has a limit.
        """
        service, caller = service_of(request), caller_of(request)
        adapter = AdapterName.parse(f"{tenant}/{name}")
        caller.require(Role.PUBLISHER, adapter, action="publish to")  # before eight gigabytes have arrived
        outcome = await _publish(service, request, adapter, caller)
        return Response(outcome, status_code=201 if outcome.is_new else 200)


async def _publish(
    service: RegistryService, request: Request[Any, Any, Any], adapter: AdapterName, caller: Principal
) -> Publication:
    content_type = request.headers.get("content-type", "")
    with service.registry.receiving() as folder:
        upload = await receive_upload(
            request.stream(), content_type, folder, options=OPTIONS, threads=service.transfers
        )
        return await service.transfers.run(
            service.registry.publish_staged,
            upload.staging(),
            str(adapter),
            principal=caller,
            base_fingerprint=upload.options.get("base_fingerprint"),
            visibility=upload.options.get("visibility"),
            message=upload.options.get("message", ""),
        )
