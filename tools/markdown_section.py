"""Replaces a generated section of a Markdown page, between the two marks with its name."""

import re


def write_section(page, name, text):
    """Puts `text` between `<!-- name -->` and `<!-- end of name -->` (or `<!-- /name -->`).

    Args:
        page: `pathlib.Path` of the Markdown file.
        name: str, name of the section.
        text: str, its new content.

    Raises:
        ValueError: if the page does not have the two marks exactly once.
    """
    # Imported here, because it imports Keras: benchmarks.report does not need that to print.
    from keras_deit.atomic import atomic_file

    updated = with_section(page.read_text(encoding="utf-8"), name, text, page)
    with atomic_file(page) as file:
        file.write_text(updated, encoding="utf-8")


def with_section(content, name, text, page):
    """The content of a page with the section replaced."""
    marks = re.compile(
        rf"(?P<start><!-- {name} -->\n).*?(?P<end><!-- (?:end of |/){name} -->)", flags=re.DOTALL
    )
    if len(marks.findall(content)) != 1:
        raise ValueError(
            f"{page} must have the lines `<!-- {name} -->` and `<!-- end of {name} -->` exactly "
            "once."
        )
    # A function, because a string would need its backslashes escaped.
    return marks.sub(lambda found: f"{found['start']}\n{text.strip()}\n\n{found['end']}", content)
