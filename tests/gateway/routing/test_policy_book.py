"""Hot reload: valid edits at once, invalid ones never, whatever way the file is replaced."""

import os
from pathlib import Path

import pytest

from gateway.errors import SettingsError
from gateway.routing.policy_book import PolicyBook, UnknownPolicy
from gateway.settings import RoutingSettings
from policies.problems import PolicyError


def text(route: str) -> str:
    return f'[default]\nroute = "{route}"\n'


def book_of(folder: Path, policy: str = "mine") -> PolicyBook:
    return PolicyBook(RoutingSettings(policy=policy, policy_dirs=[str(folder)]))


def route(book: PolicyBook) -> str | None:
    return book.get().policy.default.route


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(text("nano"))
    return path


def test_valid_edit_takes_effect_on_the_next_get(file: Path) -> None:
    """Ten edits of the same size in a row are all seen, however coarse the file's clock is."""
    book = book_of(file.parent)
    first = book.get()
    assert first.ref == f"mine@{first.sha256[:8]}"
    for index in range(10):
        name = "base" if index % 2 else "tiny"
        file.write_text(text(name))
        assert route(book) == name
    assert book.get().sha256 != first.sha256
    assert book.problems() == []


def test_unchanged_file_gives_the_same_object(file: Path) -> None:
    """A request costs a look at the file, not a parse."""
    book = book_of(file.parent)
    assert book.get() is book.get()
    os.utime(file)
    assert book.get().policy is book.get().policy


def test_invalid_edit_keeps_the_old_and_is_reported(file: Path) -> None:
    """The version that worked stays, /health says what is wrong, and the next good edit heals."""
    book = book_of(file.parent)
    file.write_text('[default]\nroute = "nano"\ndeny = "x"\n')
    assert route(book) == "nano"
    (problem,) = book.problems()
    assert str(file) in problem
    assert "exactly one of" in problem
    assert "the last valid version stays" in problem
    file.write_bytes(b"\xff\xfe")
    assert route(book) == "nano"
    file.write_text(text("small"))
    assert route(book) == "small"
    assert book.problems() == []


def test_problems_sees_an_invalid_edit_without_a_request(file: Path) -> None:
    """/health reports a broken file even when nobody has asked for the policy since."""
    book = book_of(file.parent)
    file.write_text("nonsense")
    assert len(book.problems()) == 1


def test_atomic_replace_and_removal(file: Path) -> None:
    """An editor's rename is an edit; a file that is gone leaves the old version and a problem."""
    book = book_of(file.parent)
    other = file.with_suffix(".new")
    other.write_text(text("small"))
    other.replace(file)
    assert route(book) == "small"
    file.unlink()
    assert route(book) == "small"
    assert "gone" in book.problems()[0]
    file.write_text(text("base"))
    assert route(book) == "base"
    assert book.problems() == []


def test_symlink_swap_is_an_edit(tmp_path: Path) -> None:
    """A folder swapped through a link, as Kubernetes does it, takes effect."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.toml").write_text(text(name))
    link = tmp_path / "current"
    link.symlink_to("one")
    book = book_of(link)
    assert route(book) == "one"
    swap = tmp_path / "swap"
    swap.symlink_to("two")
    swap.replace(link)
    assert route(book) == "two"


def test_own_folder_goes_before_the_shipped_ones(tmp_path: Path) -> None:
    """A file of a shipped policy's name takes over when it appears; gone, it is not replaced."""
    book = book_of(tmp_path, policy="default")
    assert route(book) == "base"
    own = tmp_path / "default.toml"
    own.write_text(text("small"))
    assert route(book) == "small"
    own.unlink()
    assert route(book) == "small"
    assert "stays until a restart" in book.problems()[0]
    assert {"cheapest", "default", "quality_first"} <= set(book.names())


@pytest.mark.parametrize("name", ["../mine", "/etc/passwd", "", "a/b", "mine.toml\n", "nope"])
def test_unknown_and_improper_names_are_refused(file: Path, name: str) -> None:
    """A name out of a request never leaves the folders."""
    book = book_of(file.parent)
    if name == "":
        assert book.get(name).name == "mine"
        return
    with pytest.raises(UnknownPolicy):
        book.get(name)


def test_policy_that_was_never_valid(file: Path) -> None:
    """At start it is a configuration error; asked for later it is a policy error."""
    bad = file.with_name("bad.toml")
    bad.write_text("[default]\n")
    with pytest.raises(SettingsError, match=r"routing\.policy: .*bad\.toml"):
        book_of(file.parent, policy="bad")
    with pytest.raises(SettingsError, match="no policy 'nope'"):
        book_of(file.parent, policy="nope")
    book = book_of(file.parent)
    with pytest.raises(PolicyError):
        book.get("bad")
    bad.write_text(text("small"))
    assert book.get("bad").policy.default.route == "small"


def test_edit_that_names_nobody_is_not_taken(file: Path) -> None:
    """A typo in a target keeps the version before; at start it decides, and is reported."""
    settings = RoutingSettings(policy="mine", policy_dirs=[str(file.parent)])
    book = PolicyBook(settings, {"nano", "small"})
    file.write_text(text("smal"))
    assert route(book) == "nano"
    (problem,) = book.problems()
    assert f"{file}: line 2: default.route: 'smal'" in problem
    assert "did you mean 'small'?" in problem
    fresh = PolicyBook(settings, {"nano", "small"})
    assert route(fresh) == "smal"
    assert "'smal'" in fresh.problems()[0]
    file.write_text(text("small"))
    assert [route(book), route(fresh)] == ["small", "small"]
    assert [book.problems(), fresh.problems()] == [[], []]
