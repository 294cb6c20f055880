"""The campaign on pages, small."""

import gc

import pytest

from tests.campaigns import pages


# gradio leaves the event loop of the thread in which a page is built
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_pages() -> None:
    counts = pages.campaign(24, 1)
    assert [counts[kind] for kind in pages.PAGES] == [4] * 6
    assert counts["texts found"] > 60
    assert min(counts["programs"], counts["charts"]) >= 8
    gc.collect()  # else the loops would be found in another test


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
