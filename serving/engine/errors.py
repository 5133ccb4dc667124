"""Errors of the engine. Every one derives from `EngineError` and becomes a `Fault` of the request that it belongs to.

EngineError
    RequestRefusedError      the request can never run here (too long for the cache, unknown token ids)
    AdapterRefusedError      the adapter cannot be read, does not fit the base or the pool, or fails its probes
    UnsupportedModelError    the base's attention asks for something the engine does not do (the engine does not start)
"""

from __future__ import annotations

from serving.messages import Fault, FaultCode


class EngineError(Exception):
    """Root. `code` is the fault's code; the message is fit for the client."""

    code: FaultCode = "internal"

    def fault(self) -> Fault:
        """What the client is told."""
        return Fault(code=self.code, message=str(self))


class RequestRefusedError(EngineError):
    """A request that can never run on this engine."""

    code: FaultCode = "invalid_request"


class AdapterRefusedError(EngineError):
    """An adapter that cannot be served. `digest` names the version."""

    code: FaultCode = "adapter_rejected"

    def __init__(self, digest: str, reason: str) -> None:
        super().__init__(f"adapter {digest[:19]} cannot be served: {reason}")
        self.digest = digest
        self.reason = reason


class UnsupportedModelError(EngineError):
    """The base model needs an operation that the engine does not have."""

    def __init__(self, model: str, reason: str) -> None:
        super().__init__(f"{model} cannot be served: {reason}")
        self.model = model
        self.reason = reason
