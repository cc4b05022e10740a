"""The documentation as a site: `make docs`."""

from __future__ import annotations

from importlib.metadata import version as version_of
from typing import TYPE_CHECKING, Any

from sphinx.util.nodes import make_refnode

if TYPE_CHECKING:
    from docutils import nodes
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

project = "asyncwebsockets"
author = "The asyncwebsockets authors"
version = release = version_of("asyncwebsockets")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    # Says of a function that it is async, or for `async with`.
    "sphinxcontrib_trio",
]
html_theme = "furo"
html_title = f"asyncwebsockets {release}"

# For links to sections, as forges make them.
myst_heading_anchors = 3

# The docstrings write `name` for code.
default_role = "code"
autodoc_member_order = "bysource"
# An extra.
autodoc_mock_imports = ["opentelemetry"]
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_use_unqualified_type_names = True
add_module_names = False

# Each name of this library has to lead somewhere. Those of others do not: intersphinx would have
# to download where they lead, and no build needs the internet.
nitpicky = True
nitpick_ignore_regex = [
    # Built in.
    (r"py:.*", r"bool|bytes|bytearray|dict|float|frozenset|int|list|memoryview|object|set|str"),
    (r"py:.*", r"tuple|type|Ellipsis|None|BaseException|Exception|StopAsyncIteration"),
    (r"py:exc", r"(Connection|Lookup|OS|Runtime|Timeout|Type|Value)Error"),
    (r"py:class", r"(Connection|OS|Runtime|Timeout|Type|Value)Error"),
    # The standard library's, by module, and as annotations have them.
    (r"py:.*", r"(abc|asyncio|collections|contextlib|enum|http|logging|os|ssl|zlib)\..*"),
    (r"py:.*", r"(_ssl|socket|types|typing)\..*"),
    (r"py:class", r"Abstract(Async)?ContextManager|Any|(Async)?(Iterable|Iterator)|Awaitable"),
    (r"py:class", r"Callable|EllipsisType|Literal|Mapping|Sequence|TracebackType|T"),
    # Of anyio and wsproto, in the same way.
    (r"py:.*", r"(anyio|pytest|wsproto)\..*"),
    (r"py:class", r"ByteStream|Extension|ObjectStream|TaskStatus"),
    # Of OpenTelemetry.
    (r"py:class", r"(Meter|Tracer)Provider"),
    # In wsproto's own docstrings, which are shown with its events.
    (r"py:meth", r"response"),
    (r"py:class", r"RejectData"),
]


def public_name(app: Sphinx, env: BuildEnvironment, node: Any, content: nodes.Node) -> Any:
    """Take a name for the one public object that is called so.

    Annotations and docstrings write `Settings` and `Websocket.send` wherever they stand, as the
    code does, and autodoc says in which module something is defined rather than where it is public.
    """
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"]
    objects = {
        name: entry
        for name, entry in env.domains.python_domain.objects.items()
        if not entry.aliased and entry.objtype != "module"
    }
    found = [name for name in objects if name == target or name.endswith(f".{target}")]
    if not found and target.startswith(("asyncwebsockets.", "asgi_bridge.")):
        last = target.rpartition(".")[2]
        found = [name for name in objects if name.count(".") == 1 and name.endswith(f".{last}")]
    if len(found) != 1:
        return None
    entry = objects[found[0]]
    return make_refnode(
        app.builder, node["refdoc"], entry.docname, entry.node_id, content, found[0]
    )


def setup(app: Sphinx) -> None:
    app.connect("missing-reference", public_name)
