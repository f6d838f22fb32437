"""
Gets, keeps and renews access tokens from ATM by client credentials (RFC 6749 section 4.4), with the standard library alone.

    ATM_ISSUER=https://id.example.com ATM_CLIENT_ID=... ATM_CLIENT_SECRET_FILE=... \
        python3 atm_client.py orders-api orders.read https://api.example.com/orders
"""

import base64
import json
import os
import random
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request


class TokenError(Exception):
    """The issuer gave no token; `code` is its OAuth error, `retry` whether asking again can help."""

    def __init__(self, code, description, retry):
        super().__init__(f"{code}: {description}" if description else code)
        self.code = code
        self.retry = retry


class TokenSource:
    """
    One token for one audience and scope, shared by all threads.

    It is renewed when four fifths of its life are over, a little earlier or later in each process, so that a thousand
    replicas do not ask in one second. While the issuer is away the old token is used until it ends.
    """

    def __init__(self, issuer, client_id, client_secret, audience, scope, clock=time.monotonic):
        self._issuer = issuer.rstrip("/")
        # RFC 6749 section 2.3.1: both parts are form-encoded before they are joined.
        pair = ":".join(urllib.parse.quote(part, safe="") for part in (client_id, client_secret))
        self._authorization = "Basic " + base64.b64encode(pair.encode()).decode()
        self._form = {"grant_type": "client_credentials", "audience": audience, "scope": scope}
        self._clock = clock
        self._lock = threading.Lock()
        self._endpoint = None
        self._token = None
        self._renew_at = self._ends_at = 0.0

    def token(self):
        """A token that is valid now. Raises TokenError when there is none to be had."""
        with self._lock:
            now = self._clock()
            if self._token is not None and now < self._renew_at:
                return self._token
            try:
                self._renew(now)
            except TokenError as error:
                if not error.retry or self._token is None or now >= self._ends_at:
                    raise
                # The old one is still good; ask again soon.
                self._renew_at = now + 1.0
            return self._token

    def refused(self, token):
        """Forgets `token` after a 401 with error="invalid_token": it may have been revoked."""
        with self._lock:
            if self._token == token:
                self._token = None

    def _renew(self, now):
        if self._endpoint is None:
            metadata = self._get_json(self._metadata_url(), None, {})
            if metadata.get("issuer") != self._issuer:
                raise TokenError("wrong_issuer", f"{self._issuer} calls itself {metadata.get('issuer')}", False)
            self._endpoint = metadata["token_endpoint"]
        answer = self._get_json(self._endpoint, urllib.parse.urlencode(self._form).encode(), {"Authorization": self._authorization})
        life = float(answer.get("expires_in", 60))
        self._token = answer["access_token"]
        self._ends_at = now + life - 1.0
        self._renew_at = now + life * random.uniform(0.7, 0.85)

    def _metadata_url(self):
        # RFC 8414 section 3: the well-known part goes before the issuer's path.
        parts = urllib.parse.urlsplit(self._issuer)
        return urllib.parse.urlunsplit(parts._replace(path="/.well-known/oauth-authorization-server" + parts.path))

    @staticmethod
    def _get_json(url, form, headers):
        request = urllib.request.Request(url, data=form, headers={"Accept": "application/json", **headers})
        try:
            with urllib.request.urlopen(request, timeout=5) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            try:
                body = json.load(error)
            except ValueError:
                body = {}
            retry = error.code >= 500 or error.code == 429
            raise TokenError(body.get("error", f"http_{error.code}"), body.get("error_description", ""), retry) from None
        except OSError as error:
            raise TokenError("unreachable", str(error), True) from None


def call(source, url):
    """GET with a token; once more with a new one when the first was refused. Returns status and body."""
    for attempt in (1, 2):
        token = source.token()
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            challenge = error.headers.get("WWW-Authenticate", "")
            if attempt == 1 and error.code == 401 and 'error="invalid_token"' in challenge:
                source.refused(token)
                continue
            return error.code, error.read().decode()
    raise AssertionError("unreachable")


def main():
    audience, scope, url = sys.argv[1:]
    with open(os.environ["ATM_CLIENT_SECRET_FILE"], encoding="ascii") as file:
        secret = file.read().strip()
    source = TokenSource(os.environ["ATM_ISSUER"], os.environ["ATM_CLIENT_ID"], secret, audience, scope)
    try:
        status, body = call(source, url)
    except TokenError as error:
        sys.exit(f"no token: {error}")
    print(body)
    sys.exit(0 if status < 400 else f"{url} answered {status}")


if __name__ == "__main__":
    main()
