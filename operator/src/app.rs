//! Wires the parts together, and ends them.

use std::sync::Arc;

use anyhow::Context;
use kube::Client;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::admin_api::AdminApi;
use crate::certificate::{self, Current};
use crate::config::{Config, WebhookConfig};
use crate::health::Health;
use crate::injection::Template;
use crate::webhook::{self, Injector};
use crate::{issuers, policies};

/// Runs until SIGTERM or SIGINT.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let client = Client::try_default()
        .await
        .context("no Kubernetes API: run in a cluster with a service account, or set KUBECONFIG")?;
    let health = Arc::new(Health::new(config.webhook.is_some())?);
    let mut tasks = JoinSet::new();

    let listener = bind("listen.health", config.health).await?;
    tracing::info!(address = %listener.local_addr()?, "health");
    let (router, stopped) = (Arc::clone(&health).router(), stop.clone());
    tasks.spawn(async move {
        let served = axum::serve(listener, router).with_graceful_shutdown(stopped.cancelled_owned()).await;
        served.unwrap_or_else(|error| tracing::error!(%error, "the health listener ended"));
    });
    if let Some(webhook) = &config.webhook {
        start_webhook(&client, webhook, &health, &stop, &mut tasks).await?;
    }
    let admin = AdminApi::new(&config)?;
    if config.policies {
        tasks.spawn(policies::run(client.clone(), admin.clone(), Arc::clone(&health), stop.clone()));
    }
    if config.issuers {
        tasks.spawn(issuers::run(client, admin, health, stop.clone()));
    }

    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let unasked = tokio::select! {
        _ = terminate.recv() => false,
        _ = interrupt.recv() => false,
        _ = tasks.join_next() => true,
    };
    stop.cancel();
    while tasks.join_next().await.is_some() {}
    if unasked {
        anyhow::bail!("a part of the operator has ended unasked; the log says which");
    }
    Ok(())
}

async fn start_webhook(
    client: &Client,
    config: &WebhookConfig,
    health: &Arc<Health>,
    stop: &CancellationToken,
    tasks: &mut JoinSet<()>,
) -> anyhow::Result<()> {
    let injector = Injector {
        template: Template::load(&config.template_file)?,
        refuse_wrong_pods: config.refuse_wrong_pods,
        health: Arc::clone(health),
    };
    let listener = bind("listen.webhook", config.listen).await?;
    tracing::info!(address = %listener.local_addr()?, "webhook");
    let current = Arc::new(Current::default());
    tasks.spawn(certificate::keep(
        client.clone(),
        config.clone(),
        Arc::clone(&current),
        Arc::clone(health),
        stop.clone(),
    ));
    tasks.spawn(webhook::serve(listener, current, Arc::new(injector).router(), stop.clone()));
    Ok(())
}

async fn bind(key: &str, address: std::net::SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("{key}: cannot listen on {address}"))
}
