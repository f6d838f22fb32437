//! `dev.json`: where everything of a local stack is, and how to start it again.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::layout::write_secret;

const FILE: &str = "dev.json";

/// A running local stack. Programs are named `nats`, `control_plane`, `sidecar`, `envoy` and `upstream`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Description {
    /// The tokens' issuer, and base of the OAuth endpoints.
    pub(crate) issuer: String,
    /// The control plane's admin listener.
    pub(crate) admin_url: String,
    /// Its bearer token.
    pub(crate) admin_token: String,
    /// The client that was registered.
    pub(crate) client_id: String,
    /// Its secret.
    pub(crate) client_secret: String,
    /// What its tokens are for.
    pub(crate) audience: String,
    /// Its scopes, with spaces between.
    pub(crate) scope: String,
    /// Envoy's listener.
    pub(crate) envoy_url: String,
    /// Path of the sidecar's unix socket (ext_authz over gRPC).
    pub(crate) sidecar_uds: String,
    /// `host:port` of ext_authz over gRPC.
    pub(crate) sidecar_grpc: String,
    /// `host:port` of ext_authz over HTTP.
    pub(crate) sidecar_http: String,
    /// The sidecar's admin listener.
    pub(crate) sidecar_admin_url: String,
    /// The NATS server.
    pub(crate) nats_url: String,
    /// The echo service behind Envoy.
    pub(crate) upstream_url: String,
    /// The policies that were applied.
    pub(crate) policy_file: String,
    /// Process ids by program.
    pub(crate) pids: BTreeMap<String, u32>,
    /// Log files by program.
    pub(crate) logs: BTreeMap<String, String>,
    /// By program, the argument list that starts it again on the same ports.
    pub(crate) commands: BTreeMap<String, Vec<String>>,
}

impl Description {
    /// The stack in `dir`; an error says how to start one.
    pub(crate) fn read(dir: &Path) -> Result<Self> {
        Self::find(dir)?.with_context(|| {
            format!(
                "there is no local stack in {0}; start one: atmctl dev up --dir {0} (or name a control plane by --admin-url)",
                dir.display()
            )
        })
    }

    /// The stack in `dir`, if there is one.
    pub(crate) fn find(dir: &Path) -> Result<Option<Self>> {
        let file = dir.join(FILE);
        let text = match std::fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
                ) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", file.display())),
        };
        serde_json::from_str(&text)
            .map(Some)
            .with_context(|| format!("{} is damaged; stop its programs and remove it", file.display()))
    }

    /// Writes it into `dir`, readable by its owner only: it holds secrets.
    pub(crate) fn write(&self, dir: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        let part = dir.join("dev.json.part");
        write_secret(&part, &text)?;
        std::fs::rename(&part, dir.join(FILE)).context("cannot write dev.json")
    }

    /// Removes it from `dir`.
    pub(crate) fn remove(dir: &Path) -> Result<()> {
        std::fs::remove_file(dir.join(FILE)).context("cannot remove dev.json")
    }

    /// For showing: the same without secrets.
    pub(crate) fn without_secrets(&self) -> Result<Value> {
        let mut shown = serde_json::to_value(self)?;
        if let Some(fields) = shown.as_object_mut() {
            fields.retain(|name, _| name != "admin_token" && name != "client_secret");
        }
        Ok(shown)
    }

    /// Where a program listens.
    pub(crate) fn address(&self, program: &str) -> String {
        match program {
            "nats" => self.nats_url.clone(),
            "control_plane" => format!("{} (admin {})", self.issuer, self.admin_url),
            "sidecar" => format!("{} (admin {})", self.sidecar_uds, self.sidecar_admin_url),
            "envoy" => self.envoy_url.clone(),
            "upstream" => self.upstream_url.clone(),
            _ => String::new(),
        }
    }
}
