"""What jobs tell people, by a real mail server and a real web server on loopback."""

import errno
import hashlib
import hmac
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from email import message_from_bytes, policy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from notebooks import write_notebook
from processes import SCALEKIT, free_port, start_scalekit, wait_until

import scalekit as sk
from scalekit.config import ConfigError, load_settings
from scalekit.jobs import outbox, transports
from scalekit.jobs.firing import Attempt, Firing
from scalekit.jobs.message import write_message
from scalekit.jobs.notices import Sender, post_notices, send_notices
from scalekit.jobs.outbox import Outbox
from scalekit.jobs.spec import JobSpec, Notify

pytestmark = pytest.mark.timeout(60)
AT = datetime(2026, 5, 1, 2, tzinfo=UTC)
MAIL = Notify(email="me@example.org")


class Clock:
    "A time that only a test moves"

    def __init__(self):
        self.now = AT + timedelta(hours=1)

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def make_firing(folder, *notify, state="failed", attempts=(), reason=None):
    spec = JobSpec("nightly", str(folder / "train.ipynb"), notify=notify)
    times = (AT, AT, AT + timedelta(minutes=90), None)
    return Firing("f1", "j1", spec.name, spec, AT, "schedule", "toml", state, reason, *times, attempts)


# E-mail


class Mailbox:
    "Keeps what arrives, and refuses one address"

    def __init__(self):
        self.mails = []

    async def handle_RCPT(self, server, session, envelope, address, options):
        if address.startswith("nobody"):
            return "550 there is nobody here"
        envelope.rcpt_tos.append(address)
        return "250 fine"

    async def handle_DATA(self, server, session, envelope):
        self.mails.append(message_from_bytes(envelope.content, policy=policy.default))
        return "250 taken"


def write_certificate(folder):
    "A certificate for localhost that signs itself"
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    day = timedelta(days=1)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - day)
        .not_valid_after(datetime.now(UTC) + day)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    (folder / "key.pem").write_bytes(pem)
    (folder / "ca.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))


@pytest.fixture
def mailbox(tmp_path):
    "A mail server that wants STARTTLS and a password, and a project that knows it"
    write_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "ca.pem", tmp_path / "key.pem")
    box = Mailbox()

    def check(server, session, envelope, mechanism, data):
        return AuthResult(success=(data.login, data.password) == (b"kit", b"right"), handled=False)

    controller = Controller(
        box, "localhost", free_port(), tls_context=context, require_starttls=True, authenticator=check,
        auth_required=True,
    )  # fmt: skip
    controller.start()
    (tmp_path / "scalekit.toml").write_text(
        f'[mail]\nhost = "localhost"\nport = {controller.port}\nfrom = "kit@example.org"\n'
        'user = "kit"\nca = "ca.pem"\n'
    )
    yield box
    controller.stop()


RIGHT = {"SCALEKIT_MAIL_PASSWORD": "right"}


def test_a_failure_is_told_with_its_cell_and_a_link_over_tls(mailbox, place, clock):
    notebook = write_notebook(
        place / "train.ipynb", ("lr = 0.1", "parameters"), "import time", "1 / 0  # too bold"
    )
    run = sk.run(notebook, store=place / "runs", check=False)
    attempt = Attempt("f1", 1, "failed", run.run_id, None, None, AT, AT, AT, "error", run.error)
    firing = make_firing(place, MAIL, attempts=(attempt,), reason="ZeroDivisionError")
    assert len(post_notices(place / "runs", firing, ("failed",), clock)) == 1
    assert send_notices(place / "runs", clock, RIGHT) == 1
    (mail,) = mailbox.mails
    assert mail["Subject"] == "nightly failed: ZeroDivisionError: division by zero"
    assert (mail["To"], mail["From"]) == ("me@example.org", "kit@example.org")
    text = mail.get_body(["plain"]).get_content()
    page = mail.get_body(["html"]).get_content()
    for said in ("1 / 0  # too bold", "ZeroDivisionError: division by zero", run.run_id, "1:30:00"):
        assert said in text and said in page, text
    assert run.notebook.as_uri() in text
    assert Outbox(place / "runs").list_waiting() == []
    assert (
        post_notices(place / "runs", firing, ("failed",), clock) == []
    )  # a daemon that was killed asks again


def test_a_wrong_password_is_told_and_the_notice_waits_for_the_right_one(mailbox, tmp_path, clock):
    post_notices(tmp_path, make_firing(tmp_path, MAIL), ("failed",), clock)
    assert send_notices(tmp_path, clock, {"SCALEKIT_MAIL_PASSWORD": "wrong"}) == 0
    (waiting,) = Outbox(tmp_path).list_waiting()
    assert "mail server localhost answers 535" in waiting.error and "wrong" not in waiting.error
    assert send_notices(tmp_path, clock, RIGHT) == 0  # not yet
    clock.now += timedelta(minutes=1)
    assert send_notices(tmp_path, clock, RIGHT) == 1
    assert mailbox.mails[0]["Message-ID"] == f"<{waiting.key}@example.org>"


def test_an_address_that_does_not_exist_is_given_up_and_stops_no_other(mailbox, tmp_path, clock):
    firing = make_firing(tmp_path, Notify(email="nobody@example.org"), MAIL)
    post_notices(tmp_path, firing, ("failed",), clock)
    assert send_notices(tmp_path, clock, RIGHT) == 1
    states = {one.receiver: (one.state, one.error) for one in Outbox(tmp_path).list_notices("j1")}
    assert states["me@example.org"] == ("sent", None)
    reason = "mail server localhost refuses nobody@example.org: 550 there is nobody here"
    assert states["nobody@example.org"] == ("given up", reason)


def test_a_server_with_a_certificate_of_somebody_else_gets_neither_mail_nor_password(
    mailbox, tmp_path, clock
):
    file = tmp_path / "scalekit.toml"
    file.write_text(file.read_text().replace('ca = "ca.pem"\n', ""))
    post_notices(tmp_path, make_firing(tmp_path, MAIL), ("failed",), clock)
    assert send_notices(tmp_path, clock, RIGHT) == 0
    assert "CERTIFICATE_VERIFY_FAILED" in Outbox(tmp_path).list_waiting()[0].error and mailbox.mails == []


def test_certificates_that_cannot_be_read_are_named(mailbox, tmp_path, clock):
    file = tmp_path / "scalekit.toml"
    file.write_text(file.read_text().replace('"ca.pem"', '"none.pem"'))
    post_notices(tmp_path, make_firing(tmp_path, MAIL), ("failed",), clock)
    assert send_notices(tmp_path, clock, RIGHT) == 0
    (waiting,) = Outbox(tmp_path).list_waiting()
    assert f"{tmp_path / 'none.pem'} can't be read as certificates" in waiting.error


def test_the_name_of_a_file_that_is_no_text_is_sent_with_question_marks(mailbox, tmp_path, clock):
    reason = "No such file: " + os.fsdecode(b"caf\xe9.csv")
    post_notices(tmp_path, make_firing(tmp_path, MAIL, reason=reason), ("failed",), clock)
    assert send_notices(tmp_path, clock, RIGHT) == 1
    assert mailbox.mails[0]["Subject"] == "nightly failed: No such file: caf?.csv"


def test_a_server_that_hangs_keeps_nobody_waiting_and_is_asked_once_a_round(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        (tmp_path / "scalekit.toml").write_text(
            f'[mail]\nhost = "127.0.0.1"\nport = {port}\nfrom = "kit@example.org"\ntls = "none"\n'
        )
        monkeypatch.setattr(transports, "_PATIENCE", 0.5)
        many = [Notify(email=f"me{number}@example.org") for number in range(20)]
        post_notices(tmp_path, make_firing(tmp_path, *many), ("failed",))
        sender = Sender()
        sender.look(tmp_path)
        sender.look(tmp_path)
        assert sender._thread is not threading.current_thread()
        sender._thread.join(120)
        tried = [one.n_tries for one in Outbox(tmp_path).list_waiting()]
        assert sorted(tried) == [0] * 19 + [1]


# Webhooks


class Hook:
    "A web server that keeps what it gets, and answers what it is told to"

    def __init__(self):
        hook, self.got, self.answers, self.before = self, [], [], lambda: None

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                hook.got.append((self.path, dict(self.headers), body))
                hook.before()
                code = hook.answers.pop(0) if hook.answers else 200
                self.send_response(code)
                if code == 307:
                    self.send_header("Location", f"{hook.address}elsewhere")
                self.end_headers()
                self.wfile.write(b"so it is")

            def log_message(self, *words):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}/"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def hook():
    hook = Hook()
    yield hook
    hook.server.shutdown()
    hook.server.server_close()


def test_a_webhook_gets_text_for_people_facts_for_programs_and_a_signature(hook, tmp_path, clock):
    firing = make_firing(tmp_path, Notify(webhook="env:HOOK"), reason="no room")
    post_notices(tmp_path, firing, ("failed",), clock)
    environ = {"HOOK": f"{hook.address}T0/secret", "SCALEKIT_WEBHOOK_SECRET": "s3cret"}
    assert send_notices(tmp_path, clock, environ) == 1
    ((path, headers, body),) = hook.got
    told = json.loads(body)
    assert path == "/T0/secret" and told["text"].startswith("nightly failed: no room\n")
    assert (told["state"], told["fields"]["job"], told["firing"]) == ("failed", "nightly", "f1")
    expected = hmac.new(b"s3cret", body, hashlib.sha256).hexdigest()
    assert headers["X-Scalekit-Signature"] == f"sha256={expected}"
    assert headers["Idempotency-Key"] == told["id"]
    (sent,) = Outbox(tmp_path).list_notices()
    assert "secret" not in json.dumps(vars(sent)) and sent.receiver == "env:HOOK"


@pytest.mark.parametrize(
    ("answer", "state"), [(500, "waiting"), (429, "waiting"), (404, "given up"), (307, "given up")]
)
def test_what_a_webhook_answers_decides_whether_it_is_asked_again(hook, tmp_path, clock, answer, state):
    hook.answers = [answer]
    post_notices(tmp_path, make_firing(tmp_path, Notify(webhook=hook.address)), ("failed",), clock)
    assert send_notices(tmp_path, clock, {}) == 0
    (notice,) = Outbox(tmp_path).list_notices()
    assert (notice.state, notice.error) == (state, f"webhook 127.0.0.1 answers {answer} so it is")
    clock.now += timedelta(minutes=1)
    assert send_notices(tmp_path, clock, {}) == (state == "waiting")
    assert len(hook.got) == 1 + (state == "waiting")


def test_a_sender_that_is_killed_sends_again_under_the_same_id(hook, tmp_path):
    post_notices(tmp_path, make_firing(tmp_path, Notify(webhook=hook.address)), ("failed",))
    script = f"from scalekit.jobs.notices import send_notices; print(send_notices({str(tmp_path)!r}))"
    first = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    hook.before = lambda: first.poll() is None and os.kill(first.pid, signal.SIGKILL)
    assert first.wait(30) == -signal.SIGKILL
    assert len(Outbox(tmp_path).list_waiting()) == 1
    assert send_notices(tmp_path) == 1
    assert send_notices(tmp_path) == 0
    keys = [headers["Idempotency-Key"] for _, headers, _ in hook.got]
    assert len(keys) == 2 and keys[0] == keys[1]


def test_two_senders_send_a_notice_once(hook, tmp_path, clock):
    entered, leave = threading.Event(), threading.Event()
    hook.before = lambda: (entered.set(), leave.wait(120))
    post_notices(tmp_path, make_firing(tmp_path, Notify(webhook=hook.address)), ("failed",), clock)
    first = threading.Thread(target=send_notices, args=(tmp_path, clock, {}))
    first.start()
    entered.wait(120)
    assert send_notices(tmp_path, clock, {}) == 0
    leave.set()
    first.join(120)
    assert len(hook.got) == 1


def test_what_another_process_sent_in_the_meantime_is_not_sent_again(hook, tmp_path, clock, monkeypatch):
    post_notices(tmp_path, make_firing(tmp_path, Notify(webhook=hook.address)), ("failed",), clock)
    sending = Outbox.sending

    def come_late(self):
        monkeypatch.undo()
        assert send_notices(tmp_path, clock, {}) == 1
        return sending(self)

    monkeypatch.setattr(Outbox, "sending", come_late)
    assert send_notices(tmp_path, clock, {}) == 0
    assert len(hook.got) == 1


def test_a_notice_that_is_done_with_half_way_is_not_sent_again(hook, tmp_path, clock):
    post_notices(tmp_path, make_firing(tmp_path, Notify(webhook=hook.address)), ("failed",), clock)
    box = Outbox(tmp_path, clock)
    (notice,) = box.list_waiting()
    file = box.folder / f"{notice.key}.json"
    waiting = file.read_text()
    notice.state = "sent"
    box.note(notice)
    file.write_text(waiting)  # as if its sender had been killed before it could remove it
    assert send_notices(tmp_path, clock, {}) == 0
    assert hook.got == [] and not file.exists() and box.list_notices() == [notice]


def test_a_notice_that_is_moved_while_all_are_listed_is_listed(tmp_path, clock, monkeypatch):
    post_notices(tmp_path, make_firing(tmp_path, MAIL), ("failed",), clock)
    box, read_all = Outbox(tmp_path, clock), outbox._read_all
    (notice,) = box.list_waiting()

    def read_slowly(folder):
        found = read_all(folder)
        notice.state = "sent"
        box.note(notice)
        return found

    monkeypatch.setattr(outbox, "_read_all", read_slowly)
    assert box.list_notices() == [notice]


def test_where_nothing_can_be_written_nothing_is_sent_and_the_log_says_why(hook, tmp_path, monkeypatch):
    post_notices(tmp_path, make_firing(tmp_path, Notify(webhook=hook.address)), ("failed",))

    def write(path, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as disk:
        disk.setattr(outbox, "write_atomic", write)
        said = []
        sender = Sender(lambda event, **fields: said.append(fields["error"]))
        for _ in range(2):
            sender.look(tmp_path)
            sender._thread.join(20)
        assert len(said) == 2 and "No space left" in said[0] and hook.got == []
    assert send_notices(tmp_path) == 1


@pytest.mark.parametrize("address", ["http://127.0.0.1:ssh/", "http://[127/", "http://127.0.0.1/a\u20acb"])
def test_an_address_that_is_none_stops_no_other_notice(hook, tmp_path, clock, address):
    bad, good = Notify(webhook="env:BAD"), Notify(webhook=hook.address)
    for one in (bad, Notify(webhook=address), good):
        post_notices(tmp_path, make_firing(tmp_path, one), ("failed",), clock)
    assert send_notices(tmp_path, clock, {"BAD": "http://127.0.0.1/T0/s3cret now"}) == 1
    waiting = {one.receiver: one.error for one in Outbox(tmp_path).list_waiting()}
    assert len(waiting) == 2 and all(waiting.values())
    assert waiting["env:BAD"] == "webhook BAD has an address with a blank, or with a port that is no number"


def test_a_server_that_speaks_no_http_is_told_and_stops_no_other_notice(hook, tmp_path, clock):
    def greet(server):
        connection, _ = server.accept()
        with connection:
            connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")
            connection.recv(65536)

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=greet, args=(server,), daemon=True).start()
        bad = Notify(webhook=f"http://127.0.0.1:{server.getsockname()[1]}/")
        firing = make_firing(tmp_path, bad, Notify(webhook=hook.address.replace("127.0.0.1", "localhost")))
        post_notices(tmp_path, firing, ("failed",), clock)
        assert send_notices(tmp_path, clock, {}) == 1
    (waiting,) = Outbox(tmp_path).list_waiting()
    assert waiting.error.startswith("webhook 127.0.0.1 can't be reached: BadStatusLine")


def test_a_notice_that_nobody_foresaw_or_can_read_stops_no_other_and_is_told_once(hook, tmp_path):
    firing = make_firing(tmp_path, Notify(webhook=hook.address), Notify(webhook=f"{hook.address}other"))
    post_notices(tmp_path, firing, ("failed",))
    box, said = Outbox(tmp_path), []
    odd = box.list_waiting()[0]
    del odd.facts["fields"]["source"]  # as an older scalekit left it
    box.note(odd)
    (box.folder / "damaged.json").write_text("{")
    sender = Sender(lambda event, **fields: said.append(fields["error"]))
    for _ in range(2):
        sender.look(tmp_path)
        sender._thread.join(20)
    assert len(hook.got) == 1
    assert [(one.key, one.error) for one in box.list_waiting()] == [(odd.key, "KeyError: 'source'")]
    assert len(said) == 1 and "damaged.json is no notice that this scalekit can read" in said[0]


# Who is told of what


def test_everybody_gets_what_they_asked_for_once_however_often_it_is_posted(tmp_path, clock):
    well = Notify(email="a@b", on=("recovered", "succeeded"))
    calm = Notify(email="c@d", on=("recovered",))
    other = Notify(email="e@f", on=("failed",))
    firing = make_firing(tmp_path, well, calm, other, state="succeeded")
    for _ in range(2):
        post_notices(tmp_path, firing, ("succeeded", "recovered"), clock)
    found = [(one.receiver, one.facts["fields"]["event"]) for one in Outbox(tmp_path).list_waiting()]
    assert sorted(found) == [("a@b", "recovered"), ("c@d", "recovered")]


def test_a_firing_that_fails_again_after_it_was_opened_again_is_told_again(tmp_path, clock):
    one = Attempt("f1", 1, "failed", None, None, None, AT)
    for attempts in ((one,), (one, one)):
        post_notices(tmp_path, make_firing(tmp_path, MAIL, attempts=attempts), ("failed",), clock)
    assert len(Outbox(tmp_path).list_waiting()) == 2


def test_words_and_links_can_be_ones_own_and_are_checked_when_the_file_is_read(tmp_path, place, clock):
    file = place / "scalekit.toml"
    link = "https://hub.org/lab/tree/$path"
    file.write_text(f'[notices]\nsubject = "[$job] $event"\ntext = "$error at $link"\nlink = "{link}"\n')
    notebook = write_notebook(place / "train.ipynb", "raise ValueError('so & so')")
    run = sk.run(notebook, check=False)
    attempt = Attempt("f1", 1, "failed", run.run_id, None, None, AT)
    post_notices(place / "runs", make_firing(place, MAIL, attempts=(attempt,)), ("failed",), clock)
    (notice,) = Outbox(place / "runs").list_waiting()
    message = write_message(notice.facts, load_settings().notices)
    assert message.subject == "[nightly] failed"
    link = f"https://hub.org/lab/tree/runs/{run.run_id}/notebook.ipynb"
    assert message.text == f"ValueError: so & so at {link}" and "so &amp; so" in message.html
    file.write_text('[notices]\nsubject = "$jop"\n')
    with pytest.raises(ConfigError, match="subject must be a template of"):
        load_settings()
    file.write_text('[mail]\nhost = "a"\nfrom = "a@b"\npassword = "x"\n')
    with pytest.raises(ConfigError, match="a password is not for a file. Set SCALEKIT_MAIL_PASSWORD"):
        load_settings()


def test_without_a_mail_server_the_reason_is_kept_and_done_notices_go_after_a_month(hook, tmp_path, clock):
    both = make_firing(tmp_path, MAIL, Notify(webhook=hook.address))
    post_notices(tmp_path, both, ("failed",), clock)
    assert send_notices(tmp_path, clock, {}) == 1
    (waiting,) = Outbox(tmp_path).list_waiting()
    assert "scalekit.toml names no mail server" in waiting.error
    box = Outbox(tmp_path, clock)
    for days, left in ((40, ["given up"]), (31, [])):
        clock.now += timedelta(days=days)
        send_notices(tmp_path, clock, {})
        box.forget_old()
        assert sorted(one.state for one in box.list_notices()) == left  # a month from when it was done with


# With the daemon


def test_the_daemon_tells_of_a_failed_job_and_of_its_recovery(hook, place):
    (place / "scalekit.toml").write_text(
        f"[job.nightly]\nnotebook = 'job.ipynb'\nnotify = {{ webhook = '{hook.address}' }}\n"
    )
    write_notebook(place / "job.ipynb", "assert __import__('pathlib').Path('well').exists(), 'not yet'")
    daemon, box = start_scalekit("serve"), Outbox(place / "runs")
    try:
        for n_told, prepare in ((1, lambda: None), (2, (place / "well").touch)):
            prepare()
            assert subprocess.run([SCALEKIT, "trigger", "nightly"], capture_output=True).returncode == 0
            wait_until(lambda n=n_told: [one.state for one in box.list_notices()] == n * ["sent"])
    finally:
        daemon.terminate()
        daemon.communicate(timeout=120)
    told = [json.loads(body) for _, _, body in hook.got]
    assert [one["fields"]["event"] for one in told] == ["failed", "recovered"]
    shown = subprocess.run([SCALEKIT, "jobs", "nightly", "--json"], capture_output=True, text=True)
    states = [(one["event"], one["state"]) for one in json.loads(shown.stdout)["notices"]]
    assert states == [("failed", "sent"), ("recovered", "sent")]
    assert "AssertionError: not yet" in told[0]["text"] and "Path('well')" in told[0]["text"]
