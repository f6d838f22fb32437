//! Which control plane is meant, and how results are shown: the options that every command takes.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::admin_api::AdminApi;
use crate::dev::Description;
use crate::output::Format;

/// The variable that holds the admin API's bearer token; never an argument, which every user of the machine can see.
const ADMIN_TOKEN: &str = "ATM_ADMIN_TOKEN";

/// Options of every command.
#[derive(Debug, Args)]
pub(crate) struct Connection {
    /// How results are shown
    #[arg(long, global = true, value_enum, default_value_t = Format::Human)]
    pub(crate) output: Format,
    /// Directory of a local stack, as given to `atmctl dev up`
    #[arg(long, global = true, env = "ATM_DEV_DIR", value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// The control plane's admin listener, for example http://127.0.0.1:8081
    #[arg(long, global = true, env = "ATM_ADMIN_URL", value_name = "URL")]
    admin_url: Option<String>,
    /// File with the admin API's bearer token (or set ATM_ADMIN_TOKEN to the token)
    #[arg(long, global = true, env = "ATM_ADMIN_TOKEN_FILE", value_name = "FILE")]
    admin_token_file: Option<PathBuf>,
    /// The realm whose clients, sessions, subjects, assertion rules, keys or revocations are meant; the default one when left out
    #[arg(long, global = true, env = "ATM_REALM", value_name = "NAME")]
    realm: Option<String>,
    /// PEM file with certificate authorities to trust besides the system's
    #[arg(long, global = true, env = "ATM_CA_FILE", value_name = "FILE")]
    pub(crate) ca_file: Option<PathBuf>,
}

impl Connection {
    /// The admin API of the control plane that is meant.
    pub(crate) fn admin(&self) -> Result<AdminApi> {
        let (url, token) = match (&self.admin_url, self.local_stack()?) {
            (Some(url), _) => (url.clone(), self.admin_token()?),
            (None, Some(stack)) => (stack.admin_url, stack.admin_token),
            (None, None) => bail!(
                "which control plane? give --dir DIR of a local stack (or set ATM_DEV_DIR), or --admin-url URL with --admin-token-file FILE"
            ),
        };
        Ok(AdminApi::new(&url, token, self.ca_file.as_deref())?.in_realm(self.realm.clone()))
    }

    /// The local stack in `--dir`, if the option was given and `--admin-url` does not come before it.
    pub(crate) fn local_stack(&self) -> Result<Option<Description>> {
        match &self.dir {
            Some(dir) if self.admin_url.is_none() => Description::read(dir).map(Some),
            _ => Ok(None),
        }
    }

    /// The directory that a `dev` command works on.
    pub(crate) fn stack_dir(&self) -> Result<&Path> {
        self.dir.as_deref().context("which local stack? give --dir DIR, or set ATM_DEV_DIR")
    }

    fn admin_token(&self) -> Result<String> {
        if let Some(file) = &self.admin_token_file {
            let text = std::fs::read_to_string(file)
                .with_context(|| format!("cannot read the admin token from {}", file.display()))?;
            return Ok(text.trim().to_owned());
        }
        std::env::var(ADMIN_TOKEN).with_context(|| {
            format!("the admin API needs a token: give --admin-token-file FILE, or set {ADMIN_TOKEN}")
        })
    }
}
