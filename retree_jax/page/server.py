"""The server of `retree-jax demo`: the page, its queue, and nothing that lies in a folder.

    GET    /                       the page; page.js and page.css beside it
    POST   /jobs/generate?seed=1   a job; /jobs/paint and /jobs/segment take a picture as their body
    GET    /jobs/NAME              how far it is, and its result
    GET    /jobs/NAME/files/FILE   a file of its result
    DELETE /jobs/NAME              cancels it

Every answer comes from memory, by a name in a table: no request can reach a file. Requests from pages of other servers are
refused, and the page itself may load nothing from elsewhere.
"""

import contextlib
import errno
import functools
import pathlib
import socket
from collections.abc import Callable
from urllib.parse import urlsplit

import jinja2
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

import retree_jax
from retree_jax.page import jobs, uploads
from retree_jax.page.studio import Studio

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_FOLDER = pathlib.Path(__file__).parent
_TYPES = {
  "png": "image/png",
  "zip": "application/zip",
  "jsonl": "application/jsonl",
  "js": "text/javascript",
  "css": "text/css",
}
_HEADERS = {
  "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
  "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
  "cache-control": "no-store",
  "cross-origin-resource-policy": "same-origin",
  "referrer-policy": "no-referrer",
  "x-content-type-options": "nosniff",
}


class Refused(Exception):
  """A request that gets a status code and one sentence."""

  def __init__(self, code: int, text: str):
    super().__init__(text)
    self.code = code


class Guard:
  """Refuses requests of other pages, and adds `_HEADERS` to every answer.

  Args:
    app: the application behind it.
    hosts: names by which the server may be called; empty for any. A page elsewhere can call a server on this computer by a name
      of its own (DNS rebinding), but not by one of these.
  """

  def __init__(self, app, hosts: tuple[str, ...] = ()):
    self._app, self._hosts = app, hosts

  async def __call__(self, scope, receive, send):
    if scope["type"] != "http":
      await self._app(scope, receive, send)
      return

    async def send_with_headers(message):
      if message["type"] == "http.response.start":
        message["headers"] = [*message["headers"], *((k.encode(), v.encode()) for k, v in _HEADERS.items())]
      await send(message)

    headers = Request(scope).headers
    host, origin = headers.get("host", ""), headers.get("origin")
    if self._hosts and _part(f"//{host}", "hostname") not in self._hosts:
      answer = _error(403, f"the page is at http://{self._hosts[0]}: use this address, or start it with --host")
      await answer(scope, receive, send_with_headers)
    elif origin is not None and _part(origin, "netloc") != host:
      await _error(403, "the request comes from another page")(scope, receive, send_with_headers)
    else:
      await self._app(scope, receive, send_with_headers)


def application(studio: Studio, queue: jobs.Queue, hosts: tuple[str, ...] = ()):
  """The ASGI application.

  Args:
    studio: the models.
    queue: runs the jobs.
    hosts: see `Guard`.
  """
  static = {name: (_FOLDER / name).read_bytes() for name in ("page.js", "page.css")}
  page = _render(studio).encode()
  actions = studio.actions()

  async def index(request: Request) -> Response:
    return Response(page, media_type="text/html")

  async def asset(request: Request) -> Response:
    return _file(static, request.url.path.rpartition("/")[2])

  async def start(request: Request) -> Response:
    action = request.path_params["action"]
    if action not in actions:
      raise Refused(404, f"the loaded models cannot do this, only {', '.join(actions)}")
    data = await _body(request, 0 if action == "generate" else uploads.MAX_BYTES)
    asked = dict(request.query_params)
    try:
      if action == "segment":
        await run_in_threadpool(uploads.check, data)
        work: Callable = functools.partial(studio.segment, data)
      elif action == "paint":
        await run_in_threadpool(uploads.check, data)
        work = functools.partial(studio.paint, data, studio.settings(asked))
      else:
        work = functools.partial(studio.generate, studio.settings(asked))
      return JSONResponse({"job": queue.add(work)}, 202)
    except ValueError as error:
      raise Refused(400, str(error)) from None
    except jobs.Full as error:
      raise Refused(503, str(error)) from None

  async def status(request: Request) -> Response:
    told = queue.status(request.path_params["job"])
    if told is None:
      raise Refused(404, "there is no such job any more: start it again")
    return JSONResponse(told)

  async def cancel(request: Request) -> Response:
    queue.cancel(request.path_params["job"])
    return Response(status_code=204)

  async def file(request: Request) -> Response:
    job, name = request.path_params["job"], request.path_params["file"]
    content = queue.file(job, name)
    return _file({} if content is None else {name: content}, name)

  routes = [
    Route("/", index),
    Route("/page.js", asset),
    Route("/page.css", asset),
    Route("/jobs/{action}", start, methods=["POST"]),
    Route("/jobs/{job}", status),
    Route("/jobs/{job}", cancel, methods=["DELETE"]),
    Route("/jobs/{job}/files/{file:path}", file),
  ]
  app = Starlette(routes=routes, exception_handlers={Refused: lambda request, error: _error(error.code, str(error))})
  return Guard(app, hosts)


def listen(host: str, port: int) -> socket.socket:
  """A socket that listens there.

  Raises:
    ValueError: the port is in use, or the address is not one of this computer.
  """
  family = socket.AF_INET6 if ":" in host else socket.AF_INET
  found = socket.socket(family, socket.SOCK_STREAM)
  found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
  try:
    found.bind((host, port))
    found.listen(64)
  except OSError as error:
    found.close()
    if error.errno == errno.EADDRINUSE:
      text = f"port {port} is in use: stop what uses it, or name another, e.g. --port={port + 1 if port < 65535 else 7860}"
    elif error.errno == errno.EACCES:
      text = f"port {port} needs the rights of an administrator: use --port=7860 or another above 1023"
    else:
      text = f"--host={host} is no address of this computer: use 127.0.0.1, or 0.0.0.0 for all of its addresses"
    raise ValueError(text) from None
  return found


def prepare(studio: Studio, queue: jobs.Queue, listening: socket.socket) -> uvicorn.Server:
  """A server that is ready to run on a socket from `listen`.

  Args:
    studio: the models.
    queue: runs the jobs.
    listening: called by names of this computer alone where it listens at one of `LOOPBACK`.
  """
  hosts = LOOPBACK if listening.getsockname()[0] in LOOPBACK else ()
  config = uvicorn.Config(
    application(studio, queue, hosts),
    log_level="warning",
    access_log=False,
    server_header=False,
    proxy_headers=False,
    ws="none",
    lifespan="off",
    limit_concurrency=100,
    timeout_graceful_shutdown=2,
  )
  return uvicorn.Server(config)


def run(studio: Studio, listening: socket.socket) -> None:
  """Serves on a socket from `listen` until Ctrl-C or SIGTERM."""
  host, port = listening.getsockname()[:2]
  print(f"the page is at http://{f'[{host}]' if ':' in host else host}:{port}/ (Ctrl-C stops it)", flush=True)
  if host not in LOOPBACK:
    print("everybody who reaches this address can use it: it asks for no password", flush=True)
  with contextlib.closing(jobs.Queue()) as queue:
    prepare(studio, queue, listening).run(sockets=[listening])


async def _body(request: Request, limit: int) -> bytes:
  """The body of a request, of which no more than `limit` bytes are taken."""
  pieces, size = [], 0
  async for piece in request.stream():
    size += len(piece)
    if size > limit:
      raise Refused(413, f"the upload has more than {limit / 2**20:g} MB: choose a smaller file, or save it as JPEG")
    pieces.append(piece)
  return b"".join(pieces)


def _part(url: str, name: str) -> str | None:
  """A part of a URL; None of text that is none."""
  try:
    return getattr(urlsplit(url), name)
  except ValueError:
    return None


def _error(code: int, text: str) -> Response:
  return JSONResponse({"error": text}, code)


def _file(known: dict[str, bytes], name: str) -> Response:
  if name not in known:
    raise Refused(404, "there is no such file")
  return Response(known[name], media_type=_TYPES[name.rpartition(".")[2]])


def _render(studio: Studio) -> str:
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_FOLDER),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  return environment.get_template("page.html.jinja").render(
    actions=studio.actions(),
    controls=studio.controls,
    facts=studio.facts(),
    version=retree_jax.__version__,
    max_bytes=uploads.MAX_BYTES,
  )
