//! `atmctl feed`: how far the log is, and the keys that sidecars believe.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use atm_proto::signature::FeedSigner;
use clap::Subcommand;
use serde_json::json;
use zeroize::Zeroizing;

use crate::connection::Connection;
use crate::output::{self, Format, text};

/// The feed and its keys.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// How far the log is, and which keys sidecars are told to trust
    Show,
    /// The public half of a feed key, as sidecars pin it
    PublicKey {
        /// File with the seed, 43 characters of base64url
        file: PathBuf,
    },
    /// Have sidecars trust another feed key beside the present ones; the first step of a change
    AddKey {
        /// The public half, as `atmctl feed public-key` prints it
        key: String,
    },
    /// Have sidecars trust a feed key no more; the last step, when every control plane signs with another one
    RetireKey {
        /// The public half
        key: String,
    },
    /// Make an nkey for a user of NATS: the seed goes into a file, the public half is printed
    NatsKey {
        /// Where the seed is written, readable for its owner alone; must not exist
        file: PathBuf,
    },
}

impl Command {
    /// Does it.
    pub(crate) async fn run(self, connection: &Connection) -> Result<()> {
        match self {
            Self::PublicKey { file } => return output::print(&public_key(&file)?),
            Self::NatsKey { file } => return nats_key(&file),
            _ => {}
        }
        let admin = connection.admin()?;
        let feed = match self {
            Self::AddKey { key } => admin.post(&["feed", "keys"], &json!({ "add": key })).await?,
            Self::RetireKey { key } => admin.post(&["feed", "keys"], &json!({ "retire": key })).await?,
            _ => admin.get(&["feed"]).await?,
        };
        if connection.output == Format::Json {
            return output::print_json(&feed);
        }
        let trusted = match text(&feed["trusted_keys"]) {
            none if none.is_empty() => "as sidecars pin them".to_owned(),
            some => some,
        };
        let mut lines = vec![
            format!("epoch {}, revision {}", text(&feed["epoch"]), feed["revision"]),
            format!("in NATS up to revision {}", feed["published"]),
            format!("this control plane signs with {}", text(&feed["feed_public_key"])),
            format!("trusted: {trusted} (rotation {})", feed["rotation"]),
        ];
        if feed["degraded"].is_string() {
            lines.push(format!("degraded: {}", text(&feed["degraded"])));
        }
        output::print(&lines.join("\n"))
    }
}

fn public_key(file: &Path) -> Result<String> {
    let read = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let read = Zeroizing::new(read);
    let bytes = atm_core::base64url::decode(read.trim()).ok().map(Zeroizing::new);
    let mut seed = Zeroizing::new([0; 32]);
    match bytes {
        Some(bytes) if bytes.len() == seed.len() => seed.copy_from_slice(&bytes),
        _ => bail!("{} does not hold 32 bytes in base64url without padding", file.display()),
    }
    Ok(FeedSigner::from_seed(&seed)?.public_key().to_string())
}

fn nats_key(file: &Path) -> Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let key = nkeys::KeyPair::new_user();
    let seed = Zeroizing::new(key.seed().context("the nkey has no seed")?);
    let mut seed_file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(file)
        .with_context(|| format!("cannot create {}", file.display()))?;
    seed_file.write_all(seed.as_bytes()).and_then(|()| seed_file.sync_all())?;
    output::print(&key.public_key())
}
