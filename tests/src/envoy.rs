//! A real Envoy that asks a sidecar over its unix socket.

use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::process::Process;
use crate::{http, programs, wait};

/// An Envoy on a free port.
#[derive(Debug)]
pub struct Envoy {
    process: Process,
    _directory: TempDir,
    _resources: Option<TempDir>,
    address: String,
    admin: String,
}

impl Envoy {
    /// Starts it between the clients and `upstream` (`host:port`), with the sidecar at `socket`. It passes paths on as they
    /// came, so that the sidecar itself has to judge every trick.
    pub async fn start(upstream: &str, socket: &Path) -> Self {
        Self::start_with("envoy.json", &config(upstream, socket).to_string()).await
    }

    /// Starts it with the configuration that we ship (`examples/envoy/envoy.yaml`).
    pub async fn start_shipped(upstream: &str, socket: &Path) -> Self {
        Self::start_with("envoy.yaml", &shipped_config(upstream, socket)).await
    }

    /// Starts it with a configuration of the suite's own, made from [`config`].
    pub async fn start_config(config: &Value) -> Self {
        Self::start_with("envoy.json", &config.to_string()).await
    }

    /// Starts it with the configuration whose resources come from files (`examples/envoy/xds`), asking the validator at
    /// `validator` (`host:port`).
    pub async fn start_xds(upstream: &str, validator: &str) -> Self {
        let directory = TempDir::new().expect("temporary directory");
        let (upstream_host, upstream_port) = upstream.split_once(':').expect("host:port");
        let (validator_host, validator_port) = validator.split_once(':').expect("host:port");
        let values = [
            ("${ENVOY_ADMIN_PORT}", "0"),
            ("${ENVOY_ADDRESS}", "127.0.0.1"),
            ("${ENVOY_PORT}", "0"),
            ("${XDS_DIR}", directory.path().to_str().expect("UTF-8 path")),
            ("${VALIDATOR_ADDRESS}", validator_host),
            ("${VALIDATOR_PORT}", validator_port),
            ("${UPSTREAM_ADDRESS}", upstream_host),
            ("${UPSTREAM_PORT}", upstream_port),
        ];
        for name in ["lds.yaml", "cds.yaml"] {
            std::fs::write(directory.path().join(name), filled(&format!("xds/{name}"), &values))
                .expect("written");
        }
        let envoy = Self::start_with("envoy.yaml", &filled("xds/bootstrap.yaml", &values)).await;
        Self { _resources: Some(directory), ..envoy }
    }

    async fn start_with(name: &str, config: &str) -> Self {
        let directory = TempDir::new().expect("temporary directory");
        let path = |name: &str| directory.path().join(name).display().to_string();
        std::fs::write(path(name), config).expect("configuration is written");
        let (file, admin_file) = (path(name), path("admin"));
        let arguments =
            ["--config-path", &file, "--admin-address-path", &admin_file, "--disable-hot-restart"];
        let more = ["--concurrency", "1", "--log-level", "warning"];
        let log = directory.path().join("envoy.log");
        let mut process =
            Process::start("envoy", &programs::tool("envoy"), &[&arguments[..], &more].concat(), &log);
        let admin = wait::until_some("Envoy's admin address", wait::USUAL, || {
            process.assert_running();
            std::fs::read_to_string(&admin_file).ok().filter(|text| !text.is_empty())
        })
        .await;
        let address = wait::until("Envoy to listen", wait::USUAL, || listener_address(&admin)).await;
        Self { process, _directory: directory, _resources: None, address, admin }
    }

    /// The operating system's process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// `host:port` of its listener.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// A counter of its HTTP connection manager's filters, such as `ext_authz.denied`; 0 where it has none of that name.
    pub async fn counter(&self, name: &str) -> u64 {
        let stats =
            http::get(&self.admin, "/stats?type=Counters").await.expect("Envoy's admin answers").text();
        let wanted = format!("http.ingress.{name}");
        let mut counters = stats.lines().filter_map(|line| line.split_once(": "));
        let found = counters.find(|(found, _)| *found == wanted);
        found.map_or(0, |(_, value)| value.parse().expect("a number"))
    }
}

async fn listener_address(admin: &str) -> Result<String, String> {
    let ready = http::get(admin, "/ready").await.map_err(|error| error.to_string())?;
    if ready.status != 200 {
        return Err(ready.text());
    }
    let listeners =
        http::get(admin, "/listeners?format=json").await.map_err(|error| error.to_string())?.json();
    let socket = &listeners["listener_statuses"][0]["local_address"]["socket_address"];
    match socket["port_value"].as_u64() {
        Some(port) if port != 0 => Ok(format!("127.0.0.1:{port}")),
        _ => Err(listeners.to_string()),
    }
}

/// The shipped configuration with its placeholders filled, on free ports.
pub fn shipped_config(upstream: &str, socket: &Path) -> String {
    let (host, port) = upstream.split_once(':').expect("host:port");
    let values = [
        ("${ENVOY_ADMIN_PORT}", "0"),
        ("${ENVOY_ADDRESS}", "127.0.0.1"),
        ("${ENVOY_PORT}", "0"),
        ("${SIDECAR_SOCKET}", socket.to_str().expect("UTF-8 path")),
        ("${UPSTREAM_ADDRESS}", host),
        ("${UPSTREAM_PORT}", port),
    ];
    filled("envoy.yaml", &values)
}

/// A file of `examples/envoy` with its placeholders filled.
fn filled(name: &str, values: &[(&str, &str)]) -> String {
    let path = programs::workspace().join("examples/envoy").join(name);
    let template =
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let filled = values.iter().fold(template, |text, (name, value)| text.replace(name, value));
    let left_over = filled.lines().find(|line| line.contains("${") && !line.trim_start().starts_with('#'));
    assert_eq!(left_over, None, "a placeholder that nothing fills");
    filled
}

/// The filter's settings in a configuration of [`config`].
pub fn ext_authz(config: &mut Value) -> &mut Value {
    &mut connection_manager_of(config)["http_filters"][0]["typed_config"]
}

/// The connection manager's settings in a configuration of [`config`].
pub fn connection_manager_of(config: &mut Value) -> &mut Value {
    &mut listener_of(config)["filter_chains"][0]["filters"][0]["typed_config"]
}

/// The listener in a configuration of [`config`].
pub fn listener_of(config: &mut Value) -> &mut Value {
    &mut config["static_resources"]["listeners"][0]
}

/// Lets the filter of a configuration of [`config`] ask over HTTP at `address` (`host:port`) instead of gRPC, as
/// `examples/envoy/http.yaml` does.
pub fn ask_over_http(config: &mut Value, address: &str) {
    let (host, port) = address.split_once(':').expect("host:port");
    let file = programs::workspace().join("examples/envoy/http.yaml");
    let text = std::fs::read_to_string(file).expect("examples/envoy/http.yaml");
    let filled = [("${SIDECAR_HTTP}", address), ("${SIDECAR_HOST}", host), ("${SIDECAR_PORT}", port)]
        .iter()
        .fold(text, |text, (name, value)| text.replace(name, value));
    let mut example: Value = serde_norway::from_str(&filled).expect("YAML");
    *ext_authz(config) = example["http_filters"][0]["typed_config"].take();
    // Generous: the suites run debug builds on a loaded machine.
    ext_authz(config)["http_service"]["server_uri"]["timeout"] = json!("5s");
    let clusters = config["static_resources"]["clusters"].as_array_mut().expect("clusters");
    clusters.push(example["clusters"][0].take());
}

/// The configuration that [`Envoy::start`] uses, for suites that change parts of it.
pub fn config(upstream: &str, socket: &Path) -> Value {
    let (host, port) = upstream.split_once(':').expect("host:port");
    let upstream_address =
        json!({ "socket_address": { "address": host, "port_value": port.parse::<u16>().expect("a port") } });
    let http2 = json!({
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": { "http2_protocol_options": {} },
    });
    json!({
        "admin": { "address": { "socket_address": { "address": "127.0.0.1", "port_value": 0 } } },
        "static_resources": {
            "listeners": [{
                "name": "ingress",
                "address": { "socket_address": { "address": "127.0.0.1", "port_value": 0 } },
                "filter_chains": [{ "filters": [connection_manager()] }],
            }],
            "clusters": [
                cluster("upstream", &upstream_address, &json!({})),
                cluster(
                    "atm-sidecar",
                    &json!({ "pipe": { "path": socket.display().to_string() } }),
                    &json!({ "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2 }),
                ),
            ],
        },
    })
}

fn cluster(name: &str, address: &Value, protocol: &Value) -> Value {
    json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "typed_extension_protocol_options": protocol,
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": address } }] }],
        },
    })
}

fn connection_manager() -> Value {
    let authz = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz",
        "transport_api_version": "V3",
        "failure_mode_allow": false,
        "status_on_error": { "code": "ServiceUnavailable" },
        // Generous: the suites run debug builds on a loaded machine.
        "grpc_service": { "timeout": "5s", "envoy_grpc": { "cluster_name": "atm-sidecar", "authority": "atm-sidecar" } },
    });
    let router = json!({ "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" });
    let routes = json!([{ "match": { "prefix": "/" }, "route": { "cluster": "upstream" } }]);
    let typed = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "ingress",
        "normalize_path": false,
        "merge_slashes": false,
        "path_with_escaped_slashes_action": "KEEP_UNCHANGED",
        "route_config": { "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": routes }] },
        "http_filters": [
            { "name": "envoy.filters.http.ext_authz", "typed_config": authz },
            { "name": "envoy.filters.http.router", "typed_config": router },
        ],
    });
    json!({ "name": "envoy.filters.network.http_connection_manager", "typed_config": typed })
}
