//! `atm-sidecar`: Envoy's external authorization from a local copy of the feed.

use std::path::PathBuf;
use std::process::ExitCode;

use atm_sidecar::config::{Config, Log};
use atm_sidecar::{app, lifecycle};
use clap::Parser;

// Checks allocate small and often; this allocator saves 10 to 20% of their processor time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Answers Envoy's external authorization from a local, signed copy of the control plane's state.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The configuration file (YAML). Keys are overridden by ATM_<SECTION>__<KEY>, for example ATM_NATS__URL.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Check the configuration and exit: 0 when it is right, 2 when it is not.
    #[arg(long)]
    check: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let text = match std::fs::read_to_string(&arguments.config) {
        Ok(text) => text,
        Err(error) => {
            eprintln!(
                "atm-sidecar: cannot read {}: {error}; give a file with --config",
                arguments.config.display()
            );
            return ExitCode::from(2);
        }
    };
    let config = match Config::parse(&text, std::env::vars()) {
        Ok(config) => config,
        Err(mistakes) => {
            for mistake in mistakes {
                eprintln!("{mistake}");
            }
            return ExitCode::from(2);
        }
    };
    if arguments.check {
        println!("{}: right", arguments.config.display());
        return ExitCode::SUCCESS;
    }
    start_logging(&config.log);
    match run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("atm-sidecar: {error}");
            ExitCode::FAILURE
        }
    }
}

fn start_logging(log: &Log) {
    let filter = tracing_subscriber::EnvFilter::new(&log.level);
    // A line that cannot be written (a full disk) is lost: telling of it on the same stream would panic.
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .log_internal_errors(false);
    if log.json { builder.json().flatten_event(true).init() } else { builder.with_ansi(false).init() }
}

fn run(config: Config) -> Result<(), String> {
    // The only failure is that a provider was installed before, which is as good.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    // The feed, reports and the admin listener need little; checks have threads of their own.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|e| e.to_string())?;
    runtime.block_on(async {
        let stop = lifecycle::stop_on_signals().map_err(|error| error.to_string())?;
        let sidecar = app::start(config, stop).await.map_err(|error| error.to_string())?;
        tracing::info!(bound = ?sidecar.bound, "listening");
        sidecar.run().await;
        Ok(())
    })
}
