"""The server: the right pictures for everybody, and nothing else for anybody."""

import concurrent.futures
import json
import pathlib
import socket
import threading

import numpy as np
import pytest

from retree_jax.data import phantom
from retree_jax.page import jobs, uploads
from tests.page.conftest import finished, running, silent
from tests.page.test_uploads import POSTSCRIPT, encoded, giant, vessel

server = pytest.importorskip("retree_jax.page.server", reason="needs the extra `demo`", exc_type=ImportError)


def test_the_page_and_its_files_load_nothing_from_elsewhere(site):
  for path, kind in (("/", "text/html"), ("/page.js", "text/javascript"), ("/page.css", "text/css")):
    code, headers, body = site.ask("GET", path)
    assert code == 200 and headers["content-type"].startswith(kind)
    assert "default-src 'none'" in headers["content-security-policy"] and headers["x-content-type-options"] == "nosniff"
    assert b"http:" not in body and b"https:" not in body and b"//" not in body.replace(b"// ", b"")
  assert b'name="guidance"' in site.ask("GET", "/")[2]


def test_users_at_once_get_their_own_pictures(site, loaded):
  """Six users: three seeds, two kinds of jobs."""
  tree = encoded(vessel())
  wanted = {}
  for seed in range(3):
    settings = loaded.settings({"seed": str(seed)})
    wanted["generate", seed] = loaded.generate(settings, silent).files
    wanted["paint", seed] = loaded.paint(tree, settings, silent).files
  asked = list(wanted)

  def user(asked):
    action, seed = asked
    name, told = finished(site, f"/jobs/{action}?seed={seed}", tree if action == "paint" else None)
    eye = told["result"]["eyes"][0]
    return {file: site.ask("GET", f"/jobs/{name}/files/{file}")[2] for file in eye["pictures"].values()}

  with concurrent.futures.ThreadPoolExecutor(len(asked)) as pool:
    for key, got in zip(asked, pool.map(user, asked), strict=True):
      assert len(got) == 3 and got == {file: wanted[key][file] for file in got}


def test_a_photograph_is_read(site):
  name, told = finished(site, "/jobs/segment", encoded(phantom.eye(1, (80, 80))["image"]))
  assert told["state"] == "done"
  code, headers, body = site.ask("GET", f"/jobs/{name}/files/vessels.png")
  assert code == 200 and headers["content-type"] == "image/png" and body.startswith(b"\x89PNG")


@pytest.mark.parametrize(
  "path, body, code, words",
  [
    ("/jobs/segment", b"hello", 400, "not a picture"),
    ("/jobs/segment", b"", 400, "the upload is empty"),
    ("/jobs/segment", POSTSCRIPT, 400, "not a picture"),
    ("/jobs/paint", giant(60000, 60000), 400, "more than 25 million pixels"),
    ("/jobs/paint?seed=1.5", encoded(vessel()), 400, "seed is '1.5'"),
    ("/jobs/generate?num=999", None, 400, "pairs is '999'"),
    ("/jobs/generate", b"x", 413, "the upload has more than 0 MB"),
    ("/jobs/train", None, 404, "the loaded models cannot do this"),
  ],
)
def test_bad_requests_are_told_why(site, path, body, code, words):
  got, _, said = site.ask("POST", path, body)
  assert got == code and words in json.loads(said)["error"]


def test_pictures_that_prove_unreadable_later_fail_with_a_sentence(site):
  whole = encoded(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8))
  for path, body, words in (
    ("/jobs/segment", whole[: len(whole) // 2], "Cannot read this picture"),
    ("/jobs/paint", encoded(np.zeros((64, 64), np.uint8)), "is empty: draw white vessels on black"),
  ):
    _, told = finished(site, path, body)
    assert told["state"] == "failed" and words in told["text"]


def test_an_upload_is_cut_off_where_it_passes_the_bound(site):
  code, _, said = site.ask("POST", "/jobs/segment", b"\x89PNG" + b"\0" * uploads.MAX_BYTES)
  assert code == 413 and "more than 16 MB" in json.loads(said)["error"]


def raw(port, request: str) -> str:
  with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
    connection.sendall(request.encode())
    answer = b""
    while piece := connection.recv(2**16):
      answer += piece
  return answer.decode(errors="replace")


def test_no_path_leads_to_a_file(site, paths, tmp_path):
  name, _ = finished(site, "/jobs/generate")
  secret = tmp_path / "secret.txt"
  secret.write_text("the secret")
  source = pathlib.Path(server.__file__)
  climb = "../" * 20
  roots = ("", "/", "page.js/", "jobs/", f"jobs/{name}/", f"jobs/{name}/files/", f"jobs/{name}/files/images/")
  targets = [str(secret), climb + str(secret)[1:], climb + "etc/passwd", "server.py", "../server.py", str(source), "."]
  for root in roots:
    for target in targets:
      for form in (target, target.replace("../", "%2e%2e%2f"), target.replace("/", "%2f"), target.replace("/", "\\")):
        answer = raw(site.port, f"GET /{root}{form} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        head, _, body = answer.partition("\r\n\r\n")
        assert head.split()[1] in ("400", "404", "307"), (root, form, head)
        assert not any(words in body for words in ("the secret", "root:", "import ", "Traceback"))


def test_jobs_of_others_cannot_be_listed_or_guessed(site):
  for path in ("/jobs", "/jobs/", "/jobs/x", "/jobs/x/files/vessels.png"):
    assert site.ask("GET", path)[0] in (404, 405)


def test_pages_of_other_servers_are_refused(site):
  """A page elsewhere can send requests here, and call this computer by a name of its own."""
  assert site.ask("GET", "/", Host="evil.example")[0] == 403
  assert site.ask("GET", "/", Host="[")[0] == 403
  assert site.ask("POST", "/jobs/generate", Origin="http://evil.example")[0] == 403
  assert site.ask("POST", "/jobs/generate", Origin="null")[0] == 403
  assert site.ask("GET", "/", Host=f"localhost:{site.port}")[0] == 200
  assert site.ask("POST", "/jobs/generate", Origin=f"http://127.0.0.1:{site.port}")[0] == 202


def test_a_full_queue_and_a_cancelled_job(loaded, monkeypatch):
  monkeypatch.setattr(jobs, "MAX_WAITING", 1)
  begun, go = threading.Event(), threading.Event()

  def hold(say):
    begun.set()
    assert go.wait(30)
    return jobs.Outcome({}, {})

  with running(loaded) as site:
    site.queue.add(hold)
    assert begun.wait(30)
    name = json.loads(site.ask("POST", "/jobs/generate")[2])["job"]
    code, _, said = site.ask("POST", "/jobs/generate")
    assert code == 503 and "1 jobs are waiting already: try again" in json.loads(said)["error"]
    assert json.loads(site.ask("GET", f"/jobs/{name}")[2])["state"] == "waiting"
    assert site.ask("DELETE", f"/jobs/{name}")[0] == 204
    assert site.ask("GET", f"/jobs/{name}")[0] == 404
    assert site.ask("POST", "/jobs/generate")[0] == 202
    go.set()
