//! `atm-operator`: ATM in Kubernetes. Policies and trusted issuers as custom resources, and the injection of sidecars.

use std::path::PathBuf;
use std::process::ExitCode;

use atm_operator::config::Config;
use atm_operator::{app, crds};
use clap::{Parser, Subcommand};

/// Applies TokenPolicy and TrustedIssuer resources to a control plane, and injects sidecars into pods.
#[derive(Parser)]
#[command(version, subcommand_negates_reqs = true)]
struct Arguments {
    /// The configuration file (YAML). Keys are overridden by ATM_<SECTION>__<KEY>
    #[arg(long, value_name = "FILE", required = true)]
    config: Option<PathBuf>,
    /// Check the configuration and exit: 0 when it is right, 2 when it is not
    #[arg(long)]
    check: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Print the custom resource definitions
    Crds,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if matches!(arguments.command, Some(Command::Crds)) {
        print!("{}", crds::yaml());
        return ExitCode::SUCCESS;
    }
    let file = arguments.config.unwrap_or_default();
    let config = match Config::load(&file, std::env::vars()) {
        Ok(config) => config,
        Err(mistakes) => {
            for mistake in mistakes {
                eprintln!("{mistake}");
            }
            return ExitCode::from(2);
        }
    };
    if arguments.check {
        println!("{}: right", file.display());
        return ExitCode::SUCCESS;
    }
    start_log(&config);
    match run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("atm-operator: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start_log(config: &Config) {
    let filter = tracing_subscriber::EnvFilter::new(&config.log_level);
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .log_internal_errors(false);
    if config.log_json { builder.json().flatten_event(true).init() } else { builder.with_ansi(false).init() }
}

fn run(config: Config) -> anyhow::Result<()> {
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        anyhow::bail!("another cryptographic provider is installed in this process");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(app::run(config))
}
