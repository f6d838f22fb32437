//! `atmctl`: what operators and developers do with ATM, from the command line.
//!
//! Results go to standard output (tables, or JSON with `--output json`), everything else to standard error. Exit status 0 means
//! that what was asked for was done or holds, 1 that it was not, 2 that the command line was wrong; `policy check`, `test`, `diff` and
//! `replay` end with 2 too where they could find no answer.

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

mod admin;
mod admin_api;
mod api_key;
mod assertion_rule;
mod audit;
mod backup;
mod client;
mod connection;
mod dev;
mod doctor;
mod explain;
mod feed;
mod fleet;
mod http_client;
mod issuer;
mod keys;
mod output;
mod policy;
mod policy_table;
mod realm;
mod reason;
mod reference;
mod revocations;
mod revoke;
mod session;
mod token;
mod token_input;

use connection::Connection;

/// Operate ATM: clients, tokens, keys, policies, revocations, and a local stack to try them on.
///
/// A control plane is found by --admin-url with --admin-token-file (or the variable ATM_ADMIN_TOKEN), or by --dir, the
/// directory of a local stack that `atmctl dev up` started.
#[derive(Debug, Parser)]
#[command(name = "atmctl", version, arg_required_else_help = true)]
struct Arguments {
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// A local stack: NATS, control plane, sidecar, Envoy and an echo service
    #[command(subcommand)]
    Dev(dev::Command),
    /// OAuth clients
    #[command(subcommand)]
    Client(client::Command),
    /// Sessions that the login service opened for subjects
    #[command(subcommand)]
    Session(session::Command),
    /// Subjects: global logout, and who gets no tokens
    #[command(subcommand)]
    Subject(session::Subject),
    /// Which assertions of trusted issuers stand for which client
    #[command(subcommand)]
    AssertionRule(assertion_rule::Command),
    /// Realms: tenants with their own issuer, keys, clients and sessions
    #[command(subcommand)]
    Realm(realm::Command),
    /// Issue, read and verify access tokens
    #[command(subcommand)]
    Token(token::Command),
    /// Revoke tokens: one, or all of a session, subject, client, realm, issuer or key
    Revoke(revoke::Revoke),
    /// Past revocations, and those to come
    #[command(subcommand)]
    Revocations(revocations::Command),
    /// Credentials of the admin API
    #[command(subcommand)]
    Admin(admin::Command),
    /// API keys: long-lived credentials for machines
    #[command(subcommand)]
    ApiKey(api_key::Command),
    /// Issuers that are not ours: identity providers, clusters
    #[command(subcommand)]
    Issuer(issuer::Command),
    /// Signing keys
    #[command(subcommand)]
    Keys(keys::Command),
    /// Policies: what requests are let through
    #[command(subcommand)]
    Policy(policy::Command),
    /// How a sidecar would decide one request now: every step, which rule, and why
    Explain(explain::Explain),
    /// What a refusal means, and what to do about it
    Reason(reason::Explained),
    /// The audit chains: verify, read, export, trace a token
    #[command(subcommand)]
    Audit(audit::Command),
    /// Copy the embedded store of a control plane, while it runs
    Backup(backup::Backup),
    /// Put a copy of the embedded store in its place, while the control plane is stopped
    Restore(backup::Restore),
    /// Find what is wrong between sidecars, NATS and the control plane, and what to do about it
    Doctor(doctor::Doctor),
    /// The sidecars, how each stands, and the revision each enforces
    Fleet(fleet::Fleet),
    /// The feed and the keys that sign it
    #[command(subcommand)]
    Feed(feed::Command),
    /// Print the reference of all commands as Markdown
    Reference,
    /// Print a completion script, for example: source <(atmctl completions bash)
    Completions {
        /// The shell to print it for
        shell: clap_complete::Shell,
    },
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    // Fails only where a provider is installed already, which is as good.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let Arguments { connection, command } = Arguments::parse();
    match run(&connection, command).await {
        Ok(status) => status,
        // The reader of a pipe has gone (`atmctl fleet | head -1`): nobody is left to tell.
        Err(error) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("atmctl: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(connection: &Connection, command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Dev(command) => return command.run(connection).await,
        Command::Token(command) => return command.run(connection).await,
        Command::Revoke(command) => return command.run(connection).await,
        Command::Keys(command) => return command.run(connection).await,
        Command::Fleet(fleet) => return fleet.run(connection).await,
        Command::Explain(explain) => return explain.run(connection).await,
        Command::Audit(command) => return command.run(connection).await,
        Command::Doctor(doctor) => return doctor.run(connection).await,
        Command::Policy(command) => return command.run(connection).await,
        Command::Revocations(command) => command.run(connection).await?,
        Command::Admin(command) => command.run(connection).await?,
        Command::ApiKey(command) => command.run(connection).await?,
        Command::Issuer(command) => command.run(connection).await?,
        Command::Client(command) => command.run(connection).await?,
        Command::Reason(reason) => reason.run(connection.output)?,
        Command::Session(command) => command.run(connection).await?,
        Command::Subject(command) => command.run(connection).await?,
        Command::AssertionRule(command) => command.run(connection).await?,
        Command::Realm(command) => command.run(connection).await?,
        Command::Backup(backup) => backup.run(connection).await?,
        Command::Restore(restore) => restore.run(connection).await?,
        Command::Feed(command) => command.run(connection).await?,
        Command::Reference => output::print(&reference::markdown(Arguments::command()))?,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "atmctl", &mut script);
            output::print(&String::from_utf8_lossy(&script))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}
