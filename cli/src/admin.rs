//! `atmctl admin`: credentials of the admin API.

use anyhow::{Context, Result, ensure};
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::Subcommand;
use serde_json::json;
use zeroize::Zeroizing;

use crate::connection::Connection;
use crate::output::{self, text};

/// Credentials of the admin API.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a credential: the token for its holder, and the line for the control plane's admin.credentialsFile
    Credential {
        /// Who will hold it: a name of its own, for the record
        name: String,
        /// viewer, operator, security_officer or administrator
        #[arg(long, value_enum)]
        role: Role,
    },
    /// Who the credential in use is, and its role
    Whoami,
}

/// What a credential allows; a higher one includes the lower ones.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum Role {
    /// Reads everything but the audit chain
    Viewer,
    /// Registers clients and API keys, and revokes
    Operator,
    /// Changes keys, policies and trusted issuers, and reads the audit chain
    SecurityOfficer,
    /// Everything
    Administrator,
}

impl Role {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::SecurityOfficer => "security_officer",
            Self::Administrator => "administrator",
        }
    }
}

impl Command {
    pub(crate) async fn run(self, connection: &Connection) -> Result<()> {
        match self {
            Self::Credential { name, role } => credential(&name, role, connection),
            Self::Whoami => {
                let holder = connection.admin()?.get(&["whoami"]).await?;
                let words = format!("{}, {}", text(&holder["name"]), text(&holder["role"]));
                output::show(&holder, connection.output, &words)
            }
        }
    }
}

fn credential(name: &str, role: Role, connection: &Connection) -> Result<()> {
    let fits = (1..=64).contains(&name.len())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "-._@".contains(c));
    ensure!(fits, "{name:?}: give a name of 1 to 64 letters, digits or any of -._@");
    let mut random = Zeroizing::new([0; 32]);
    rand::fill(random.as_mut()).ok().context("the system gives no randomness")?;
    let token = Zeroizing::new(URL_SAFE_NO_PAD.encode(random.as_ref()));
    let hash = hex::encode(digest(&SHA256, token.as_bytes()));
    let line = format!("- {{ name: {name}, role: {}, tokenSha256: {hash} }}", role.as_str());
    let made = json!({ "name": name, "role": role.as_str(), "token": token.as_str(), "tokenSha256": hash });
    let words =
        format!("token, shown this once: {}\nunder credentials in admin.credentialsFile:\n{line}", *token);
    output::show(&made, connection.output, &words)
}
