"""
Installs and upgrades the chart with Helm's own library against the API server of these tests: what was made once is found again, and
nothing that holds keys or the feed is replaced.

    .tools/python/bin/python tests/kubernetes/check_upgrade.py helm/atm
"""

import base64
import sys

import helm_python as helm

import apiserver

ISSUER = "https://id.example.com"


def main():
    address, cluster = apiserver.serve()
    config = helm.Config(kube_apiserver=f"http://{address}", kube_token="helm", namespace="atm", storage_driver="memory")  # releases are stored in protobuf, which the server does not read
    chart = helm.Chart.load(sys.argv[1])
    with cluster.lock:
        cluster.create(cluster.kinds[("", "v1", "namespaces")], "", {"metadata": {"name": "atm"}})

    def held(plural, group=""):
        with cluster.lock:
            return {name: o for (g, p, _, name), o in cluster.objects.items() if (g, p) == (group, plural)}

    config.install(chart, "atm", values={"issuer": ISSUER})
    secrets, sets = held("secrets"), held("statefulsets", "apps")
    keys = secrets["atm-secrets"]["data"]
    assert set(keys) == {"wrapping.key", "feed.key", "feed.pub", "admin.token"}, keys.keys()
    assert len(base64.b64decode(keys["wrapping.key"])) == 43
    believed = held("configmaps")["atm-gateway"]["data"]["sidecar.yaml"]
    assert base64.b64decode(keys["feed.pub"]).decode() in believed

    # Upgrades: with the same values, with more of everything, with a second feed key.
    second = "iojj3XQJ8ZX9UtstPLpdcspnCb8dlBIb83SIAbQPb1w"
    for values in (
        {"issuer": ISSUER},
        {"issuer": ISSUER, "node": {"enabled": True}, "gateway": {"autoscaling": {"enabled": True}}, "nats": {"bundled": {"replicas": 3}}},
        {"issuer": ISSUER, "feedKeys": [second]},
    ):
        config.upgrade(chart, "atm", values=values)
        now = held("secrets")
        for name in ("atm-secrets", "atm-nats-users", "atm-admin-tls"):
            assert now[name]["data"] == secrets[name]["data"], f"{name} has changed with {values}"
        for name, before in sets.items():
            after = held("statefulsets", "apps")[name]
            assert after["metadata"]["uid"] == before["metadata"]["uid"], f"{name} was made anew with {values}"
            for field in ("volumeClaimTemplates", "serviceName", "selector", "podManagementPolicy"):
                assert after["spec"].get(field) == before["spec"].get(field), f"{name}: {field} cannot be changed, and was, with {values}"
    believed = held("configmaps")["atm-gateway"]["data"]["sidecar.yaml"]
    for key in (second, base64.b64decode(keys["feed.pub"]).decode()):
        assert key in believed, believed

    # Logins by tokens: the key that signs them is made once.
    by_token = {"issuer": ISSUER, "nats": {"authCallout": {"enabled": True}}}
    config.upgrade(chart, "atm", values=by_token)
    callout, accounts = (held("secrets")[name]["data"] for name in ("atm-nats-callout", "atm-nats-accounts"))
    assert 'user: "validator"' not in base64.b64decode(accounts["accounts.conf"]).decode()
    config.upgrade(chart, "atm", values=by_token)
    assert held("secrets")["atm-nats-callout"]["data"] == callout
    assert held("secrets")["atm-nats-accounts"]["data"] == accounts, "the server knows another key"

    # A certificate in its last year is made anew; the keys stay.
    with cluster.lock:
        cluster.objects[("", "secrets", "atm", "atm-admin-tls")]["metadata"]["annotations"]["atm.dev/renew-after"] = "1"
    config.upgrade(chart, "atm", values={"issuer": ISSUER})
    now = held("secrets")
    assert now["atm-admin-tls"]["data"]["tls.crt"] != secrets["atm-admin-tls"]["data"]["tls.crt"]
    assert now["atm-secrets"]["data"] == keys

    # Leaving: the keys stay, and a new installation takes them again.
    config.uninstall("atm")
    assert held("secrets")["atm-secrets"]["data"] == keys
    assert {"atm-nats-users", "atm-nats-callout"} <= set(held("secrets")) and not held("deployments", "apps")
    config.install(chart, "atm", values={"issuer": ISSUER})
    assert held("secrets")["atm-secrets"]["data"] == keys
    print("installed, upgraded and removed without losing a key")


if __name__ == "__main__":
    main()
