"""Outbound requests: where they may go, what counts as an answer, and how they are signed."""

from __future__ import annotations

import asyncio
import base64
import datetime
import ssl
from collections.abc import AsyncIterator
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from apps.api.core.network.outbound import MAX_ANSWER_BYTES, Failed, Outbound, Refused, is_elsewhere, is_public
from apps.api.core.tenant import signing
from tests.receiver import Received, Receiver, Reply, receiving

LOOPBACK = ("127.0.0.0/8",)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as running:
        yield running


# --- where to --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.255.0.1",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",  # metadata of cloud machines
        "100.64.0.1",
        "192.0.0.1",
        "192.88.99.1",
        "198.18.0.1",
        "203.0.113.5",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::7f00:1",
        "::ffff:8.8.8.8",
        "64:ff9b::7f00:1",
        "64:ff9b:1::1",
        "100::1",
        "168.63.129.16",
        "161.26.0.10",
        "166.8.0.1",
        "166.11.255.255",
        "192.0.0.8",
        "192.0.0.9",
        "192.0.0.192",
        "192.0.0.255",
        "192.31.196.1",
        "192.52.193.1",
        "192.175.48.1",
        "198.19.255.255",
        "239.255.255.255",
        "64:ff9b::808:808",
        "2001:1::1",
        "2001:1ff:ffff::1",
        "2620:4f:8000::1",
        "5f00::1",
        "fd00:ec2::254",
        "2001::1",
        "2001:db8::1",
        "2002:7f00:1::",
        "3fff::1",
        "fc00::1",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "ff0e::1",
    ],
)
def test_an_address_that_is_not_public_is_told(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", "168.63.129.17", "192.0.1.1", "2001:200::1", "2606:4700::1111", "2a00:1450::1"]
)
def test_a_public_address_is_told(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.9.9.9", "0.0.0.0", "169.254.169.254", "169.254.170.2", "100.100.100.200", "192.0.0.192"),
        *("168.63.129.16", "161.26.0.10", "166.8.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255"),
        *("::", "::1", "::ffff:169.254.169.254", "::a9fe:a9fe", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1", "2001::1"),
        *(
            "fe80::1",
            "fe80::a9fe:a9fe",
            "fd00:ec2::254",
            "fd00:c1::a9fe:a9fe",
            "fd00:42::42",
            "fd20:ce::254",
            "ff02::1",
        ),
    ],
)
def test_this_machine_and_what_a_cloud_tells_it_are_not_elsewhere(address: str) -> None:
    assert not is_elsewhere(ip_address(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "10.1.2.3", "192.168.1.1", "100.64.0.1", "2606:4700::1111", "fd12::1"])
def test_another_machine_is_elsewhere_be_it_public_or_not(address: str) -> None:
    assert is_elsewhere(ip_address(address))


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "127.1", "0x7f.1", "2130706433", "[::1]", "[::ffff:127.0.0.1]", "0", "169.254.169.254"],
)
async def test_every_spelling_of_a_private_target_is_refused_before_anything_is_sent(
    receiver: Receiver, host: str
) -> None:
    url = f"http://{host}:{receiver.port}/"
    with pytest.raises(Refused, match="not a public one"):
        await Outbound().post(url, {}, b"{}", 5)
    with pytest.raises(Refused):
        await Outbound().check_url(url)
    assert receiver.received == []


@pytest.mark.parametrize("allow", ["127.0.0.0/8", "127.0.0.1", "localhost", "LOCALHOST:{port}", "::1,127.0.0.1"])
async def test_the_operator_may_allow_a_network_an_address_or_a_name(receiver: Receiver, allow: str) -> None:
    outbound = Outbound([entry for entry in allow.format(port=receiver.port).split(",") if entry])
    host = "localhost" if "localhost" in allow.lower() else "127.0.0.1"
    answer = await outbound.post(f"http://{host}:{receiver.port}/in?a=b#c", {"X-More": "1"}, b"{}", 5)
    assert (answer.status, answer.accepted) == (200, True)
    [request] = receiver.received
    assert (request.target, request.body) == ("/in?a=b", b"{}")
    assert request.headers["host"] == f"{host}:{receiver.port}"
    assert request.headers["x-more"] == "1"


async def test_an_exception_for_one_port_or_one_name_is_none_for_another(receiver: Receiver) -> None:
    for allow in (f"localhost:{receiver.port + 1}", "another", "10.0.0.0/8"):
        with pytest.raises(Refused):
            await Outbound([allow]).check_url(f"http://localhost:{receiver.port}/")


async def test_a_name_that_does_not_exist_is_a_failure() -> None:
    with pytest.raises(Failed, match="resolved"):
        await Outbound().check_url("http://name.invalid/")
    with pytest.raises(Failed, match="resolved"):
        await Outbound().post("http://name.invalid/", {}, b"", 20)


# --- what comes back -------------------------------------------------------------------------------------------------


async def test_a_redirect_is_not_followed(receiver: Receiver) -> None:
    receiver.replies(Reply(status=307, headers={"Location": receiver.url("/elsewhere")}))
    answer = await Outbound(LOOPBACK).post(receiver.url("/here"), {}, b"{}", 5)
    assert (answer.status, answer.accepted) == (307, False)
    assert [request.target for request in receiver.received] == ["/here"]


async def test_an_answer_has_a_largest_size(receiver: Receiver) -> None:
    receiver.replies(Reply(b"x" * MAX_ANSWER_BYTES), Reply(b"x" * (MAX_ANSWER_BYTES + 1)))
    answer = await Outbound(LOOPBACK).post(receiver.url(), {}, b"", 5)
    assert len(answer.body) == MAX_ANSWER_BYTES
    with pytest.raises(Failed, match="larger than"):
        await Outbound(LOOPBACK).post(receiver.url(), {}, b"", 5)


async def test_a_target_that_is_silent_fails_after_the_time_given(receiver: Receiver) -> None:
    asked, never = asyncio.Event(), asyncio.Event()

    async def wait(_request: Received) -> Reply:
        asked.set()
        await never.wait()
        return Reply()

    receiver.answer = wait
    with pytest.raises(Failed, match=r"within 0\.3 s"):
        await Outbound(LOOPBACK).post(receiver.url(), {}, b"", 0.3)
    assert asked.is_set()
    never.set()


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\nX-Slow: ", b"HTTP/1.1 200 OK\r\n\r\n"])
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_target_that_never_ends_fails_after_the_time_given(scheme: str, sent: bytes) -> None:
    gone = asyncio.Event()

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(sent)
        with suppress(ConnectionError):
            while not reader.at_eof():
                writer.write(b"x" if sent else b"")
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.02):
                        await reader.read(65_536)
        gone.set()
        writer.close()

    async with await asyncio.start_server(drip, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(Failed):
            await Outbound(LOOPBACK).post(f"{scheme}://127.0.0.1:{port}/", {}, b"", 0.3)
        async with asyncio.timeout(10):
            await gone.wait()


async def test_a_target_that_is_not_there_or_speaks_no_http_fails(receiver: Receiver) -> None:
    async with receiving() as gone:
        url = gone.url()
    with pytest.raises(Failed, match="no connection"):
        await Outbound(LOOPBACK).post(url, {}, b"", 5)

    async def hello(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(hello, "127.0.0.1", 0) as other:
        port = other.sockets[0].getsockname()[1]
        with pytest.raises(Failed):
            await Outbound(LOOPBACK).post(f"http://127.0.0.1:{port}/", {}, b"", 5)


@pytest.mark.parametrize("value", ["a\r\nX-Evil: 1", "a\nb", "\x00"])
async def test_a_header_cannot_smuggle_another_one(receiver: Receiver, value: str) -> None:
    with pytest.raises(Failed):
        await Outbound(LOOPBACK).post(receiver.url(), {"X-Given": value}, b"", 5)
    assert receiver.received == []


# --- TLS -------------------------------------------------------------------------------------------------------------


def certificate(directory: Path, name: str) -> tuple[Path, ssl.SSLContext]:
    """A certificate that signs itself, for one name, and a server's side of TLS with it."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    public, private = directory / "cert.pem", directory / "key.pem"
    public.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(public, private)
    return public, context


async def test_tls_is_checked_against_the_name_although_the_address_was_chosen_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    public, context = certificate(tmp_path, "localhost")
    async with receiving(context) as receiver:
        url = f"https://localhost:{receiver.port}/"
        with pytest.raises(Failed, match="certificate"):
            await Outbound(["localhost"]).post(url, {}, b"", 5)
        monkeypatch.setenv("SSL_CERT_FILE", str(public))
        trusting = Outbound(["localhost", *LOOPBACK])
        assert (await trusting.post(url, {}, b"", 5)).accepted
        with pytest.raises(Failed, match="certificate"):
            await trusting.post(receiver.url(scheme="https"), {}, b"", 5)
    assert len(receiver.received) == 1


# --- signatures ------------------------------------------------------------------------------------------------------


def test_a_signature_is_that_of_the_standards_own_example() -> None:
    """The example of the specification of Standard Webhooks 1.0.0."""
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    body = b'{"test": 2432232314}'
    made = signing.headers([secret], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)
    assert made["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_two_secrets_make_two_signatures_and_a_plain_one_is_its_own_key() -> None:
    secret = signing.new_secret()
    made = signing.headers([secret, "plain words"], "msg_1", 1, b"{}")
    request = Received("/", made, b"{}")
    assert request.is_signed_by(base64.b64decode(secret.removeprefix("whsec_")))
    assert request.is_signed_by(b"plain words")
    assert not request.is_signed_by(b"other words")


def test_new_secrets_differ() -> None:
    assert signing.new_secret() != signing.new_secret()


def test_a_secret_that_claims_to_be_base64_must_be() -> None:
    with pytest.raises(ValueError, match="base64"):
        signing.headers(["whsec_not base64!"], "msg_1", 1, b"")
