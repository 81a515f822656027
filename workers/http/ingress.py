"""The ingress: an OpenAI server on Ray Serve; an answer goes on at another replica when its replica is lost.

It needs no GPU; `num_ingresses` of them run. It is a plain `serve.ingress` around a FastAPI app at module level, which
works with every FastAPI; `ray.serve.llm`'s own ingress answers 400 to everything from FastAPI 0.137 on.
"""

from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, ORJSONResponse
from ray import serve
from sglang.srt.entrypoints.openai.protocol import ChatCompletionRequest, CompletionRequest

from workers.cluster.loopback import bind_replica_to_loopback
from workers.cluster.serve_source import ServeSource
from workers.config import WorkerConfig
from workers.http.frontend import Frontend
from workers.http.metrics import IngressMetrics, RaySeries
from workers.http.readiness import Readiness
from workers.http.security import ApiKey

app = FastAPI(title="DDTREE on SGLang and Ray", docs_url=None, redoc_url=None, openapi_url=None)


# Serve pickles the app at the `serve.ingress` line, so what its routes call must be defined above it.
def _error(status: int, message: str, kind: str, headers: dict[str, str] | None = None) -> Response:
    body = {"object": "error", "message": message, "type": kind, "param": None, "code": status}
    return JSONResponse(body, status_code=status, headers=headers)


@serve.ingress(app)
class Ingress:
    """The deployment class of the ingress.

    Args:
        args: the fields of `WorkerConfig`.
        replicas: handle to the deployment of `DDTreeServer`.
    """

    def __init__(self, args: dict[str, Any], replicas: Any) -> None:
        bind_replica_to_loopback()
        config = WorkerConfig(**args)
        self._key = ApiKey.from_env(config.api_key_env)
        self._metrics = IngressMetrics()
        self._ray_series = RaySeries()
        self._frontend = Frontend.of(config, ServeSource(replicas), self._observe_resume)
        self._counters = self._frontend.generator.counters
        self._metrics.count(self._counters)
        self._readiness = Readiness(replicas.deployment_id)

    @app.post("/v1/chat/completions")
    async def chat(self, request: Request) -> Response:
        """Chat completions, streamed or whole."""
        return await self._answer(self._frontend.chat, ChatCompletionRequest, request)

    @app.post("/v1/completions")
    async def completions(self, request: Request) -> Response:
        """Text completions, streamed or whole."""
        return await self._answer(self._frontend.completion, CompletionRequest, request)

    @app.get("/v1/models")
    async def models(self, request: Request) -> Response:
        """The one model that is served."""
        return self._unauthorized(request) or JSONResponse(self._frontend.models())

    @app.get("/health")
    async def health(self) -> Response:
        """200 while at least one replica is ready, else 503."""
        ready = await self._ready_replicas()
        return JSONResponse({"ready_replicas": ready}, status_code=200 if ready else 503)

    async def check_health(self) -> None:
        """Called by Serve every few seconds; updates the series at Ray's metrics port also while no request comes."""
        await self._ready_replicas()

    @app.get("/metrics")
    async def metrics(self) -> Response:
        """This ingress's counters in Prometheus' format; the engines' are at Ray's metrics port."""
        text = self._metrics.text(await self._ready_replicas())
        return Response(text, media_type="text/plain; version=0.0.4")

    async def _answer(self, endpoint: Any, kind: Any, request: Request) -> Response:
        # Before the body is read, so that requests without a key cost nothing.
        refusal = self._unauthorized(request)
        if refusal is not None:
            return refusal
        try:
            body = kind.model_validate(await request.json())
        except ValueError as error:
            # 400 in OpenAI's form, as SGLang's server answers, instead of FastAPI's 422.
            return _error(400, str(error), "BadRequest")
        if not await self._ready_replicas():
            return _error(503, "no replica is ready; ask again later.", "unavailable", {"Retry-After": "5"})
        answer = await endpoint.handle_request(body, request)
        return answer if isinstance(answer, Response) else ORJSONResponse(answer.model_dump())

    async def _ready_replicas(self) -> int:
        ready = await self._readiness.ready_replicas()
        self._ray_series.update(self._counters, ready)
        return ready

    def _observe_resume(self, seconds: float) -> None:
        self._metrics.resume_seconds.observe(seconds)
        self._ray_series.observe_resume(seconds)

    def _unauthorized(self, request: Request) -> Response | None:
        if self._key.admits(request.url.path, request.headers.get("authorization")):
            return None
        return _error(401, "the API key is missing or wrong.", "Unauthorized", {"WWW-Authenticate": "Bearer"})
