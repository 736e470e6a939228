"""The page of a review in the browser, served by this machine to whom has its address."""

import contextlib
import ipaddress
import json
import logging
import math
import secrets
import socket
import tempfile
import threading
import webbrowser
from collections.abc import AsyncIterator, Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from microplastics.data.colors import class_colors
from microplastics.report.run import REPORT_FILE
from microplastics.review.export import export
from microplastics.review.records import Records
from microplastics.review.session import STATES, UNSEEN, Change, Conflict, Particle, Review
from microplastics.review.tiles import SIDE, Tiles
from microplastics.runs.store import FAILED_FILE
from microplastics.utils.errors import UserError, WriteError
from microplastics.writers.tables import write_csv

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

logger = logging.getLogger(__name__)

LOCAL = "127.0.0.1"

_PAGE = Path(__file__).parent / "page"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_MOST_BYTES = 4 << 20  # of a request: the outlines of one operation
_AHEAD = 20  # particles of the whole run that a page is told at a time
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",  # it would tell the token
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def serve(
    review: Review,
    *,
    reviewer: str,
    host: str = LOCAL,
    port: int = 0,
    read_only: bool = False,
    browser: bool = True,
) -> None:
    """Serve the page of a review until Ctrl-C.

    Args:
        review: opened.
        reviewer: name that stands with decisions unless the page is given another.
        host: address to listen on; all but 127.0.0.1 and ::1 can be reached by others.
        port: 0 takes a free one.
        read_only: refuse decisions.
        browser: open the page.

    Raises:
        UserError: ``dependency_missing``; ``option_invalid``, the address cannot be used.
    """
    check_installed()
    import uvicorn

    listening = _listen(host, port)
    token = secrets.token_urlsafe(24)
    shown = f"[{host}]" if ":" in host else host
    if _is_number(host) and ipaddress.ip_address(host).is_unspecified:
        shown = socket.gethostname()
    address = f"http://{shown}:{listening.getsockname()[1]}/{token}/"
    if not _is_loopback(host):
        logger.warning(
            "The page is open to other machines: whoever reaches %s and knows this address can "
            "see the photographs and decide; it is not encrypted.",
            host,
        )
    with Tiles(review.options) as tiles:
        app = application(review, tiles, token, reviewer=reviewer, host=host, read_only=read_only)
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,  # it would tell the token
            server_header=False,
            ws="none",
            timeout_graceful_shutdown=2,
        )
        kept = "" if read_only else "Every decision is kept at once. "
        print(f"Page of the review: {address}\n{kept}Ctrl-C ends it.", flush=True)
        if browser:
            webbrowser.open(address)
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listening])
    if not read_only:
        print(f"{review.version} decisions in {review.output}; --export writes corrected tables")


def check_installed() -> None:
    """Raise ``dependency_missing`` without the packages of the page."""
    names = ("starlette", "uvicorn", "js_lib_leaflet")
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise UserError(
            f"The page needs {', '.join(missing)}; install it by "
            "pip install 'microplastics[review]'.",
            code="dependency_missing",
        )


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise UserError(
            f"--host {host} --port {port} is not an address to listen on ({error}); expected an "
            "address of this machine and a free port (0 finds one).",
            code="option_invalid",
        ) from error


def _is_loopback(host: str) -> bool:
    return host == "localhost" or _is_number(host) and ipaddress.ip_address(host).is_loopback


def _is_number(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def application(
    review: Review,
    tiles: Tiles,
    token: str,
    *,
    reviewer: str,
    host: str = LOCAL,
    read_only: bool = False,
) -> "_Guard":
    """Make the ASGI application of a page; all its addresses begin with ``/TOKEN/``.

    Args:
        review, reviewer, read_only: as of :func:`serve`.
        tiles: of the photographs.
        token: of the address.
        host: name by which it may be asked for, besides numbers and localhost.
    """
    pages = _Pages(review, tiles, reviewer, read_only)
    return _Guard(pages.application(), token, {"localhost", host.lower(), socket.gethostname()})


class _Guard:
    """Answers only to who knows the token, under a name of this machine, from its own page.

    A name of another site that leads here (DNS rebinding) has the wrong Host, a request from
    another site's page the wrong Origin.
    """

    def __init__(self, app: "Starlette", token: str, names: set[str]):
        self._app, self._token, self._names = app, token.encode(), names

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        elif refusal := self._refusal(scope):
            from starlette.responses import PlainTextResponse

            await PlainTextResponse(refusal, 403, _HEADERS)(scope, receive, send)
        else:
            prefix, _, rest = scope["path"][1:].partition("/")
            inside = {**scope, "root_path": f"/{prefix}", "path": f"/{prefix}/{rest}"}
            await self._app(inside, receive, send)

    def _refusal(self, scope: dict) -> str:
        headers = {}
        for name, value in scope["headers"]:
            if name in (b"host", b"origin") and name in headers:
                return "The request has two hosts or origins."
            headers[name] = value.decode("latin-1")
        host, origin = headers.get(b"host", ""), headers.get(b"origin")
        if not self._is_own(host):
            return "The page is asked for by a name that is not of this machine."
        if origin is not None and origin != f"http://{host}":
            return "The request comes from another site."
        given = scope["path"][1:].partition("/")[0].encode("utf-8", "surrogateescape")
        if not secrets.compare_digest(given, self._token):
            return "The address is not complete; copy all of it from where the review was started."
        return ""

    def _is_own(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return name in self._names or _is_number(name)


class _Pages:
    """What is answered."""

    def __init__(self, review: Review, tiles: Tiles, reviewer: str, read_only: bool):
        self._review, self._tiles = review, tiles
        self._reviewer, self._read_only = reviewer, read_only
        self._names = [image.name for image in review.images]
        self._numbers = {name: number for number, name in enumerate(self._names)}
        self._records = Records(review)
        self._exporting = _Exporting(review)
        leaflet = Path(find_spec("js_lib_leaflet").origin).parent / "static" / "js_lib_leaflet"
        files = [*_PAGE.iterdir(), leaflet / "leaflet.js", leaflet / "leaflet.css"]
        self._files = {path.name: path.read_bytes() for path in files if path.suffix in _TYPES}

    def application(self) -> "Starlette":
        from starlette.applications import Starlette
        from starlette.routing import Route

        return Starlette(
            routes=[
                Route("/", self._file),
                Route("/{name}", self._file),
                Route("/api/state", self._state),
                Route("/api/changes", self._changes),
                Route("/api/images/{image:int}", self._image),
                Route("/api/images/{image:int}/particles/{id:int}", self._particle),
                Route("/api/images/{image:int}/{level:int}/{column:int}/{row:int}", self._tile),
                Route("/api/uncertain", self._uncertain),
                Route("/api/particles.csv", self._csv),
                Route("/api/do", self._do, methods=["POST"]),
                Route("/api/export", self._export, methods=["GET", "POST"]),
            ],
            exception_handlers={UserError: _failure},
            lifespan=self._lifespan,
        )

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: "Starlette") -> AsyncIterator[None]:
        yield
        self._exporting.wait()

    def _file(self, request: "Request") -> "Response":
        from starlette.responses import PlainTextResponse, Response

        name = request.path_params.get("name") or "review.html"
        if name not in self._files:
            return PlainTextResponse("There is no such page.", 404, _HEADERS)
        kind = _TYPES[Path(name).suffix]
        return Response(self._files[name], headers=_HEADERS, media_type=kind)

    def _state(self, request: "Request") -> "Response":
        review = self._review
        return _json(
            {
                "version": review.version,
                "title": review.source.path.resolve().name,
                "classes": self._classes(),
                "images": [self._records.image(image) for image in review.images],
                "reviewer": self._reviewer,
                "readOnly": self._read_only,
                "side": SIDE,
                "messages": review.messages,
                "kinds": self._records.outcomes(),
            }
        )

    def _classes(self) -> list[dict[str, str]]:
        names = self._review.classes
        return [
            {"name": name, "color": "#{:02x}{:02x}{:02x}".format(*color)}
            for name, color in zip(names, class_colors(names), strict=True)
        ]

    def _changes(self, request: "Request") -> "Response":
        since = request.query_params.get("since", "")
        if not since.isdecimal():
            return _json({"error": "The version is missing."}, 400)
        return _json(self._since(int(since), request.query_params.get("reviewer", "")))

    def _since(self, version: int, reviewer: str) -> dict[str, Any]:
        """What a page that knows a version has to learn."""
        review = self._review
        changes: list[Change] = review.changes_since(version)
        ids: dict[str, set[int]] = {}
        names = {name for change in changes for name in change.images}
        for change in changes:
            for name, found in change.particles.items():
                ids.setdefault(name, set()).update(found)
        return {
            "version": changes[-1].version if changes else version,
            "by": sorted({change.reviewer for change in changes}),
            "classes": self._classes(),
            "images": {
                self._numbers[name]: self._records.image(review.image(name))
                for name in {*ids, *names}
            },
            "particles": {
                self._numbers[name]: self._records.particles(name, found)
                for name, found in ids.items()
            },
            "canUndo": review.can_undo(reviewer),
            "canRedo": review.can_redo(reviewer),
        }

    def _name(self, request: "Request") -> str:
        number = request.path_params["image"]
        if number >= len(self._names):
            raise UserError(f"There is no image {number}.", code="input_empty")
        return self._names[number]

    def _image(self, request: "Request") -> "Response":
        # The version first: what changes meanwhile is then sent twice, and not never.
        version, name = self._review.version, self._name(request)
        return _json({"version": version, "particles": self._records.particles(name)})

    def _particle(self, request: "Request") -> "Response":
        name, id_ = self._name(request), request.path_params["id"]
        particle = self._review.particle(name, id_)
        pieces = None
        if request.query_params.get("split"):
            pieces = self._review.propose_split(name, id_)
        return _json({"polygons": particle.polygons(), "pieces": pieces})

    def _tile(self, request: "Request") -> "Response":
        from starlette.responses import Response

        image = self._review.image(self._name(request))
        where = [request.path_params[name] for name in ("level", "column", "row")]
        tile = None
        if image.path and where[0] <= 20:
            tile = self._tiles.tile(image, *where)
        if tile is None:
            return _json({"error": "There is no such tile."}, 404)
        headers = {**_HEADERS, "Cache-Control": "private, max-age=86400"}
        return Response(tile, headers=headers, media_type="image/jpeg")

    def _csv(self, request: "Request") -> "Response":
        from starlette.responses import Response

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "particles.csv"
            write_csv(self._review.table(), path)
            content = path.read_bytes()
        headers = {**_HEADERS, "Content-Disposition": 'attachment; filename="particles.csv"'}
        return Response(content, headers=headers, media_type="text/csv")

    def _uncertain(self, request: "Request") -> "Response":
        """The unseen particles of the whole run that come after one, the most uncertain first."""
        query = request.query_params
        hidden = set(query.getlist("hide"))
        low, high = (_float(query.get(name), end) for name, end in (("low", 0), ("high", 1)))
        place, id_ = (int(_float(query.get(name), 0)) for name in ("image", "id"))
        review = self._review
        # All states: the one that was shown last may be decided on by now.
        order = review.uncertain_first(STATES)
        after = (self._names[place], id_) if 0 <= place < len(self._names) else None
        at = order.index(after) + 1 if after in order else 0

        def wanted(particle: Particle) -> bool:
            passes = math.isnan(particle.score) or low <= particle.score <= high
            return passes and particle.state == UNSEEN and particle.class_name not in hidden

        shown = {(n, each.id) for n in self._names for each in review.particles(n) if wanted(each)}
        found = [key for key in order[at:] + order[:at] if key in shown]
        return _json(
            {
                "left": len(found),
                "images": len({name for name, _ in found}),
                "next": [(self._numbers[name], number) for name, number in found[:_AHEAD]],
            }
        )

    def _export(self, request: "Request") -> "Response":
        """Begin to write the corrected files, or say how far that is."""
        if request.method == "POST":
            if self._read_only:
                return _json({"error": "The page is only to look at."}, 403)
            self._exporting.begin()
        return _json(self._exporting.state)

    async def _do(self, request: "Request") -> "Response":
        from starlette.concurrency import run_in_threadpool

        body = b""
        async for part in request.stream():
            body += part
            if len(body) > _MOST_BYTES:
                return _json({"error": "The request is too large."}, 413)
        return await run_in_threadpool(self._operate, body)

    def _operate(self, body: bytes) -> "Response":
        if self._read_only:
            return _json({"error": "The page is only to look at."}, 403)
        try:
            order = json.loads(body)
        except (ValueError, RecursionError):
            order = None
        if not _is_order(order, len(self._names)):
            return _json({"error": "The request is not one of the page."}, 400)
        name = self._names[order["image"]]
        by = {"reviewer": order["reviewer"], "version": order["version"]}
        change = _OPERATIONS[order["op"]](self._review, name, order, by)
        on = next(iter([*change.particles, *change.images]), name)
        answer = self._since(order["version"], order["reviewer"])
        made = change.particles.get(on, [])
        return _json({**answer, "on": self._numbers[on], "changed": made})


class _Exporting:
    """Writes the corrected files in a thread of its own, so that every tab can see how far it is.

    Attributes:
        state: plain values: ``running`` with ``done``, ``of`` and ``what``; then ``folder`` and
            ``problem``, or ``error``; empty at first.
    """

    def __init__(self, review: Review):
        self._review, self._lock = review, threading.Lock()
        self._thread: threading.Thread | None = None
        self.state: dict[str, Any] = {}

    def begin(self) -> None:
        """Begin, unless it is under way."""
        with self._lock:
            if not self.state.get("running"):
                self._tell(0, 1, "beginning")
                self._thread = threading.Thread(target=self._write)
                self._thread.start()

    def wait(self) -> None:
        """Wait until nothing is being written."""
        if self._thread is not None:
            if self.state.get("running"):
                print("The results are still being written …", flush=True)
            self._thread.join()

    def _tell(self, done: int, of: int, what: str) -> None:
        self.state = {"running": True, "done": done, "of": of, "what": what}

    def _write(self) -> None:
        try:
            folder = export(self._review, progress=self._tell)
            self.state = {"folder": str(folder.absolute()), **self._result(folder)}
        except UserError as error:
            self.state = {"error": f"The results are not written: {error}"}
        except Exception as error:  # a fault of the program must not leave the page waiting
            logger.exception("The results are not written.")
            words = f"{type(error).__name__}: {error}; the terminal has all of it"
            self.state = {"error": f"The results are not written ({words})."}

    def _result(self, folder: Path) -> dict[str, Any]:
        """What a person has to know of files that were written."""
        problems = []
        if (folder / FAILED_FILE).exists():
            problems.append(f"Some images failed: {FAILED_FILE} says why.")
        if not (folder / REPORT_FILE).exists():
            problems.append("The report could not be made: the terminal says why.")
        unfinished = sum(not image.finished for image in self._review.images)
        return {"unfinished": unfinished, "problem": " ".join(problems)}


def _float(text: str | None, otherwise: float) -> float:
    try:
        found = float(text)
    except (TypeError, ValueError):
        return otherwise
    return found if math.isfinite(found) else otherwise


def _is_order(order: Any, images: int) -> bool:
    """Whether the fields of an order have their types; what they mean, the review checks."""
    if not isinstance(order, dict) or order.get("op") not in list(_OPERATIONS):
        return False
    lists = [order.get(name, []) for name in ("ids", "polygons", "line", "pieces")]
    texts = [order.get(name) for name in ("reviewer", "class", "text")]
    if not all(isinstance(each, list) for each in lists):
        return False
    numbers = [order.get("version"), order.get("image"), *lists[0]]
    return (
        all(type(number) is int and number >= 0 for number in numbers)
        and order["image"] < images
        and isinstance(texts[0], str)
        and all(text is None or isinstance(text, str) for text in texts)
    )


def _one(order: dict[str, Any]) -> int:
    if len(order.get("ids", [])) != 1:
        raise UserError("Select one particle.", code="input_empty")
    return order["ids"][0]


# (review, image, order, reviewer and version) -> change
_OPERATIONS: dict[str, Callable[[Review, str, dict, dict], Change]] = {
    "accept": lambda r, name, o, by: r.accept({name: o.get("ids", [])}, **by),
    "reject": lambda r, name, o, by: r.reject({name: o.get("ids", [])}, **by),
    "reset": lambda r, name, o, by: r.reset({name: o.get("ids", [])}, **by),
    "class": lambda r, name, o, by: r.set_class({name: o.get("ids", [])}, o.get("class", ""), **by),
    "comment": lambda r, name, o, by: r.comment({name: o.get("ids", [])}, o.get("text", ""), **by),
    "outline": lambda r, name, o, by: r.set_outline(name, _one(o), o.get("polygons", []), **by),
    "draw": lambda r, name, o, by: r.draw(name, o.get("polygons", []), o.get("class", ""), **by),
    "merge": lambda r, name, o, by: r.merge(name, o.get("ids", []), **by),
    "cut": lambda r, name, o, by: r.split(name, _one(o), line=o.get("line", []), **by),
    "split": lambda r, name, o, by: r.split(name, _one(o), pieces=o.get("pieces", []), **by),
    "finish": lambda r, name, o, by: r.finish([name], **by),
    "reopen": lambda r, name, o, by: r.reopen([name], **by),
    "undo": lambda r, name, o, by: r.undo(reviewer=by["reviewer"]),
    "redo": lambda r, name, o, by: r.redo(reviewer=by["reviewer"]),
}


def _json(data: Any, status: int = 200) -> "Response":
    from starlette.responses import JSONResponse

    return JSONResponse(data, status, _HEADERS)


def _failure(request: "Request", error: UserError) -> "Response":
    status = 409 if isinstance(error, Conflict) else 507 if isinstance(error, WriteError) else 400
    return _json({"error": str(error), "code": error.code}, status)
