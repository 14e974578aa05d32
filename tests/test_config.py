"""scalekit.toml and the environment: what wins, and what a mistake is told."""

import re
import subprocess
import sys

import pytest

from scalekit.config import Settings, UnknownProfile, load_settings
from scalekit.profile import Profile
from scalekit.rules import ConfigError


@pytest.fixture
def write(tmp_path):
    "Function that writes scalekit.toml and reads the settings it makes"

    def write(text, **environ):
        (tmp_path / "scalekit.toml").write_text(text)
        return load_settings(tmp_path, environ)

    return write


def test_without_a_file_everything_has_a_default(tmp_path):
    settings = load_settings(tmp_path, {})
    assert settings == Settings(folder=tmp_path, store=tmp_path / "runs")
    assert settings.get_profile() == Profile("auto", kind="auto")


def test_a_subfolder_finds_the_nearest_file_above(write, tmp_path):
    write('store = "outer"')
    inner = tmp_path / "project" / "deep" / "deeper"
    inner.mkdir(parents=True)
    assert load_settings(inner, {}).store == tmp_path / "outer"
    (tmp_path / "project" / "scalekit.toml").write_text('store = "inner"')
    assert load_settings(inner, {}).store == tmp_path / "project" / "inner"


def test_the_working_folder_is_where_looking_starts(write, tmp_path, monkeypatch):
    write('profile = "cpu"')
    monkeypatch.chdir(tmp_path)
    assert load_settings(environ={}).profile == "cpu"


def test_the_environment_wins_over_the_file(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = write(
        'store = "runs"\nprofile = "gpu"\nlinger = 1\npreload = ["pandas"]',
        SCALEKIT_STORE="elsewhere",
        SCALEKIT_PROFILE="cpu",
        SCALEKIT_LINGER="2.5",
        SCALEKIT_PRELOAD="numpy, torch",
    )
    assert settings.store == tmp_path / "elsewhere"
    assert (settings.profile, settings.linger, settings.preload) == ("cpu", 2.5, ("numpy", "torch"))


@pytest.mark.parametrize(("text", "value"), [("1", True), ("True", True), ("0", False), ("false", False)])
def test_pickle_is_allowed_by_the_file_or_the_environment_only(write, text, value):
    assert not write("").allow_pickle
    assert write("allow_pickle = true").allow_pickle
    assert write(f"allow_pickle = {str(not value).lower()}", SCALEKIT_ALLOW_PICKLE=text).allow_pickle == value
    with pytest.raises(ConfigError, match="allow_pickle must be true or false, got 'maybe'"):
        write("", SCALEKIT_ALLOW_PICKLE="maybe")


def test_an_empty_variable_says_nothing(write):
    assert write("linger = 3", SCALEKIT_LINGER="", SCALEKIT_PROFILE=" ").linger == 3


def test_an_empty_list_preloads_nothing(write):
    assert write("preload = []").preload == ()


def test_paths_in_the_file_start_at_its_folder(write, tmp_path):
    settings = write('store = "../runs"\n[profiles.p]\ntls_ca = "a"\ntls_cert = "/b"\ntls_key = "~/c"')
    profile = settings.get_profile("p")
    assert settings.store == tmp_path / "../runs"
    assert (profile.tls_ca, profile.tls_cert) == (str(tmp_path / "a"), "/b")
    assert not profile.tls_key.startswith("~")


def test_a_built_in_name_can_be_given_other_values(write):
    settings = write("[profiles.cpu]\nworkers = 3")
    assert settings.get_profile("cpu") == Profile("cpu", kind="cpu", workers=3)


def test_an_address_needs_no_profile(tmp_path):
    settings = load_settings(tmp_path, {})
    for address in ("tcp://127.0.0.1:8786", "tls://node-7.example.org:8786", "tcp://[::1]:8786"):
        assert settings.get_profile(address) == Profile(address, kind="address", address=address)


@pytest.mark.parametrize(
    "text, sentence",
    [
        ('proflie = "cpu"', r"unknown key 'proflie'. Did you mean 'profile'\?"),
        ("[profiles.p]\nworker = 2", r"profile 'p': unknown key 'worker'. Did you mean 'workers'\?"),
        ("[profiles.p]\nname = 'q'", "profile 'p': unknown key 'name'"),
        (
            "[profiles.p]\nworkers = 'two'",
            "workers must be a whole number .* got 'two'. For example: workers = 4",
        ),
        ("[profiles.p]\nworkers = true", "workers must be .* got True"),
        ("[profiles.p]\nworkers = 2.0", "workers must be .* got 2.0"),
        ("[profiles.p]\nmemory_limit = '8 gigs'", "memory_limit must be bytes, .* got '8 gigs'"),
        ("[profiles.p]\nprice_per_hour = nan", "price_per_hour must be money"),
        ("[profiles.p]\nkind = ['cpu']", r"kind must be one of .* got \['cpu'\]"),
        (
            "[profiles.p]\naddress = '10.0.0.5'",
            "address must be .* got '10.0.0.5'. For example: address = \"tcp://",
        ),
        ("[profiles]\np = 2", "profiles must be tables"),
        ("linger = -1", "linger must be a number of seconds, at least 0, got -1"),
        (
            "preload = 'numpy'",
            r"preload must be a list of module names, got 'numpy'. For example: preload = \[",
        ),
        ("profile = cpu", "this is no TOML: Invalid value .at line 1"),
    ],
)
def test_a_mistake_in_the_file_names_file_key_value_and_way_out(write, tmp_path, text, sentence):
    with pytest.raises(ConfigError, match=sentence) as caught:
        write(text)
    assert str(caught.value).startswith(str(tmp_path / "scalekit.toml"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("address = 'tcp://a:1'\nkind = 'cpu'", 'kind = "address" and address go together'),
        ("kind = 'address'", 'kind = "address" and address go together'),
        ("address = 'tcp://a:1'\nworkers = 2", "leave workers out"),
        ("threads = 2", "a notebook slot has 1 thread"),
        ("rmm_pool_size = 0.5", 'say slots = "data"'),
        ("protocol = 'ucx'", 'say slots = "data"'),
        ("kind = 'cpu'\nslots = 'data'\ndevice_memory_limit = '1 GiB'", "are for GPUs"),
        ("host = '0.0.0.0'\nprotocol = 'tcp'", 'protocol must be "tls", got "tcp"'),
        ("host = 'node7'\nprotocol = 'ucx'\nslots = 'data'", 'protocol must be "tls", got "ucx"'),
        ("tls_ca = 'ca.pem'", "give all three or none"),
    ],
)
def test_values_that_contradict_each_other_are_refused(write, text, sentence):
    with pytest.raises(ConfigError, match=sentence):
        write(f"[profiles.p]\n{text}")


def test_a_comma_preloads_nothing(write):
    assert write("", SCALEKIT_PRELOAD=",").preload == ()


def test_a_mistake_in_the_environment_names_the_variable(tmp_path):
    with pytest.raises(ConfigError, match="SCALEKIT_LINGER: linger must be a number .* got 'soon'"):
        load_settings(tmp_path, {"SCALEKIT_LINGER": "soon"})


def test_an_unknown_profile_is_led_to_the_right_one(write):
    settings = write("[profiles.night]\nworkers = 1")
    sentence = "Did you mean 'night'? There are: auto, cpu, gpu, night"
    with pytest.raises(UnknownProfile, match=re.escape(sentence)):
        settings.get_profile("nigth")


def test_only_loopback_goes_without_tls():
    hosts = {
        "127.0.0.1": False,
        "127.9.9.9": False,
        "::1": False,
        "[::1]": False,
        "localhost": False,
        "0.0.0.0": True,
        "::": True,
        "10.0.0.5": True,
        "localhost.example.org": True,
    }
    assert {host: Profile(host=host).encrypted for host in hosts} == hosts
    assert Profile(protocol="tls").encrypted


def test_settings_load_no_heavy_library():
    code = (
        "import sys, scalekit.config; print(sorted({'dask', 'numpy', 'torch', 'pynvml'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_profile_under_the_wrong_heading_is_led_to_the_right_one(tmp_path):
    (tmp_path / "scalekit.toml").write_text('[profile.night]\nkind = "cpu"\n')
    with pytest.raises(ConfigError, match=r"stands under \[profiles\.night\]"):
        load_settings(tmp_path, {})
