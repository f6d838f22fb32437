"""Drives the OAuth endpoints with Authlib, as a Python service would."""

import json
import os
import unittest

import httpx
from authlib.integrations.httpx_client import OAuth2Client
from authlib.jose import JsonWebKey, jwt
from authlib.oauth2.rfc7523 import PrivateKeyJWT
from authlib.oauth2.rfc8414 import AuthorizationServerMetadata
from joserfc.jwk import ECKey

ISSUER = os.environ["ATM_ISSUER"]
ADMIN = httpx.Client(
    base_url=os.environ["ATM_ADMIN_URL"] + "/admin/v1",
    headers={"authorization": "Bearer " + os.environ["ATM_ADMIN_TOKEN"]},
)
EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"


def admin(method, path, body=None):
    response = ADMIN.request(method, path, json=body)
    assert response.is_success, response.text
    return response.json() if response.content else None


def register(**members):
    members.setdefault("scopes", ["orders.read", "orders.write"])
    members.setdefault("audiences", ["orders-api"])
    return admin("POST", "/clients", members)


def metadata():
    document = httpx.get(ISSUER + "/.well-known/oauth-authorization-server").json()
    checked = AuthorizationServerMetadata(document)
    for name in ("issuer", "token_endpoint", "jwks_uri", "grant_types_supported", "revocation_endpoint",
                 "token_endpoint_auth_methods_supported", "introspection_endpoint"):
        if hasattr(checked, "validate_" + name) and not ISSUER.startswith("http://"):
            getattr(checked, "validate_" + name)()
    return document


METADATA = metadata()


def session(client, method="client_secret_basic", **more):
    return OAuth2Client(
        client["client_id"], client.get("client_secret"), token_endpoint_auth_method=method,
        token_endpoint=METADATA["token_endpoint"], revocation_endpoint_auth_method=method, **more)


def claims_of(token):
    keys = JsonWebKey.import_key_set(httpx.get(METADATA["jwks_uri"]).json())
    claims = jwt.decode(token, keys, claims_options={
        "iss": {"essential": True, "value": ISSUER}, "aud": {"essential": True, "value": "orders-api"}})
    claims.validate()
    return claims


class ClientCredentials(unittest.TestCase):
    def test_secret_in_either_place(self):
        client = register()
        for method in ("client_secret_basic", "client_secret_post"):
            with session(client, method) as oauth:
                token = oauth.fetch_token(grant_type="client_credentials", scope="orders.read")
                self.assertEqual(token["scope"], "orders.read")
                self.assertEqual(claims_of(token["access_token"])["client_id"], client["client_id"])

    def test_wrong_secret(self):
        client = register()
        with session({"client_id": client["client_id"], "client_secret": "wrong"}) as oauth:
            with self.assertRaisesRegex(Exception, "invalid_client"):
                oauth.fetch_token(grant_type="client_credentials")

    def test_private_key_jwt(self):
        key = JsonWebKey.generate_key("EC", "P-256", {"kid": "k1"}, is_private=True)
        client = register(token_endpoint_auth_method="private_key_jwt",
                          jwks={"keys": [json.loads(key.as_json(is_private=False))]})
        signing = ECKey.import_key(json.loads(key.as_json(is_private=True)))
        with OAuth2Client(client["client_id"], signing, token_endpoint_auth_method="private_key_jwt") as oauth:
            # The audience of an assertion is the issuer, whatever endpoint it is sent to.
            oauth.register_client_auth_method(PrivateKeyJWT(ISSUER, alg="ES256", headers={"kid": "k1"}))
            for _ in range(2):
                token = oauth.fetch_token(METADATA["token_endpoint"], grant_type="client_credentials")
                self.assertEqual(claims_of(token["access_token"])["sub"], client["client_id"])


class Sessions(unittest.TestCase):
    def test_refresh_and_revocation(self):
        client = register(grant_types=["refresh_token"])
        opened = admin("POST", "/sessions", {"subject": "alice", "client_id": client["client_id"]})
        with session(client, token=opened) as oauth:
            first = oauth.refresh_token(METADATA["token_endpoint"], refresh_token=opened["refresh_token"])
            self.assertEqual(claims_of(first["access_token"])["sub"], "alice")
            second = oauth.refresh_token(METADATA["token_endpoint"], refresh_token=first["refresh_token"])
            self.assertNotEqual(first["refresh_token"], second["refresh_token"])
            answer = oauth.introspect_token(
                METADATA["introspection_endpoint"], token=second["access_token"]).json()
            self.assertTrue(answer["active"])
            revoked = oauth.revoke_token(METADATA["revocation_endpoint"], token=second["refresh_token"],
                                         token_type_hint="refresh_token")
            self.assertEqual(revoked.status_code, 200)
            answer = oauth.introspect_token(
                METADATA["introspection_endpoint"], token=second["access_token"]).json()
            self.assertEqual(answer, {"active": False})
            with self.assertRaisesRegex(Exception, "invalid_grant"):
                oauth.refresh_token(METADATA["token_endpoint"], refresh_token=second["refresh_token"])


class Exchange(unittest.TestCase):
    def test_a_narrower_token_of_the_same_subject(self):
        app = register()
        gateway = register(grant_types=[EXCHANGE], scopes=["orders.read"], exchange={"impersonation": True})
        with session(app) as oauth:
            parent = oauth.fetch_token(grant_type="client_credentials")["access_token"]
        with session(gateway) as oauth:
            token = oauth.fetch_token(grant_type=EXCHANGE, subject_token=parent, subject_token_type=ACCESS_TOKEN)
        self.assertEqual((token["issued_token_type"], token["scope"]), (ACCESS_TOKEN, "orders.read"))
        self.assertEqual(claims_of(token["access_token"])["sub"], app["client_id"])


class Assertions(unittest.TestCase):
    def test_a_token_of_a_trusted_issuer(self):
        key = JsonWebKey.generate_key("EC", "P-256", {"kid": "k1"}, is_private=True)
        issuer = "https://cluster.example"
        grant = "urn:ietf:params:oauth:grant-type:jwt-bearer"
        admin("POST", "/issuers", {"issuer": issuer, "token_types": ["JWT", "none"],
                                   "jwks": {"keys": [json.loads(key.as_json(is_private=False))]}})
        client = register(grant_types=[grant])
        admin("POST", "/assertion-rules",
              {"issuer": issuer, "client_id": client["client_id"], "claims": {"/sub": "workload"}})
        from authlib.oauth2.rfc7523 import JWTBearerGrant
        assertion = JWTBearerGrant.sign(
            key, issuer=issuer, audience=ISSUER, subject="workload", claims={"jti": os.urandom(8).hex()},
            header={"alg": "ES256", "kid": "k1"}, expires_in=60)
        if isinstance(assertion, bytes):
            assertion = assertion.decode()
        response = httpx.post(METADATA["token_endpoint"], data={"grant_type": grant, "assertion": assertion})
        self.assertEqual(response.status_code, 200, response.text)
        self.assertEqual(claims_of(response.json()["access_token"])["client_id"], client["client_id"])


if __name__ == "__main__":
    unittest.main(verbosity=2)
