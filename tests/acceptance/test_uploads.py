"""Uploads across a server that dies."""

import os
import socket
from pathlib import Path
from urllib.parse import urlsplit

from tests.faults.broken_disk import files_end_at
from tests.server import TIMED_ENGINE, Server, wait_until

PART = os.urandom(3 * 1024 * 1024)


def test_u03_an_upload_in_parts_outlives_a_kill_and_a_half_sent_file_leaves_nothing(tmp_path: Path) -> None:
    with Server(tmp_path / "data", engine=TIMED_ENGINE) as server:
        incoming = server.data_dir / "media" / ".incoming"
        with server.client() as client:
            given = {"content_type": "application/x-large", "file_name": "large.bin"}
            parts = client.post("/rest/storage/upload/initiate-multipart", json=given).json()
            whole = client.post("/rest/storage/upload/initiate", json=given).json()
            address = urlsplit(parts["upload_url"])

            def put(number: int) -> dict[str, object]:
                answer = client.put(f"{address.path}/{number}?{address.query}", content=PART)
                assert answer.status_code == 200, answer.text
                return answer.json()

            listed = [put(2), put(1)]
        target = urlsplit(whole["upload_url"])
        with socket.create_connection((target.hostname, target.port)) as sender:
            head = f"PUT {target.path}?{target.query} HTTP/1.1\r\nHost: {target.netloc}\r\n"
            sender.sendall(f"{head}Content-Length: {2 * len(PART)}\r\n\r\n".encode() + PART)
            wait_until(lambda: any(file.stat().st_size for file in incoming.iterdir()), "half a file")
            server.kill()
        server.restart()
        assert list(incoming.iterdir()) == []
        with server.client() as client:
            listed.append(put(3))
            done = client.post(f"{address.path}/complete?{address.query}", json={"parts": listed})
            assert done.status_code == 200, done.text
            assert client.get(urlsplit(parts["file_url"]).path).content == PART * 3
            assert client.get(urlsplit(whole["file_url"]).path).status_code == 404
            again = client.put(f"{target.path}?{target.query}", content=PART)
            assert again.status_code == 200, "an upload URL that was not used up works still"
            assert client.get(urlsplit(whole["file_url"]).path).content == PART


def test_f12_an_upload_the_disk_refuses_is_a_507_and_its_url_works_once_there_is_room(server: Server) -> None:
    with server.client() as client:
        given = {"content_type": "application/x-large", "file_name": "large.bin"}
        told = client.post("/rest/storage/upload/initiate", json=given).json()
        target = urlsplit(told["upload_url"])
        address = f"{target.path}?{target.query}"
        with files_end_at(1000, server.process.pid):
            refused = client.put(address, content=PART)
        assert refused.status_code == 507, refused.text
        assert list((server.data_dir / "media" / ".incoming").iterdir()) == []
        assert client.put(address, content=PART).status_code == 200
        assert client.get(urlsplit(told["file_url"]).path).content == PART
