"""The server's endpoints. What they do is in the modules named after what they serve."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, get_type_hints

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from tunescope.inference import Engine
from tunescope.serving import scores, studio
from tunescope.serving.bodies import (
    Body,
    ChatBody,
    ClassifyBody,
    CompletionBody,
    CustomizationBody,
    LoadBody,
    PoolingBody,
    ScoreBody,
    UnloadBody,
)
from tunescope.serving.completions import Continuation, Conversation, streamed, whole
from tunescope.serving.errors import ApiError, readable
from tunescope.serving.guard import Guard
from tunescope.serving.jobs import JobBody, Jobs
from tunescope.serving.keys import Key, Keys
from tunescope.serving.limits import Limits
from tunescope.serving.served import Models, Served
from tunescope.serving.service import Service, Usage, unless_gone
from tunescope.version import __version__

_BODIES: dict[str, type[Body]] = {}
_METHODS = ["GET", "POST", "PUT", "DELETE"]


def make_app(
    engine: Engine,
    bank: Path | None = None,
    *,
    base_name: str | None = None,
    limits: Limits | None = None,
    keys: Keys | None = None,
    origins: Sequence[str] = (),
    hosts: Sequence[str] = ("*",),
    reports: Path | None = None,
    jobs: Jobs | None = None,
) -> FastAPI:
    """An ASGI application that serves a base and a bank's entries.

    Args:
        engine: of the base.
        bank: folder of entries; None serves the base alone.
        base_name: what clients call the base; its own name by default.
        limits: what clients may ask for.
        keys: who may ask; everyone by default.
        origins: web pages of which other origins may ask (CORS); none by default.
        hosts: names of this server that requests may be sent to; others, which a page elsewhere may have been given to
            reach a server that only listens here, are refused.
        reports: folder of comparisons, whose reports the studio shows.
        jobs: what the studio may start; nothing by default.

    Raises:
        BankError: an entry that has the base's name.
    """
    limits = limits or Limits()
    engine.token_texts.text(0)  # decoded now, and not for the first answer that needs them
    service = Service(engine, Models(engine, bank, base_name or engine.base.name), limits)
    app = FastAPI(title="tunescope", version=__version__, docs_url=None, redoc_url=None)
    app.state.service = service
    _on_errors(app)
    _add_state(app, service)
    _add_completions(app, service)
    _add_scores(app, service)
    _add_updates(app, service)
    if jobs is not None:
        _add_jobs(app, jobs)
    own = None if jobs is None else jobs.reports
    studio.add(app, [folder for folder in (reports, own) if folder is not None])
    app.add_middleware(Guard, keys=keys or Keys(), limits=limits)
    if "*" not in hosts:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(origins),
            allow_methods=_METHODS,
            allow_headers=["*"],
        )
    return app


def _on_errors(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def refused(http: Request, error: ApiError) -> Response:
        return error.response

    @app.exception_handler(RequestValidationError)
    async def unreadable(http: Request, error: RequestValidationError) -> Response:
        known = _BODIES[http.url.path].model_fields if http.url.path in _BODIES else {}
        return readable(list(error.errors()), known).response

    @app.exception_handler(HTTPException)
    async def missing(http: Request, error: HTTPException) -> Response:
        if refused := http.scope["state"].get("refused"):
            return refused.response
        where = f"{http.method} {http.url.path}"
        message = f"{where} is no endpoint." if error.status_code in (404, 405) else str(error.detail)
        return ApiError(error.status_code, message, headers=error.headers).response


def _add_state(app: FastAPI, service: Service) -> None:
    @app.get("/health", tags=["state"])
    async def health() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "ok"}

    @app.get("/ready", tags=["state"])
    async def ready() -> Response:
        """Whether it takes requests: not when it is being stopped, or its queue is full."""
        full = service.engine.load_now.waiting >= service.engine.max_waiting
        busy = "stopping" if service.stopping else "queue full" if full else None
        return JSONResponse({"status": busy or "ready"}, 503 if busy else 200)

    @app.get("/metrics", tags=["state"], response_class=PlainTextResponse)
    def metrics(http: Request) -> Response:
        """Prometheus metrics."""
        _sees_all(http)
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models", tags=["models"])
    def models(http: Request) -> dict[str, Any]:
        """The base and every entry that this key may ask for."""
        key: Key | None = http.state.key
        return {"object": "list", "data": service.models.listed(key)}

    @app.get("/v1/models/{name:path}", tags=["models"])
    async def model(http: Request, name: str) -> dict[str, Any]:
        """One of them."""
        _allow(http, name)
        if name not in service.models.names:
            raise service.models.unknown(name, http.state.key)
        return service.models.describe(name)


def _add_completions(app: FastAPI, service: Service) -> None:
    async def completed(http: Request, body: ChatBody | CompletionBody, form: type[Conversation]) -> Response:
        served = (await _served(http, service, body.model)).must_generate()
        call = form(service, body, served)
        noted = http.state.noted
        _note(http, service, body)
        if body.stream:
            events, usage = await streamed(call)
            noted["usage"] = usage
            if service.limits.log_texts:
                noted["answered"] = call.texts
            return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        answer, usage = await unless_gone(http, whole(call))
        noted["usage"] = usage
        if service.limits.log_texts:
            noted["answered"] = answer["choices"]
        return JSONResponse(answer)

    @_posts(app, "/v1/chat/completions", "generation")
    async def chat_completions(http: Request, body: ChatBody) -> Response:
        """Answer a conversation."""
        return await completed(http, body, Conversation)

    @_posts(app, "/v1/completions", "generation")
    async def completions(http: Request, body: CompletionBody) -> Response:
        """Go on with a text."""
        return await completed(http, body, Continuation)


def _add_scores(app: FastAPI, service: Service) -> None:
    async def scored(
        http: Request, body: Any, measure: Callable[..., Coroutine[Any, Any, tuple[dict[str, Any], Usage]]]
    ) -> Response:
        served = await _served(http, service, body.model)
        _note(http, service, body)
        answer, usage = await unless_gone(http, measure(service, body, served))
        http.state.noted["usage"] = usage
        if service.limits.log_texts:
            http.state.noted["answered"] = answer["data"]
        return JSONResponse(answer)

    @_posts(app, "/classify", "scores")
    async def classify(http: Request, body: ClassifyBody) -> Response:
        """Labels of rows, with probabilities, by an entry that was trained on labels."""
        return await scored(http, body, scores.classify)

    @_posts(app, "/score", "scores")
    async def score(http: Request, body: ScoreBody) -> Response:
        """Rewards of answers to prompts, by a reward model."""
        return await scored(http, body, scores.score)

    @_posts(app, "/pooling", "scores")
    async def pooling(http: Request, body: PoolingBody) -> Response:
        """What a reward or attribute model's head gives for conversations."""
        return await scored(http, body, scores.pooling)


def _add_updates(app: FastAPI, service: Service) -> None:
    def allow(http: Request, name: str) -> None:
        key: Key | None = http.state.key
        if not service.limits.allow_updates:
            raise ApiError(403, "This server takes no updates: start it with --allow-updates.", code="updates_off")
        if key is not None and not key.updates:
            raise ApiError(403, "This key may not load and unload.", code="updates_off")
        _allow(http, name)

    @_posts(app, "/v1/load_lora_adapter", "updates")
    async def load_lora_adapter(http: Request, body: LoadBody) -> Response:
        """Load an entry of the bank, of any kind; the endpoint has vLLM's name and body."""
        allow(http, body.lora_name)
        await service.models.add(body.lora_name, body.lora_path, replace=body.load_inplace, key=http.state.key)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")

    @_posts(app, "/v1/unload_lora_adapter", "updates")
    async def unload_lora_adapter(http: Request, body: UnloadBody) -> Response:
        """Serve an entry no longer; the endpoint has vLLM's name and body."""
        allow(http, body.lora_name)
        service.models.remove(body.lora_name, http.state.key)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")

    @app.get("/v1/customizations", tags=["updates"])
    def customizations(http: Request) -> dict[str, Any]:
        """Every entry, loaded or not."""
        key: Key | None = http.state.key
        return {"object": "list", "data": [each for each in service.models.listed(key) if each["kind"] != "base"]}

    @_posts(app, "/v1/customizations", "updates")
    async def add_customization(http: Request, body: CustomizationBody) -> Response:
        """Load an entry of the bank under its own or another name."""
        allow(http, body.name)
        await service.models.add(body.name, body.path, replace=body.replace, key=http.state.key)
        return JSONResponse(service.models.describe(body.name), 201)

    @app.delete("/v1/customizations/{name:path}", tags=["updates"])
    async def remove_customization(http: Request, name: str) -> dict[str, Any]:
        """Serve an entry no longer."""
        allow(http, name)
        service.models.remove(name, http.state.key)
        return {"id": name, "object": "model", "deleted": True}


def _add_jobs(app: FastAPI, jobs: Jobs) -> None:
    app.state.jobs = jobs

    def allow(http: Request) -> None:
        key: Key | None = http.state.key
        if key is not None and not key.updates:
            raise ApiError(403, "This key may not start jobs.", code="updates_off")

    @app.put("/v1/rows/{name}", tags=["jobs"], status_code=201)
    async def upload(http: Request, name: str) -> dict[str, Any]:
        """Upload a file of rows: the body is its content."""
        allow(http)
        return await jobs.upload(name, await http.body())

    @app.get("/v1/jobs", tags=["jobs"])
    def listed(http: Request) -> dict[str, Any]:
        """All jobs, the newest first."""
        allow(http)
        return {"object": "list", "data": [jobs.shown(id) for id in jobs.ids[:50]]}

    @_posts(app, "/v1/jobs", "jobs")
    async def start(http: Request, body: JobBody) -> Response:
        """Start look, train or compare on uploaded rows."""
        allow(http)
        if body.name is not None:
            _allow(http, body.name)
        return JSONResponse(jobs.start(body), 201)

    @app.get("/v1/jobs/{id}", tags=["jobs"])
    def job(http: Request, id: str) -> dict[str, Any]:
        """How one goes."""
        allow(http)
        return jobs.shown(id)

    @app.post("/v1/jobs/{id}/stop", tags=["jobs"])
    async def stop(http: Request, id: str) -> dict[str, Any]:
        """Stop one: what it has is kept."""
        allow(http)
        return jobs.stop(id)

    @app.post("/v1/jobs/{id}/resume", tags=["jobs"])
    async def resume(http: Request, id: str) -> dict[str, Any]:
        """Go on with one that was stopped, or failed."""
        allow(http)
        return jobs.resume(id)


def _posts(app: FastAPI, path: str, tag: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register an endpoint that takes a body, so that errors about the body can name its fields."""

    def register(endpoint: Callable[..., Any]) -> Callable[..., Any]:
        _BODIES[path] = get_type_hints(endpoint)["body"]
        return app.post(path, tags=[tag], response_model=None)(endpoint)

    return register


async def _served(http: Request, service: Service, name: str) -> Served:
    _allow(http, name)
    http.state.noted["model"] = name
    if service.stopping:
        raise ApiError(503, "The server is being stopped.", headers={"Retry-After": "5"})
    return await service.models.get(name, http.state.key)


def _note(http: Request, service: Service, body: Any) -> None:
    """What the log says of a request."""
    if body.user is not None:
        http.state.noted["user"] = body.user
    if service.limits.log_texts:
        http.state.noted["asked"] = body.model_dump(exclude_none=True, by_alias=True)


def _sees_all(http: Request) -> None:
    key: Key | None = http.state.key
    if key is not None and not key.sees_all:
        raise ApiError(403, "This key may not see what is asked of other entries.", code="model_not_allowed")


def _allow(http: Request, name: str) -> None:
    key: Key | None = http.state.key
    if key is not None:
        key.check_model(name)
