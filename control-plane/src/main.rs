//! The control plane's program.
//!
//! Exit status: 0 ended as asked, or the configuration is in order (`--check`); 1 cannot start or has failed; 2 the
//! configuration has mistakes.

use std::path::PathBuf;
use std::process::ExitCode;

use atm_control_plane::app::App;
use atm_control_plane::config::{Config, ConfigError, Environment, Log, LogFormat, Secrets};
use atm_control_plane::lifecycle;
use clap::Parser;
use tracing_subscriber::EnvFilter;

// Fewer page faults and less contention than the system's allocator under many small allocations.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Issues, rotates and revokes tokens, and publishes the feed that sidecars enforce.
#[derive(Parser)]
#[command(name = "atm-control-plane", version)]
struct Arguments {
    /// Configuration file, YAML. Any key can be overridden: `nats.url` by `ATM_NATS__URL`
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Check the configuration and the files it names, and exit
    #[arg(long)]
    check: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let environment: Environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let (config, secrets) = match configured(&arguments, &environment) {
        Ok(configured) => configured,
        Err(mistakes) => {
            eprintln!("{mistakes}");
            return ExitCode::from(2);
        }
    };
    if arguments.check {
        println!("{}: in order", arguments.config.display());
        return ExitCode::SUCCESS;
    }
    start_log(&config.log);
    match run(config, secrets) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Without its sources: the message has them, in one line.
            eprintln!("atm-control-plane: {error}");
            ExitCode::FAILURE
        }
    }
}

fn configured(arguments: &Arguments, environment: &Environment) -> Result<(Config, Secrets), ConfigError> {
    let config = Config::load(&arguments.config, environment)?;
    let secrets = Secrets::read(&config, environment)?;
    Ok((config, secrets))
}

fn run(config: Config, secrets: Secrets) -> anyhow::Result<()> {
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        anyhow::bail!("another cryptographic provider is installed in this process");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let app = App::start(config, secrets).await?;
        let failed = tokio::select! {
            asked = lifecycle::termination() => {
                asked?;
                tracing::info!("asked to end; finishing what is under way");
                false
            }
            () = app.failed() => true,
        };
        if !app.drain().await {
            tracing::warn!("not everything under way ended in time");
        }
        if failed {
            anyhow::bail!("a part of the control plane has failed; the log says which");
        }
        tracing::info!("ended");
        Ok(())
    })
}

fn start_log(log: &Log) {
    // Checked with the configuration; what is no filter after all logs at its default.
    let filter = EnvFilter::builder().parse_lossy(&log.level);
    // A line that cannot be written (a full disk) is lost: telling of it on the same stream would panic.
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .log_internal_errors(false);
    match log.format {
        LogFormat::Json => builder.json().flatten_event(true).init(),
        LogFormat::Text => builder.init(),
    }
}
