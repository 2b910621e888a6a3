"""Whether wandb can be online: asked before it starts, because a failed start cannot be retried offline."""

from __future__ import annotations

import base64
import configparser
import netrc
import os
from http.client import HTTPException
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from vitas.config import UserError, one_line
from vitas.files import expanded

PATIENCE = 5
"""Seconds that the wandb server has to answer before a run goes on without it."""


def wandb_mode(asked: str) -> tuple[str | None, str]:
    """`online`, `offline` or None for no wandb at all; and why it is offline, if nobody asked for that.

    `WANDB_MODE` overrules `asked`.

    Raises:
        UserError: Online is asked for, and not possible.
    """
    if asked == "never":
        return None, ""
    modes = {"online": "online", "run": "online", "offline": "offline", "dryrun": "offline", "disabled": None}
    told = os.environ.get("WANDB_MODE")
    if told and told not in modes:
        raise UserError(f"WANDB_MODE: expected online, offline or disabled, got {told}")
    settings = _wandb_settings()
    if asked == "auto" and not told:
        told = settings.get("mode")  # of the commands `wandb offline` and `wandb online`
    asked = modes.get(told, asked) if told else asked
    if asked not in ("auto", "online"):
        return asked, ""
    problem = _problem(settings)
    if problem and asked == "online":
        raise UserError(f"tracking.wandb: online: {problem}; tracking.wandb=offline does without the server")
    return ("offline", problem) if problem else ("online", "")


def _wandb_settings() -> dict[str, str]:
    """What wandb's commands have left in its files. wandb itself is not asked: what it reads first, it keeps."""
    files = configparser.ConfigParser(interpolation=None)
    try:
        files.read([
            expanded(os.environ.get("WANDB_CONFIG_DIR", "~/.config/wandb")) / "settings",
            expanded(os.environ.get("WANDB_DIR", ".")) / "wandb" / "settings",
        ])  # fmt: skip
        return dict(files["default"])
    except (OSError, ValueError, KeyError, configparser.Error):
        return {}


def _problem(settings: dict[str, str]) -> str:
    """Why wandb cannot be online: no login, no answer, or a key that is not taken; empty if it can."""
    import wandb

    usual = wandb.Settings().base_url
    url = (os.environ.get("WANDB_BASE_URL") or settings.get("base_url") or usual).rstrip("/")
    # Logins from before wandb moved to its present address stand under the old one.
    hosts = [urlsplit(url).netloc] + ["api.wandb.ai"] * (url == usual)
    key = os.environ.get("WANDB_API_KEY") or settings.get("api_key") or _netrc_key(hosts)
    if not key and not os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return f"not logged in to {url} (wandb login)"
    login = {"Authorization": f"Basic {base64.b64encode(f'api:{key}'.encode()).decode()}"} if key else {}
    question = b'{"query": "{viewer {id}}"}'
    try:
        request = Request(f"{url}/graphql", question, {"Content-Type": "application/json"} | login)
        urlopen(request, timeout=PATIENCE).close()
    except HTTPError as error:
        return f"{url} does not take the key (wandb login)" if error.code in (401, 403) else ""
    except (OSError, ValueError, HTTPException) as error:
        return f"{url} cannot be reached: {one_line(getattr(error, 'reason', error))}"
    return ""


def _netrc_key(hosts: list[str]) -> str | None:
    named = os.environ.get("NETRC")
    for file in [named] if named else ["~/.netrc", "~/_netrc"]:
        try:
            entries = netrc.netrc(expanded(file))
        except (OSError, ValueError, netrc.NetrcParseError):
            continue
        for host in hosts:
            if found := entries.authenticators(host):
                return found[2]
    return None
