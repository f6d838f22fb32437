//! A real nginx with the configuration that we ship.

use std::io;
use std::path::PathBuf;

use tempfile::TempDir;
use tokio::net::UnixStream;

use crate::http::{self, Answer};
use crate::process::{Process, run, stderr};
use crate::{programs, wait};

/// An nginx that listens on a unix socket of its own.
#[derive(Debug)]
pub struct Nginx {
    _process: Process,
    _directory: TempDir,
    socket: PathBuf,
}

impl Nginx {
    /// Starts `examples/nginx/nginx.conf` before `upstream`, asking the sidecar at `sidecar` (both `host:port`).
    pub async fn start_shipped(upstream: &str, sidecar: &str) -> Self {
        let directory = TempDir::new().expect("temporary directory");
        let path = |name: &str| directory.path().join(name).display().to_string();
        let template = std::fs::read_to_string(programs::workspace().join("examples/nginx/nginx.conf"));
        // Where Debian's build would write is not there without its package.
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {};\n", path(kind)))
            .concat();
        let config = template
            .expect("examples/nginx/nginx.conf")
            .replace("${NGINX_LISTEN}", &format!("unix:{}", path("nginx.sock")))
            .replace("${SIDECAR_HTTP}", sidecar)
            .replace("${UPSTREAM}", upstream)
            // Generous: the suites run debug builds on a loaded machine.
            .replace("250ms", "5s")
            .replace("500ms", "5s")
            .replace("\nhttp {\n", &format!("\nhttp {{\naccess_log {};\n{temporary}", path("access.log")));
        let left_over =
            config.lines().find(|line| line.contains("${") && !line.trim_start().starts_with('#'));
        assert_eq!(left_over, None, "a placeholder that nothing fills");
        std::fs::write(path("nginx.conf"), config).expect("configuration is written");
        let pid = format!("daemon off; pid {};", path("nginx.pid"));
        let (file, prefix, program) = (path("nginx.conf"), path(""), programs::tool("nginx"));
        let arguments = ["-p", &prefix, "-e", "stderr", "-c", &file, "-g", &pid];
        let checked = run(&program, &[&arguments[..], &["-t"]].concat(), wait::USUAL).await;
        assert!(checked.status.success(), "{}", stderr(&checked));
        let log = directory.path().join("nginx.log");
        let mut process = Process::start("nginx", &program, &arguments, &log);
        let socket = directory.path().join("nginx.sock");
        wait::until("nginx to listen", wait::USUAL, || {
            process.assert_running();
            UnixStream::connect(&socket)
        })
        .await;
        Self { _process: process, _directory: directory, socket }
    }

    /// Sends `request` as it is, and reads the answer to its end.
    pub async fn exchange(&self, request: &[u8]) -> io::Result<Answer> {
        http::exchange_over(UnixStream::connect(&self.socket).await?, request).await
    }
}
