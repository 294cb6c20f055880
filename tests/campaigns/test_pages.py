"""The campaign on pages, small."""

import pytest

from tests.campaigns import pages


def test_pages() -> None:
    counts = pages.campaign(24, 1)
    assert [counts[kind] for kind in pages.PAGES] == [4] * 6
    assert counts["texts found"] > 60
    assert min(counts["programs"], counts["charts"]) >= 8


@pytest.mark.parametrize(
    "html",
    [
        "<p>a</p><script>x</script>",
        "<p onclick=x>a</p>",
        "<p class='x\"'>a</p>",
        "<!-- a -->",
        "<a href=//x>a</a>",
        "<div><zqjx></div>",
    ],
)
def test_the_parser_finds_markup(html: str) -> None:
    assert pages.inert("<p class='about'>&lt;b&gt;</p>") == "<b>"
    with pytest.raises(AssertionError):
        pages.inert(html)
