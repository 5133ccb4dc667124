"""Every error of the API process, in one tree. Only `serving.api.errors` knows their HTTP statuses.

ServingError
├── SettingsError                 the server cannot start with these settings
├── EngineError
│   ├── EngineStartError          the engine process could not start or could not load the base
│   ├── EngineUnavailableError    no engine at the moment: it is starting or restarting
│   ├── ShuttingDownError         the server ends: it takes no new request, and cuts what outlives its grace
│   ├── EngineBusyError           the engine reads its messages more slowly than requests arrive
│   ├── EngineLostError           the engine process ended while a request was in it
│   └── EngineFaultError          the engine refused or failed one request
├── BaseFolderError               the base's folder lacks a usable tokenizer or chat template
├── AdapterBaseMismatchError      the adapter was trained on another base than the one that runs
├── RequestError                  the client's request cannot be honoured
│   ├── InvalidFieldError         one field of the body is wrong
│   ├── MalformedBodyError        the body is no JSON
│   ├── ModelNotFoundError        unknown to this client, or private to another tenant
│   ├── ContextExceededError      prompt and answer do not fit in the context
│   └── QueueFullError            too many requests wait; try again later
├── AccessError
│   ├── MissingTokenError         no bearer token
│   ├── WrongTokenError           a token that is unknown, expired or revoked
│   └── ForbiddenError            the token's role does not allow it
├── RegistryUnavailableError      the registry cannot be read now
└── ClientGoneError               the client left before its answer; nobody reads this one
"""

from __future__ import annotations

from serving.messages import FaultCode


class ServingError(Exception):
    """Root of every error that the API process raises."""


class SettingsError(ServingError):
    """The server cannot start like this; the message says what to change."""


class EngineError(ServingError):
    """The engine cannot do what was asked."""


class EngineStartError(EngineError):
    """The engine did not become ready; `reason` is its own explanation where it gave one."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"The engine could not start: {reason}")
        self.reason = reason


class EngineUnavailableError(EngineError):
    """No engine takes requests at the moment."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"The engine takes no requests: {reason}.")
        self.reason = reason


class ShuttingDownError(EngineError):
    """The server ends: it does not begin this request, or does not finish it."""

    def __init__(self) -> None:
        super().__init__("The server is shutting down and did not finish this request. Send it again in a few seconds.")


class EngineBusyError(EngineError):
    """`queued` messages already wait to be read by the engine."""

    def __init__(self, queued: int) -> None:
        super().__init__(f"{queued} messages wait for the engine already.")
        self.queued = queued


class EngineLostError(EngineError):
    """The engine process ended while requests were in it; `status` is its exit status if it is known."""

    def __init__(self, status: int | None) -> None:
        ended = "stopped answering" if status is None else f"ended with status {status}"
        super().__init__(f"The engine {ended}.")
        self.status = status


class EngineFaultError(EngineError):
    """The engine failed one request. `message` is written for the client."""

    def __init__(self, code: FaultCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class BaseFolderError(ServingError):
    """`file` of the base's folder is missing or cannot be used."""

    def __init__(self, file: str, reason: str) -> None:
        super().__init__(f"{file} of the base {reason}.")
        self.file = file
        self.reason = reason


class AdapterBaseMismatchError(ServingError):
    """The adapter's base is not the one that runs; both are named by their fingerprints."""

    def __init__(self, adapter: str, expected: str, found: str) -> None:
        super().__init__(
            f"The adapter {adapter} was trained on the base with fingerprint {expected}, but this server runs the base "
            f"with fingerprint {found}. Train it on this base, or use a server that runs its own."
        )
        self.adapter = adapter
        self.expected = expected
        self.found = found


class RequestError(ServingError):
    """The request cannot be honoured. `param` names the field where one field is the cause."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class InvalidFieldError(RequestError):
    """One field has a value that is unknown, out of its range, or not honoured here."""


class MalformedBodyError(RequestError):
    """The body cannot be read as JSON."""


class ModelNotFoundError(RequestError):
    """The same for a missing model and for one that is private to another tenant."""

    def __init__(self, model: str, *, param: str = "model") -> None:
        super().__init__(f"The model `{model}` does not exist or you do not have access to it.", param=param)
        self.model = model


class ContextExceededError(RequestError):
    """Prompt and answer together are longer than the context."""

    def __init__(self, *, context_tokens: int, prompt_tokens: int, answer_tokens: int, param: str) -> None:
        super().__init__(
            f"This server's context is {context_tokens} tokens, but {prompt_tokens + answer_tokens} were requested: "
            f"{prompt_tokens} in the prompt and {answer_tokens} for the answer. Shorten one of them.",
            param=param,
        )
        self.context_tokens = context_tokens
        self.prompt_tokens = prompt_tokens
        self.answer_tokens = answer_tokens


class QueueFullError(RequestError):
    """The queue, or this tenant's share of it, is full."""

    def __init__(self, *, scope: str, limit: int, retry_after_seconds: int) -> None:
        super().__init__(f"The {scope} is full ({limit} requests). Try again in {retry_after_seconds} s.")
        self.scope = scope
        self.limit = limit
        self.retry_after_seconds = retry_after_seconds


class AccessError(ServingError):
    """The client may not do this."""


class MissingTokenError(AccessError):
    """The request carries no bearer token."""

    def __init__(self) -> None:
        super().__init__("No token was given. Send it as `Authorization: Bearer lpx_...`.")


class WrongTokenError(AccessError):
    """The token is unknown, expired or revoked: which of them is not said."""

    def __init__(self) -> None:
        super().__init__("The token is not valid.")


class ForbiddenError(AccessError):
    """The client is known, or needs none, but may not do this; `reason` is written for it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class RegistryUnavailableError(ServingError):
    """The registry could not be read; the cause is in the log, not in the message."""

    def __init__(self) -> None:
        super().__init__("The adapter registry cannot be read at the moment.")


class ClientGoneError(ServingError):
    """The client closed its connection before the answer was complete."""
