//! One replica makes a snapshot; any of them serves it.

use atm_proto::snapshot::Manifest;
use atm_proto::wire::Signed;
use atm_tests::{http, wait};
use prost::Message;

use super::fleet::{Replicas, revoke};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_asked_over_http_has_every_segment_of_the_newest_snapshot() {
    let url = tokio::task::spawn_blocking(atm_test_postgres::database).await.unwrap();
    let mut replicas = Replicas::start(2, &url).await;
    for number in 0..3 {
        revoke(&replicas.planes[0].client(), &format!("token-{number}")).await.expect("acknowledged");
    }
    until_all_serve(&replicas).await;
    // And who starts with an empty directory.
    replicas.planes[1].kill();
    std::fs::remove_dir_all(replicas.planes[1].segments()).unwrap();
    replicas.planes[1].start().await;
    until_all_serve(&replicas).await;
}

async fn until_all_serve(replicas: &Replicas) {
    for plane in &replicas.planes {
        wait::until("a replica to serve the whole snapshot", wait::LONG, || serves_all(plane.oauth())).await;
    }
}

async fn serves_all(oauth: &str) -> Result<(), String> {
    let get = async |path: String| {
        let answer = http::get(oauth, &path).await.map_err(|error| error.to_string())?;
        if answer.status == 200 { Ok(answer.body) } else { Err(format!("{path}: {}", answer.status)) }
    };
    let signed = Signed::decode(&get("/feed/snapshots/manifest".into()).await?[..]).expect("an envelope");
    let manifest = Manifest::decode(&signed.payload).expect("a manifest");
    for segment in &manifest.segments {
        let bytes = get(format!("/feed/snapshots/segments/{}", segment.name())).await?;
        segment.open(&bytes).map_err(|error| error.to_string())?;
    }
    Ok(())
}
