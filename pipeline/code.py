"""Which of the project's code a stage script runs, and a digest of it, read from the source text.

A stage depends on its script's digest, not on some forty files one by one: DVC reads and writes
`dvc.lock` as a whole for every stage that it runs, and those entries were two thirds of it.

The digest follows names from definition to definition: functions, classes as a whole, and values of
modules. What is not reached does not count, nor do comments, docstrings, layout, annotations of
functions, and the words of errors and warnings. Where a text cannot tell what is reached, more
counts: a module that is used as a value or named in a string is taken whole, and what a module does
when it is imported always counts.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import posixpath
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# What only watches: records and MLflow are told of results, this file and `owner` decide whether
# work goes on. None of them can change a result, so that an edit there leaves three million
# embeddings alone.
WATCHING = ("pipeline/tracking/", "pipeline/code.py", "pipeline/owner.py")

# Values that hold an entry for every kind of something, and a stage is of one kind: only that
# kind's entry counts for it (`digests(script, kinds)`).
METHODS = ("pipeline/prompts/__init__.py", "METHODS")
TABLES = {
    METHODS: "prompt",
    ("pipeline/gram/regulator.py", "RULES"): "regulator",
    # only says what params.yaml may hold: no entry counts for anybody
    ("pipeline/gram/params.py", "Prompt"): "",
}

OWN = ("pipeline", "stages", "_repository")
MENTION = re.compile(rf"\b(?:{'|'.join(OWN)})(?:\.\w+)+|[\w/.-]*\w\.py\b")
# Decorators that only wrap what they stand over; others may have it called by its mere being there.
WRAPPERS = {
    "cache",
    "cached_property",
    "classmethod",
    "contextmanager",
    "dataclass",
    "field_validator",
    "lru_cache",
    "model_validator",
    "property",
    "staticmethod",
    "wraps",
}
# A definition that uses one of these may reach any name of its module.
ANY_NAME = {"globals", "eval", "exec", "vars", "locals"}
# … and one that uses these, any module.
ANY_MODULE = {"__import__", "import_module", "run_module", "run_path", "walk_packages"}
WHOLE = "*"  # instead of a name: all of a module
ASIDE = {"ctx", "type_comment", "kind", "type_ignores", "type_params"}  # differ between Pythons


Reference = tuple[str, str]  # (file, name in it), or (file, WHOLE)


@dataclass
class Part:
    """A definition or statement of a module: its text as it acts, and what it names.

    Attributes:
        names: names that it uses, with the attribute if one is taken of it.
        strings: texts that may name modules or scripts. imports: of its own, in functions.
        entries: kind → part, if it is one of `TABLES`; the rest of it stands here.
    """

    text: str
    names: frozenset[tuple[str, str | None]]
    strings: frozenset[str]
    imports: tuple[ast.stmt, ...] = ()
    entries: dict[str, Part] = field(default_factory=dict)


@dataclass
class Module:
    """A file of the project.

    Attributes:
        defined: what each of its names is. bound: names that imports give, to where they lead.
        at_import: what it does when it is imported. when_run: what it does as a script besides.
        imports: statements that run when it is imported. unused: what they name and nothing uses,
        dotted. classes: those among what is defined.
    """

    path: str
    defined: dict[str, list[Part]] = field(default_factory=dict)
    bound: dict[str, set[str]] = field(default_factory=dict)
    at_import: list[Part] = field(default_factory=list)
    when_run: list[Part] = field(default_factory=list)
    imports: list[ast.stmt] = field(default_factory=list)
    unused: set[str] = field(default_factory=set)
    classes: list[Part] = field(default_factory=list)
    problem: str | None = None

    def defined_text(self) -> str:
        return "".join(part.text for part in self.classes)


def _without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    first = body[0] if body else None
    if (
        isinstance(first, ast.Expr)
        and isinstance(first.value, ast.Constant)
        and isinstance(first.value.value, str)
    ):
        return body[1:]
    return body


def _called(node: ast.AST) -> str:
    """The last name of what is called or named: `warn` of `stage.warn(…)`."""
    if isinstance(node, ast.Call):
        return _called(node.func)
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


class _Reader:
    """Writes a tree down in a form of its own, the same under every Python; notes what it names.

    `ast.unparse` and `ast.dump` change from version to version.
    """

    def __init__(self, watching: frozenset[str]) -> None:
        self.watching = watching  # names whose calls only tell somebody
        self.names: set[tuple[str, str | None]] = set()
        self.strings: set[str] = set()
        self.imports: list[ast.stmt] = []

    def part(self, node: ast.AST, **entries: Part) -> Part:
        text = self.text(node)
        return Part(
            text, frozenset(self.names), frozenset(self.strings), tuple(self.imports), entries
        )

    def text(self, node: object, in_class: bool = False) -> str:
        if isinstance(node, list):
            return f"[{','.join(self.text(item, in_class) for item in node)}]"
        if not isinstance(node, ast.AST):
            return f"{type(node).__name__}:{node!r}"
        special = getattr(self, f"_{type(node).__name__}", None)
        return special(node, in_class) if special else self._fields(node)

    def _fields(self, node: ast.AST, *but: str) -> str:
        parts = [
            f"{name}={self.text(value)}"
            for name, value in ast.iter_fields(node)
            # an empty list is what an older Python has no field for
            if name not in ASIDE and name not in but and value is not None and value != []
        ]
        return f"{type(node).__name__}({','.join(parts)})"

    def _body(self, node: ast.AST, in_class: bool) -> str:
        statements = [n for n in _without_docstring(node.body) if not isinstance(n, ast.Pass)]
        return f"[{','.join(self.text(n, in_class) for n in statements)}]"

    def _FunctionDef(self, node: ast.FunctionDef, in_class: bool) -> str:
        plain = all(_called(d) in WRAPPERS for d in node.decorator_list)
        arguments = self._arguments(node.args, with_annotations=not plain)
        return (
            f"{type(node).__name__}({node.name},{arguments},{self.text(node.decorator_list)},"
            f"{self._body(node, False)})"
        )

    _AsyncFunctionDef = _FunctionDef

    def _arguments(self, node: ast.arguments, with_annotations: bool = False) -> str:
        if with_annotations:
            return self._fields(node)
        every = [*node.posonlyargs, *node.args, *node.kwonlyargs, node.vararg, node.kwarg]
        names = [a and a.arg for a in every]
        shape = (len(node.posonlyargs), len(node.args), len(node.kwonlyargs), names)
        return f"{shape}{self.text(node.defaults)}{self.text(node.kw_defaults)}"

    def _Lambda(self, node: ast.Lambda, in_class: bool) -> str:
        return f"Lambda({self._arguments(node.args)},{self.text(node.body)})"

    def _ClassDef(self, node: ast.ClassDef, in_class: bool) -> str:
        return f"{self._fields(node, 'body')}{self._body(node, True)}"

    def _AnnAssign(self, node: ast.AnnAssign, in_class: bool) -> str:
        if in_class:  # a field: of a dataclass, a model
            return self._fields(node)
        if node.value is None:
            return ""
        return f"Assign(targets=[{self.text(node.target)}],value={self.text(node.value)})"

    def _Import(self, node: ast.stmt, in_class: bool) -> str:
        self.imports.append(node)
        return ""

    _ImportFrom = _Import

    def _Constant(self, node: ast.Constant, in_class: bool) -> str:
        if isinstance(node.value, str):
            self.strings |= set(MENTION.findall(node.value))
        return f"{type(node.value).__name__}:{node.value!a}"

    def _JoinedStr(self, node: ast.JoinedStr, in_class: bool) -> str:
        found: list[str] = []
        run = ""
        for value in node.values:  # Pythons cut the fixed text differently
            if isinstance(value, ast.Constant):
                run += value.value
                continue
            found += [*([ascii(run)] if run else []), self.text(value)]
            run = ""
        self.strings |= {
            mention
            for value in node.values
            if isinstance(value, ast.Constant)
            for mention in MENTION.findall(value.value)
        }
        return f"JoinedStr({','.join([*found, *([ascii(run)] if run else [])])})"

    def _Name(self, node: ast.Name, in_class: bool) -> str:
        self.names.add((node.id, None))
        return f"Name({node.id})"

    def _Attribute(self, node: ast.Attribute, in_class: bool) -> str:
        chain, here = [node.attr], node.value
        while isinstance(here, ast.Attribute):
            chain, here = [here.attr, *chain], here.value
        if isinstance(here, ast.Name):
            self.names.add((here.id, ".".join(chain)))
            return f"Name({here.id}).{'.'.join(chain)}"
        return f"{self.text(node.value)}.{node.attr}"

    def _Raise(self, node: ast.Raise, in_class: bool) -> str:
        if not isinstance(node.exc, ast.Call):
            return self._fields(node)
        return f"Raise({self.text(node.exc.func)},{self._silent(node.exc)},{self.text(node.cause)})"

    def _Assert(self, node: ast.Assert, in_class: bool) -> str:
        return f"Assert({self.text(node.test)})"

    def _Call(self, node: ast.Call, in_class: bool) -> str:
        if _called(node) == "warn":
            return f"Call({self.text(node.func)},{self._silent(node)})"
        if _called(node) in ANY_MODULE and node.args and _names_its_module(node.args[0]):
            return f"Call({_called(node)},{self.text(node.args)},{self.text(node.keywords)})"
        if _called(node) == "add_argument":
            spoken = [k for k in node.keywords if k.arg != "help"]
            return f"Call({self.text(node.func)},{self.text(node.args)},{self.text(spoken)})"
        return self._fields(node)

    def _silent(self, call: ast.Call) -> str:
        """Arguments without their words: what is no text."""
        kept = [*call.args, *(k.value for k in call.keywords)]
        return self.text([value for value in kept if not _wording(value)])

    def _Expr(self, node: ast.Expr, in_class: bool) -> str:
        call = node.value
        told = isinstance(call, ast.Call) and getattr(call.func, "id", "") in self.watching
        return "" if told else self._fields(node)


def _names_its_module(node: ast.expr) -> bool:
    """Whether a text tells the module or the package, or that it is none of the project's."""
    first = node.values[0] if isinstance(node, ast.JoinedStr) else node
    text = first.value if isinstance(first, ast.Constant) else None
    return isinstance(text, str) and (first is node or "." in text)


def _wording(node: ast.expr) -> bool:
    """Whether an expression is a text, as far as it shows."""
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str)
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Mod)):
        return _wording(node.left) or _wording(node.right)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return _wording(node.func.value)  # a method of a text
    if isinstance(node, ast.IfExp):
        return _wording(node.body) and _wording(node.orelse)
    return isinstance(node, ast.JoinedStr)


def _imported(node: ast.stmt, file: str) -> Iterator[tuple[str, str]]:
    """(name that an import gives, dotted name of what it is) of every one of a statement's."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            top = alias.name.partition(".")[0]
            yield (alias.asname, alias.name) if alias.asname else (top, top)
    elif isinstance(node, ast.ImportFrom):
        package = Path(file).parent.parts[: len(Path(file).parts) - node.level]
        origin = ".".join([*(package if node.level else ()), *filter(None, [node.module])])
        for alias in node.names:
            yield alias.asname or alias.name, f"{origin}.{alias.name}"


def _targets(node: ast.stmt) -> list[str] | None:
    """The names that an assignment gives; None if it does anything else besides."""
    if isinstance(node, ast.AnnAssign):
        return [node.target.id] if isinstance(node.target, ast.Name) else None
    if type(node).__name__ == "TypeAlias":
        return [node.name.id]
    if not isinstance(node, ast.Assign):
        return None
    found = []
    for target in node.targets:
        flat = target.elts if isinstance(target, (ast.Tuple, ast.List)) else [target]
        if not all(isinstance(t, ast.Name) for t in flat):
            return None
        found += [t.id for t in flat]
    return found


def _stored(node: ast.AST) -> set[str]:
    """Every name that a statement gives, at any depth."""
    names = {n.name for n in ast.walk(node) if hasattr(n, "name") and isinstance(n.name, str)}
    return names | {
        n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
    }


def _is_main_guard(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and any(
        isinstance(n, ast.Name) and n.id == "__name__" for n in ast.walk(node.test)
    )


def _calls_own(node: ast.AST, own: set[str]) -> bool:
    return any(
        isinstance(n, ast.Call)
        and any(isinstance(m, ast.Name) and m.id in own for m in ast.walk(n))
        for n in ast.walk(node)
    )


def _entries(node: ast.stmt) -> dict[str, ast.AST] | None:
    """The entries of a table by kind: of a dictionary, or of a Literal."""
    value = getattr(node, "value", None)
    if isinstance(value, ast.Dict):
        pairs = list(zip(value.keys, value.values, strict=True))
    elif isinstance(value, ast.Subscript) and isinstance(value.slice, ast.Tuple):
        pairs = [(item, item) for item in value.slice.elts]
    else:
        return None
    if not all(isinstance(key, ast.Constant) for key, _ in pairs):
        return None
    return {key.value: entry for key, entry in pairs}


class _Builder:
    """Makes a `Module` of a tree."""

    def __init__(self, file: str, tree: ast.Module) -> None:
        self.file, self.made = file, Module(file)
        for node in ast.walk(tree):
            for name, dotted in _imported(node, file) if isinstance(node, ast.stmt) else ():
                self.made.bound.setdefault(name, set()).add(dotted)
        bound = self.made.bound.items()
        self.watching = frozenset(
            name
            for name, origins in bound
            if all(o.startswith("pipeline.tracking") for o in origins)
        )
        definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        self.own = {node.name for node in tree.body if isinstance(node, definitions)} | {
            name for name, origins in bound if any(o.partition(".")[0] in OWN for o in origins)
        }
        self.used = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
        for node in _without_docstring(tree.body):
            self.add(node)

    def part(self, node: ast.AST, **entries: Part) -> Part:
        return _Reader(self.watching).part(node, **entries)

    def add(self, node: ast.stmt) -> None:
        made = self.made
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            made.imports.append(node)
            for name, dotted in _imported(node, self.file):
                if name not in self.used and not dotted.startswith("__future__"):
                    # imported for what it does
                    made.unused |= {dotted, *(alias.name for alias in node.names)}
        elif _is_main_guard(node):
            made.when_run.append(self.part(node))
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            made.defined.setdefault(node.name, []).append(part := self.part(node))
            if any(_called(d) not in WRAPPERS for d in node.decorator_list):
                made.at_import.append(part)  # the decorator may keep it somewhere
            elif isinstance(node, ast.ClassDef):
                made.classes.append(part)
        elif (targets := _targets(node)) is not None:
            for target in targets:
                made.defined.setdefault(target, []).append(part := self.value(node, target))
                if _calls_own(getattr(node, "value", node), self.own):
                    made.at_import.append(part)
        elif not (isinstance(node, ast.If) and _called(node.test) == "TYPE_CHECKING"):
            part = self.part(node)
            made.at_import.append(part)
            for name in _stored(node):
                made.defined.setdefault(name, []).append(part)

    def value(self, node: ast.stmt, target: str) -> Part:
        entries = _entries(node) if (self.file, target) in TABLES else None
        if entries is None:
            return self.part(node)
        parts = {kind: self.part(entry) for kind, entry in entries.items()}
        for kind, part in parts.items():
            part.text = f"{target}[{kind!r}] = {part.text}"
        return Part(f"{target} = a table", frozenset(), frozenset(), (), parts)


@cache
def _parsed(file: str, content: bytes) -> Module:
    try:
        return _Builder(file, ast.parse(content)).made
    except (SyntaxError, ValueError, RecursionError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        broken = Part(hashlib.sha256(content).hexdigest(), frozenset(), frozenset())
        problem = f"{file}{line}: not Python ({getattr(error, 'msg', error)})"
        return Module(file, at_import=[broken], problem=problem)


class _Walk:
    """Goes from a script along imports and names, and keeps the texts of what it meets, by file."""

    def __init__(self, kinds: Mapping[str, str]) -> None:
        self.kinds, self.root = kinds, ROOT.resolve()
        self.files = {
            Path(folder, name).relative_to(self.root).as_posix()
            for top in ("pipeline", "stages")
            for folder, _, names in os.walk(self.root / top)
            for name in names
            if name.endswith(".py")
        }
        self.texts: dict[str, set[str]] = {}
        self.modules: dict[str, Module] = {}
        self.done: set[Reference] = set()
        self.waiting: list[tuple[str, Part]] = []
        self.classes_act = False

    def all_from(self, script: str) -> None:
        self.use(script, WHOLE)
        while self.waiting:
            self.expand(*self.waiting.pop())

    def file(self, module: str) -> str | None:
        """The file of a dotted name, if it is a module of the project."""
        base = "stages/_repository" if module == "_repository" else module.replace(".", "/")
        found = (f"{base}.py", f"{base}/__init__.py")
        return next((name for name in found if name in self.files), None)

    def packages(self, file: str) -> list[str]:
        """The __init__ of every package over a file, which Python imports first."""
        folders = file.split("/")[:-1]
        inits = ("/".join([*folders[:n], "__init__.py"]) for n in range(1, len(folders) + 1))
        return [name for name in inits if name in self.files]

    def loaded_by(self, node: ast.stmt, file: str) -> Iterator[str]:
        """The project's files that an import statement loads, with the packages over them."""
        dotted = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for _, name in _imported(node, file) if isinstance(node, ast.ImportFrom) else ():
            dotted += [name, name.rpartition(".")[0]]
        for found in filter(None, map(self.file, dotted)):
            yield from (*self.packages(found), found)

    def load(self, file: str) -> Module:
        """What Python does when it imports a file."""
        if file in self.modules:
            return self.modules[file]
        made = _parsed(file, self.root.joinpath(file).read_bytes())
        self.modules[file], texts = made, self.texts.setdefault(file, set())
        texts |= {f"import {name}" for name in made.unused if name.partition(".")[0] not in OWN}
        if made.at_import:
            texts.add("at import: " + "; ".join(part.text for part in made.at_import))
        self.waiting += [(file, part) for part in made.at_import]
        self.waiting += [(file, part) for part in made.classes if self.classes_act]
        for node in made.imports:
            self.follow(node, file)
        return made

    def follow(self, node: ast.stmt, file: str) -> None:
        for found in self.loaded_by(node, file):
            if not found.startswith(WATCHING):
                self.load(found)
        if isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
            for _, dotted in _imported(node, file):
                self.resolve(dotted.removesuffix(".*"))

    def use(self, file: str, name: str) -> None:
        """What a name of a file stands for."""
        if (file, name) in self.done or file.startswith(WATCHING):
            return
        self.done.add((file, name))
        for package in self.packages(file):
            self.load(package)
        made = self.load(file)
        if name == WHOLE:
            parts = [part for parts in made.defined.values() for part in parts]
            self.waiting += [(file, part) for part in [*parts, *made.when_run]]
        elif name in made.defined:
            self.waiting += [(file, part) for part in made.defined[name]]
        elif name in made.bound:
            for dotted in made.bound[name]:
                self.resolve(dotted)
        elif "__getattr__" in made.defined:
            self.use(file, WHOLE)

    def resolve(self, dotted: str) -> bool:
        """Follows a dotted name into the project: to a name of a module, or to a whole one."""
        parts = dotted.split(".")
        for end in range(len(parts), 0, -1):
            if file := self.file(".".join(parts[:end])):
                self.use(file, parts[end] if end < len(parts) else WHOLE)
                return True
        return False

    def expand(self, file: str, part: Part) -> None:
        self.texts[file].add(part.text)
        made, family = self.modules[file], TABLES.get((file, part.text.partition(" ")[0]), "")
        for kind, entry in part.entries.items():
            if family and self.kinds.get(family, kind) == kind:
                self.expand(file, entry)
        for node in part.imports:
            self.follow(node, file)
        for name, attribute in part.names:
            if name in made.defined:
                self.use(file, name)
            for dotted in made.bound.get(name, ()):
                whole = f"{dotted}.{attribute}" if attribute else dotted
                if not self.resolve(whole):
                    self.texts[file].add(f"{name} is {dotted}")
            if name in ANY_NAME:
                self.use(file, WHOLE)
            if {name, (attribute or "").rpartition(".")[2]} & ANY_MODULE:
                self.mentioned("pipeline", file)
        for text in part.strings:
            self.mentioned(text, file)

    def mentioned(self, text: str, file: str) -> None:
        """A script or module that a text names: it may be run, or imported by that name."""
        if text.endswith(".py"):
            for folder in ("", posixpath.dirname(file)):
                if (path := posixpath.normpath(posixpath.join(folder, text))) in self.files:
                    self.use(path, WHOLE)
            return
        self.resolve(text)
        inside = text.replace(".", "/") + "/"
        for path in sorted(name for name in self.files if name.startswith(inside)):
            self.use(path, WHOLE)


def _walked(script: Path, kinds: Mapping[str, str]) -> _Walk:
    name = script.resolve().relative_to(ROOT.resolve()).as_posix()
    walk = _Walk(kinds)
    walk.all_from(name)
    if any("__init_subclass__" in made.defined_text() for made in walk.modules.values()):
        walk = _Walk(kinds)
        walk.classes_act = True
        walk.all_from(name)
    return walk


def closure(script: Path) -> list[str]:
    """The files that a script loads, in functions that it may call too: relative to the repository,
    sorted, without the script itself and without empty ones.
    """
    files = _walked(script, {}).modules
    own = script.resolve().relative_to(ROOT.resolve()).as_posix()
    return sorted(f for f in files if f != own and ROOT.joinpath(f).stat().st_size)


def reached(script: Path) -> set[Reference]:
    """(file, name in it) of every definition that a script reaches; for the documentation."""
    return set(_walked(script, {}).done)


def digests(script: Path, kinds: Mapping[str, str] | None = None) -> dict[str, str]:
    """SHA-256 of what counts of the script and of every file that it loads; "" where nothing does.

    Args:
        kinds: of which kind the script's stage is (`TABLES`), as {"prompt": "coop"}; other kinds'
            entries do not count. Without, all do.
    """
    return {
        file: hashlib.sha256("\n".join(sorted(texts)).encode()).hexdigest() if texts else ""
        for file, texts in sorted(_walked(script, kinds or {}).texts.items())
    }


def is_of_a_method(script: Path) -> bool:
    """Whether a script runs one of the prompt methods, so that its digest is the method's."""
    return METHODS in _walked(script, {}).done


def problems(script: Path) -> list[str]:
    """The files of a script that are no Python, with line and reason."""
    made = _walked(script, {}).modules.values()
    return [module.problem for module in made if module.problem]


def _stage_script() -> Path | None:
    """The stage script that this process is, if it is one."""
    script = Path(getattr(sys.modules["__main__"], "__file__", None) or "-").resolve()
    return script if script.parent == ROOT / "stages" else None


def edited_since(taken: Path) -> list[str]:
    """The files of the running stage script that are not as a folder of digests (stages/code.py)
    says; none if it says nothing of the script.
    """
    script = _stage_script()
    path = taken / f"{script.stem}.json" if script else taken
    if script is None or not path.is_file():
        return []
    told = json.loads(path.read_text(encoding="utf-8"))
    found = {file: digest for file, digest in digests(script).items() if digest}
    return sorted(f for f in told.keys() | found.keys() if told.get(f) != found.get(f))


def running() -> str:
    """A digest of the code that this process runs: of its stage script, or, elsewhere (a test, a
    notebook), of what is loaded of the project.
    """
    if script := _stage_script():
        found = digests(script)
    else:
        files = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
        paths = {Path(file).resolve() for file in files if file}
        names = {p.relative_to(ROOT).as_posix() for p in paths if p.is_relative_to(ROOT)}
        walk = _Walk({})
        for name in sorted(names):
            if name.startswith("pipeline/"):
                walk.all_from(name)
        found = {name: sorted(texts) for name, texts in walk.texts.items()}
    return hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest()
