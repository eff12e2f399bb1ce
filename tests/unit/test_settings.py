"""Settings: where values come from, what is refused and how it is said, and that the page lists them all."""

import re
from pathlib import Path

import pytest

from checks.settings_page import PAGE, settings_page
from stillmotion.errors import UserError
from stillmotion.settings import PREFIX, Settings, describe_settings, load_settings, without_password


def test_default_holds_when_nothing_is_given() -> None:
    assert load_settings({}, {}).port == 8000


def test_flag_wins_over_environment() -> None:
    assert load_settings({"port": 1}, {"STILLMOTION_PORT": "2"}).port == 1


def test_flag_that_is_none_was_not_given() -> None:
    assert load_settings({"port": None}, {"STILLMOTION_PORT": "2"}).port == 2


def test_lists_are_split_at_commas() -> None:
    settings = load_settings({}, {"STILLMOTION_FETCH_ALLOW": "10.0.0.0/8, pictures.example ,"})
    assert settings.fetch_allow == ["10.0.0.0/8", "pictures.example"]


def test_empty_variable_unsets_an_optional_setting() -> None:
    assert load_settings({}, {"STILLMOTION_TLS_PORT": ""}).tls_port is None
    assert load_settings({}, {"STILLMOTION_PUBLIC_URL": ""}).public_url is None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("PORT", "70000"),
        ("PORT", "http"),
        ("LEASE_S", "0"),
        ("LEASE_S", "inf"),
        ("MAX_CRASHES", "-1"),
        ("UPLOAD_DAYS", "1e9"),
        ("TRUSTED_PROXIES", "10.0.0.0/8,proxy"),
        ("PROXY_ORIGINS", "self,app.example"),
        ("PROXY_ORIGINS", "app.example:3000"),
        ("PROXY_ORIGINS", "*"),
        ("PROXY_ORIGINS", "https://*.example"),
        ("PUBLIC_URL", "films.example"),
        ("PUBLIC_URL", "https://films.example/?a=b"),
        ("PUBLIC_URL", "https://films.example:port"),
        ("DATABASE_URL", "sqlite:////srv/films.db"),
        ("DATABASE_URL", "postgres://films@db/films"),
    ],
)
def test_wrong_value_is_refused_with_variable_and_value(name: str, text: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"STILLMOTION_{name} is {text!r}")):
        load_settings({}, {f"STILLMOTION_{name}": text})


@pytest.mark.parametrize("password", ["s3cret", "s3:ret", "s3/ret", "s3@ret", "s3#r?t"])
def test_a_refused_database_url_is_told_without_its_password(password: str) -> None:
    with pytest.raises(UserError, match=re.escape("'mysql://films:***@db/films'")):
        load_settings({}, {"STILLMOTION_DATABASE_URL": f"mysql://films:{password}@db/films"})


def test_a_password_among_a_urls_parameters_is_hidden_too() -> None:
    url = "postgresql+psycopg:///films?user=me&password=s3cret&host=db"
    assert without_password(url) == url.replace("s3cret", "***")


def test_variables_of_others_are_ignored() -> None:
    assert load_settings({}, {"STILLMOTION_UNHEARD_OF": "1", "PORT": "9"}) == Settings()


def test_settings_cannot_change_after_start() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().port = 1  # pyright: ignore[reportAttributeAccessIssue]


def test_sqlite_file_lies_in_the_data_directory() -> None:
    assert Settings(data_dir=Path("/srv/films")).store_url == "sqlite:////srv/films/stillmotion.db"


def test_database_url_takes_the_files_place() -> None:
    assert Settings(database_url="postgresql+psycopg://db/films").store_url == "postgresql+psycopg://db/films"


def test_origin_says_flag_environment_or_default() -> None:
    environ = {"STILLMOTION_LEASE_S": "30", "STILLMOTION_PORT": "1"}
    flags = {"port": 2}
    rows = {row.name: row for row in describe_settings(load_settings(flags, environ), flags, environ)}
    assert (rows["STILLMOTION_PORT"].source, rows["STILLMOTION_PORT"].value) == ("flag", "2")
    assert (rows["STILLMOTION_LEASE_S"].source, rows["STILLMOTION_LEASE_S"].value) == ("environment", "30.0")
    assert rows["STILLMOTION_HOST"].source == "default"


def test_every_setting_is_explained() -> None:
    for row in describe_settings(Settings(), {}, {}):
        assert row.unit and row.description.endswith("."), row.name


def test_every_variable_a_page_names_is_a_setting() -> None:
    root = PAGE.parents[1]
    pages = [*root.glob("*.md"), *(root / "docs").glob("*.md")]
    named = {
        name for page in pages for name in re.findall(rf"{PREFIX}(\w+)", page.read_text(encoding="utf-8"))
    }
    assert named == {name.upper() for name in Settings.model_fields}


def test_settings_page_lists_every_setting_and_is_up_to_date() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == settings_page(), "run `make docs`"
    for name in Settings.model_fields:
        assert f"`{PREFIX}{name.upper()}`" in page
