"""The command line's parts that need no server: options, lock, admin operations, doctor, backup."""

import json
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import create_engine
from typer.testing import CliRunner

from stillmotion.cli import devices, doctor
from stillmotion.cli.admin import perform
from stillmotion.cli.backup import backup
from stillmotion.cli.datadir import (
    FIRST_KEY,
    Announcement,
    Lock,
    announce,
    make_first_key,
    read_announcement,
)
from stillmotion.cli.generate import generate
from stillmotion.cli.listeners import bind_tcp, bind_unix, socket_address
from stillmotion.cli.main import app
from stillmotion.cli.settings import show as show_settings
from stillmotion.errors import DataRefused, UserError
from stillmotion.keys import check_key
from stillmotion.media.signing import load_secret
from stillmotion.media.store import INCOMING
from stillmotion.net.tls import ensure_certificates
from stillmotion.profiles import load_profile, own_profile
from stillmotion.settings import PREFIX, Settings
from stillmotion.store.open import open_store
from stillmotion.types import Caller


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_help_loads_neither_torch_nor_the_store() -> None:
    heavy = "{'torch', 'sqlalchemy', 'PIL', 'starlette'}"
    told = f"import sys, stillmotion.cli.main; print(sorted({heavy} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_settings_prints_json_with_origin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "STILLMOTION_LEASE_S", "33")
    monkeypatch.setitem(os.environ, "STILLMOTION_DATABASE_URL", "postgresql+psycopg://me:hu/sh@db/films")
    rows = {row["name"]: row for row in json.loads(CliRunner().invoke(app, ["settings", "--json"]).stdout)}
    assert rows["STILLMOTION_LEASE_S"]["source"] == "environment"
    assert rows["STILLMOTION_DATABASE_URL"]["value"] == "postgresql+psycopg://me:***@db/films"


def test_settings_are_printed_on_a_terminal_that_knows_ascii_alone() -> None:
    words = [sys.executable, "-m", "stillmotion", "settings"]
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    shown = subprocess.run(words, capture_output=True, text=True, env=env, check=False)
    assert (shown.returncode, shown.stderr) == (0, "")


def test_a_row_keeps_its_name_whole_on_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(os.environ, "FORCE_COLOR", "1")
    monkeypatch.setitem(os.environ, "COLUMNS", "80")
    show_settings(as_json=False)
    rows = capsys.readouterr().out.splitlines()[1:]
    assert max(map(len, rows)) <= 80
    assert [row.split()[0] for row in rows if row.startswith("STILLMOTION_")] == [
        PREFIX + name.upper() for name in Settings.model_fields
    ]


@pytest.mark.parametrize("words", [["env"], ["models", "list"]])
def test_a_data_directory_that_cannot_be_read_is_one_sentence(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    command = [sys.executable, "-m", "stillmotion", *words, "--data-dir", str(tmp_path / "file")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Not a directory. Run this as the user" in done.stderr and "Traceback" not in done.stderr


def test_lock_is_held_once_and_free_after_release(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    data_dir.mkdir(mode=0o755)
    first, second = Lock(data_dir), Lock(data_dir)
    assert first.take()
    assert mode(data_dir) == 0o700
    assert not second.take()
    assert second.holder() == f"process {os.getpid()}"
    first.release()
    assert second.take()
    second.release()


def test_data_directory_that_cannot_be_made_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataRefused, match="Choose another with --data-dir"):
        Lock(tmp_path / "file" / "data").take()


def test_directory_shared_by_all_users_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    with pytest.raises(DataRefused, match="a folder of its own"):
        Lock(tmp_path).take()
    assert (mode(tmp_path), list(tmp_path.iterdir())) == (0o1777, [])


def test_lock_file_that_cannot_be_opened_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()
    with pytest.raises(DataRefused, match=r"cannot be used: Is a directory \(.*lock\)"):
        Lock(tmp_path).take()


def test_announcement_is_read_back_and_absent_without_a_server(tmp_path: Path) -> None:
    assert read_announcement(tmp_path) is None
    told = Announcement(pid=1, http="http://127.0.0.1:1", https=None, ca="ca.pem", admin="admin.sock")
    announce(tmp_path, told)
    assert read_announcement(tmp_path) == told


def test_a_kill_between_the_first_keys_file_and_its_commit_loses_no_key(
    store_url: str, tmp_path: Path
) -> None:
    engine = create_engine(store_url)
    left = tmp_path / FIRST_KEY
    with engine.connect() as conn:
        unseen = make_first_key(conn, tmp_path, 1.0)
        assert left.read_text() == f"{unseen}\n"
        conn.rollback()  # as the database does after a kill
    with engine.begin() as conn:
        kept = make_first_key(conn, tmp_path, 2.0)
        assert kept and kept != unseen
        assert (left.read_text(), mode(left)) == (f"{kept}\n", 0o600)
        assert isinstance(check_key(conn, kept, 3.0), Caller)
        assert make_first_key(conn, tmp_path, 3.0) is None
    engine.dispose()


def test_unix_socket_is_the_owners_alone_also_at_a_long_path(tmp_path: Path) -> None:
    folder = tmp_path / ("deep" * 40)
    folder.mkdir()
    path = folder / "admin.sock"
    with bind_unix(path) as bound, socket.socket(socket.AF_UNIX) as client:
        bound.listen()
        assert mode(path) == 0o600
        with socket_address(path) as address:
            client.connect(address)


def test_port_in_use_is_one_sentence() -> None:
    with (
        bind_tcp("127.0.0.1", 0) as first,
        pytest.raises(UserError, match=f"Cannot listen on 127.0.0.1:{first.getsockname()[1]}"),
    ):
        first.listen()
        bind_tcp("127.0.0.1", first.getsockname()[1])


def test_host_that_is_no_name_is_one_sentence() -> None:
    with pytest.raises(UserError, match="no address of this machine: it cannot be a host name"):
        bind_tcp("a" * 70 + ".example", 0)


def test_key_is_made_listed_and_revoked_without_a_server(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    made = perform(settings, "keys.create", {"name": "laptop", "concurrency": 2})["key"]
    key_id = made.partition(":")[0]
    (listed,) = perform(settings, "keys.list", {})["keys"]
    assert (listed["id"], listed["name"], listed["concurrency"]) == (key_id, "laptop", 2)
    assert made.partition(":")[2] not in json.dumps(listed)
    perform(settings, "keys.revoke", {"id": key_id})
    with pytest.raises(UserError, match="keys list"):
        perform(settings, "keys.revoke", {"id": key_id})


def test_listed_key_reads_as_it_was_named(tmp_path: Path) -> None:
    perform(Settings(data_dir=tmp_path), "keys.create", {"name": "[/red] team"})
    listed = CliRunner().invoke(app, ["keys", "list", "--data-dir", str(tmp_path)])
    assert listed.exception is None and "[/red] team" in listed.stdout


@pytest.mark.parametrize("name", ["", " ", "a\nb", "a\x1b[31m", "\udcff"])
def test_key_name_that_a_list_cannot_show_is_refused(tmp_path: Path, name: str) -> None:
    made = CliRunner().invoke(app, ["keys", "create", name, "--data-dir", str(tmp_path)])
    assert isinstance(made.exception, UserError)


def test_keys_create_prints_the_key_as_its_last_line(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["keys", "create", "laptop", "--data-dir", str(tmp_path)])
    credential = done.stdout.splitlines()[-1]
    store = open_store(Settings(data_dir=tmp_path).store_url)
    checked = store.read_now(lambda conn: check_key(conn, credential, 0))
    store.close_now()
    assert isinstance(checked, Caller) and checked.name == "laptop"


def test_busy_data_directory_without_a_server_is_said(tmp_path: Path) -> None:
    lock = Lock(tmp_path)
    assert lock.take()
    with pytest.raises(DataRefused, match=f"process {os.getpid()} holds"):
        perform(Settings(data_dir=tmp_path), "keys.list", {})
    lock.release()


def test_backup_can_be_started_from(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    made = perform(settings, "keys.create", {"name": "kept"})["key"]
    perform(settings, "webhooks.rotate-key", {"data_dir": str(tmp_path / "data")})
    authority = ensure_certificates(tmp_path / "data", (), 1.7e9).ca.read_bytes()
    secret = load_secret(tmp_path / "data")
    # Found, and gone when it is to be copied: its time is past.
    expired = tmp_path / "data" / "media" / "films" / "z.mp4"
    expired.parent.mkdir(parents=True)
    expired.symlink_to(tmp_path / "nowhere")
    own = own_profile("svd", tmp_path / "data")
    for path in (own, *(tmp_path / "data" / "media" / name for name in ("films/a.mp4", f"{INCOMING}/b"))):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"kept")
    backup(settings, tmp_path / "copy", media=True)
    (listed,) = perform(Settings(data_dir=tmp_path / "copy"), "keys.list", {})["keys"]
    assert listed["id"] == made.partition(":")[0]
    assert mode(tmp_path / "copy" / "stillmotion.db") == 0o600
    signing = tmp_path / "copy" / "webhook-keys"
    assert (signing.read_bytes(), mode(signing)) == ((tmp_path / "data" / "webhook-keys").read_bytes(), 0o600)
    assert ensure_certificates(tmp_path / "copy", (), 1.7e9).ca.read_bytes() == authority
    assert (tmp_path / "copy" / "media.txt").read_text() == "films/a.mp4\nfilms/z.mp4\n"
    (copied,) = (tmp_path / "copy" / "media" / "films").iterdir()
    assert (copied.name, copied.read_bytes()) == ("a.mp4", b"kept")
    assert own_profile("svd", tmp_path / "copy").read_bytes() == b"kept"
    assert load_secret(tmp_path / "copy") == secret
    assert not (tmp_path / "copy" / "media" / INCOMING).exists()


def test_backup_never_overwrites(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    perform(settings, "keys.list", {})
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "old").write_text("")
    with pytest.raises(UserError, match="not an empty folder"):
        backup(settings, tmp_path / "copy", media=False)


def test_backup_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    perform(settings, "keys.list", {})
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is not whole"):
        backup(settings, tmp_path / "file" / "copy", media=False)
    with pytest.raises(UserError, match="cannot be copied"):
        perform(settings, "backup", {"target": str(tmp_path / "file" / "copy.db")})


def test_backup_of_nothing_is_refused_and_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to back up"):
        backup(Settings(data_dir=tmp_path / "data"), tmp_path / "copy", media=False)
    assert list(tmp_path.iterdir()) == []


def test_unknown_device_is_refused_with_what_is_there() -> None:
    settings = Settings(profile="pocket", devices=["cuda:99"])
    with pytest.raises(UserError, match=r"Device 'cuda:99' is not here; there is cpu"):
        devices.choose(settings, "tests.timed_engine:open")


def test_cpu_takes_several_runners_unless_they_would_share_compiled_code() -> None:
    two = Settings(devices=["cpu", "cpu"])
    assert devices.choose(two, "tests.timed_engine:open")[2] == ["cpu", "cpu"]
    with pytest.raises(UserError, match="name one twice"):
        devices.choose(two.model_copy(update={"compile": "default"}), "tests.timed_engine:open")


def test_a_driver_that_hangs_is_a_sentence_and_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "torch_has_cuda", lambda: True)
    for module, code, limit in (
        (devices, "_COUNT", "COUNT_TIMEOUT_S"),
        (doctor, "_TORCH", "TORCH_TIMEOUT_S"),
        (doctor, "_FREE", "TORCH_TIMEOUT_S"),
    ):
        monkeypatch.setattr(module, code, "import signal; signal.pause()")
        monkeypatch.setattr(module, limit, 0.1)
    with pytest.raises(UserError, match=r"CUDA driver did not answer within 0\.1 s"):
        devices.cuda_devices()
    assert [found.fact for found in doctor.check_torch(Settings())] == ["did not load within 0.1 s"]
    assert doctor.free_gib("cuda:0") is None


def test_weights_cut_short_or_absent_are_named(tmp_path: Path) -> None:
    profile = load_profile("svd")
    part = tmp_path / "weights" / "svd" / "unet"
    part.mkdir(parents=True)
    header = json.dumps({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    whole = len(header).to_bytes(8, "little") + header + bytes(8)
    (part / "whole.safetensors").write_bytes(whole)
    (part / "short.safetensors").write_bytes(whole[:-3])
    (part / "stub.safetensors").write_bytes(whole[:5])
    found = {finding.fact.partition(" in ")[0] for finding in doctor.check_profile_files(profile, tmp_path)}
    assert f"unet/short.safetensors has {len(whole) - 3} bytes, its header says {len(whole)}" in found
    assert "unet/stub.safetensors is cut short" in found
    assert "vae/config.json is missing" in found
    assert not any("whole" in fact for fact in found)


def test_doctor_names_a_data_directory_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (found,) = doctor.check_disk(Settings(data_dir=tmp_path / "file"))
    assert found.cure is not None


def test_doctor_asks_postgresql_for_its_version(postgres_url: str, tmp_path: Path) -> None:
    (found,) = doctor.check_database(Settings(database_url=postgres_url))
    assert found.fact.startswith("PostgreSQL ") and found.cure is None
    absent = f"postgresql+psycopg://nobody@/nothing?host={tmp_path}"
    (found,) = doctor.check_database(Settings(database_url=absent))
    assert "cannot be opened" in found.fact and found.cure is not None


def test_doctor_names_a_variable_that_is_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "STILLMOTION_LEASES", "9")
    (found,) = doctor.check_variables(Settings())
    assert (found.fact, found.cure) == ("STILLMOTION_LEASES is none", "did you mean STILLMOTION_LEASE_S?")


@pytest.mark.parametrize(
    ("asked", "free", "said", "cured"),
    [
        ("auto", 20, "film on cuda:0 (20.0 GiB free, 18.1 needed)", None),
        ("auto", 3, "none fits cuda:0", "STILLMOTION_MEMORY_PRESET=tight"),
        ("whole", 20, "whole on cuda:0 (20.0 GiB free, 25.2 needed)", "unset STILLMOTION_MEMORY_PRESET"),
    ],
)
def test_doctor_names_the_memory_preset_a_device_would_get(
    asked: str, free: float, said: str, cured: str | None
) -> None:
    found = doctor.check_preset(load_profile("svd"), asked, "cuda:0", free)
    assert found.fact == said
    assert (found.cure is None) if cured is None else cured in (found.cure or "")


def test_a_memory_preset_that_is_none_is_refused_before_anything_starts(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, devices=["cpu"], memory_preset="huge")
    with pytest.raises(UserError, match=r"no memory preset 'huge'; .* whole or auto"):
        devices.choose(settings, "tests.timed_engine:open")


def test_doctor_names_a_port_in_use(tmp_path: Path) -> None:
    with bind_tcp("127.0.0.1", 0) as taken:
        taken.listen()
        settings = Settings(data_dir=tmp_path, port=taken.getsockname()[1])
        facts = {finding.topic: finding for finding in doctor.check_data(settings)}
    assert facts["port"].cure is not None
    assert facts["lock"].cure is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "what to show"),
        (["a rocket", "--image", "x.png"], "what to show"),
        (["a rocket", "--turbo"], "--turbo goes with --image"),
        (["a rocket", "--steps", "21"], "`steps` is 21"),
        (["a rocket", "--video-size", "333x256"], "`video_size.width` is '333'"),
        (["a rocket", "-o", "nowhere/out.mp4"], "nowhere is not there"),
        (["a rocket", "-o", "."], "name a file"),
        (["--image", "nowhere.png"], "nowhere.png cannot be read"),
        (["--image", __file__, "--steps", "4"], "--steps is not a parameter"),
        (["--image", __file__], "not a picture"),
    ],
)
def test_generate_refuses_with_what_is_wrong(words: list[str], said: str) -> None:
    done = CliRunner().invoke(app, ["generate", *words, "--engine", "tests.timed_engine:open"])
    assert isinstance(done.exception, UserError)
    assert said in str(done.exception)


def test_generate_writes_a_film_of_the_asked_size(tmp_path: Path) -> None:
    output = tmp_path / "film.mp4"
    size = {"video_size": "320x256", "seed": 5}
    assert generate(Settings(), "a rocket", None, False, size, output, "tests.timed_engine:open") == 0
    assert output.read_bytes()[4:8] == b"ftyp"
    assert [path.name for path in tmp_path.iterdir()] == ["film.mp4"]
