"""Settings: read once, and wrong ones are named."""

import json
import subprocess
import sys

import pytest
from pydantic import ValidationError

from hearth_kit.settings import ServiceSettings


def test_every_setting_has_a_description_and_a_variable():
    for name, field in ServiceSettings.model_fields.items():
        assert field.description, name


def test_settings_come_from_the_environment_and_do_not_change(monkeypatch, tmp_path):
    file = tmp_path / "credentials.json"
    file.write_text(json.dumps({"user": "gateway-1", "password": "secret"}))
    monkeypatch.setenv("HEARTH_INSTANCE", "gateway-1")
    monkeypatch.setenv("HEARTH_NATS_CREDENTIALS", str(file))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    monkeypatch.setenv("HEARTH_OF_ANOTHER_SERVICE", "1")
    settings = ServiceSettings()
    assert (settings.instance, settings.broker_login()) == ("gateway-1", ("gateway-1", "secret"))
    assert settings.otlp_endpoint == "http://127.0.0.1:4318"
    with pytest.raises(ValidationError):
        settings.instance = "other"
    assert "secret" not in repr(settings)


def test_without_credentials_nobody_is_claimed_to_be(monkeypatch):
    monkeypatch.delenv("HEARTH_NATS_CREDENTIALS", raising=False)
    assert ServiceSettings().broker_login() == ("", "")


WRONG = {
    "a port that is none": ({"HEARTH_METRICS_PORT": "99999"}, "HEARTH_METRICS_PORT: Input should be less than or equal to 65535"),
    "not a number": ({"HEARTH_DRAIN_S_MAX": "soon"}, "HEARTH_DRAIN_S_MAX: Input should be a valid number"),
    "an unknown level": ({"HEARTH_LOG_LEVEL": "LOUD"}, "HEARTH_LOG_LEVEL: Input should be 'DEBUG', 'INFO', 'WARNING' or 'ERROR'"),
    "no such file": ({"HEARTH_NATS_CREDENTIALS": "/nowhere"}, "HEARTH_NATS_CREDENTIALS: /nowhere cannot be read"),
    "no credentials in it": ({"HEARTH_NATS_CREDENTIALS": "/dev/null"}, "HEARTH_NATS_CREDENTIALS: /dev/null holds no JSON"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_setting_ends_the_process_with_its_name_and_what_is_wrong(case):
    environment, message = WRONG[case]
    program = "from hearth_kit import lifecycle, settings; lifecycle.main(lambda chosen: None, settings.ServiceSettings)"
    ended = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert f"settings: {message}" in ended.stderr
    assert "Traceback" not in ended.stderr
