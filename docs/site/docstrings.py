"""Docstrings of this project as reStructuredText: plain text with `code` in it, and sections."""

import re
import textwrap

CODE = re.compile(r"`([^`]+)`")
MARKS = re.compile(r"[\\*|]|(?<=\w)_(?=\W|$)")
SECTION = re.compile(r"(Attributes|Args|Returns|Raises|Yields)( \([^)]*\))?:")
# What a name in Args or Attributes begins with: the line, or the end of a sentence.
ITEM = re.compile(r"(?:^|(?<=[.)] ))([\w/*]+(?:, [\w/*]+)*): ")


def _marked(text):
    """Code as code; what reStructuredText would take for another mark stands for itself."""
    parts = CODE.split(" ".join(text.split()))
    return "".join(
        f"``{part.strip()}``" if place % 2 else MARKS.sub(r"\\\g<0>", part)
        for place, part in enumerate(parts)
    )


def _section(title, text):
    parts = ITEM.split(" ".join(text.split()))
    if title not in ("Args", "Attributes") or len(parts) < 3:
        return [f"**{title}:** {_marked(text)}"]
    items = [
        f"* **{_marked(n)}**: {_marked(t)}" for n, t in zip(parts[1::2], parts[2::2], strict=True)
    ]
    return [f"**{title}:** {_marked(parts[0])}".rstrip(), "", *items]


def _paragraph(lines):
    """One paragraph, which may be a section, or end in one."""
    for place, line in enumerate(lines):
        match = SECTION.match(line.strip())
        if match:
            before = [_marked("\n".join(lines[:place])), ""] if place else []
            inside = [line[match.end() :].strip(), *lines[place + 1 :]]
            kept = [text for text in inside if not text or text.startswith(" ")] or inside
            after = inside[len(kept) :]
            found = [*before, *_section(match[1], "\n".join(kept))]
            return [*found, "", *_paragraph(after)] if after else found
    return [_marked("\n".join(lines))]


def as_restructured(app, what, name, obj, options, lines):
    """Rewrites `lines` in place (the event `autodoc-process-docstring`): indented paragraphs are
    commands or formulas and stay as they are.
    """
    found, in_section = [], False
    for paragraph in "\n".join(lines).split("\n\n"):
        rows = [row for row in paragraph.split("\n") if row.strip()]
        if rows and rows[0].startswith("    ") and not in_section:
            found += ["::", "", textwrap.indent(textwrap.dedent("\n".join(rows)), "    "), ""]
        elif rows:
            found += [*_paragraph(rows), ""]
        in_section = bool(rows) and bool(SECTION.match(rows[0].strip()))
    lines[:] = "\n".join(found).split("\n")


def not_ours(app, what, name, obj, skip, options):
    """Leaves out what scikit-learn adds to an estimator (`autodoc-skip-member`)."""
    return True if name.startswith("set_") and name.endswith("_request") else None
