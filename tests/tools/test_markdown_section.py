"""Generated sections of Markdown pages."""

import pytest

from tests.helpers import raises
from tools.markdown_section import write_section


@pytest.mark.parametrize("end", ["<!-- end of table -->", "<!-- /table -->"])
def test_only_the_section_changes(end, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"# É\n\n<!-- table -->\n\nold\n\n{end}\n\nafter\n", encoding="utf-8")
    for _ in range(2):
        write_section(page, "table", "| \\1 |\n| --- |\n")
        expected = f"# É\n\n<!-- table -->\n\n| \\1 |\n| --- |\n\n{end}\n\nafter\n"
        assert page.read_text(encoding="utf-8") == expected
    assert [path.name for path in tmp_path.iterdir()] == ["page.md"]


@pytest.mark.parametrize(
    "content", ["", "<!-- table -->\n", "<!-- table -->\n<!-- /table -->\n" * 2]
)
def test_errors(content, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(content)
    with raises(
        f"{page} must have the lines `<!-- table -->` and `<!-- end of table -->` exactly once."
    ):
        write_section(page, "table", "new")
    assert page.read_text() == content
