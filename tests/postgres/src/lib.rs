//! A real PostgreSQL for tests and benchmarks: Debian's package `postgresql`, or the one whose programs are in `ATM_POSTGRES_BIN`.
//!
//! [`database`] gives a test an empty database on a server that all tests of a run share: it starts with the first of them,
//! without `fsync`, and ends some seconds after the last. [`Server`] is a server of one's own, which can be killed and stopped.

// The whole crate is test code: a failed expectation is a failed test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::missing_panics_doc)]

use std::fs::{self, File};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// The superuser of every server here. On a shared server nobody asks for its password.
pub const USER: &str = "atm";

/// How long a server may take to start or to end.
const PATIENCE: Duration = Duration::from_mins(1);

/// What a server of tests needs no more than.
const SETTINGS: [&str; 5] = [
    "listen_addresses=127.0.0.1",
    "max_connections=400",
    "shared_buffers=64MB",
    "log_min_messages=fatal",
    "unix_socket_directories=",
];
/// What makes it fast, and lose data when the machine stops. The death of its processes loses nothing.
const UNSAFE_SETTINGS: [&str; 3] = ["fsync=off", "full_page_writes=off", "synchronous_commit=off"];

/// An empty database of its own on the shared server: `postgres://atm@127.0.0.1:port/name`.
pub fn database() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let port = shared_port();
    let name = format!("t{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    create_database(port, &name);
    url(port, &name)
}

fn url(port: u16, database: &str) -> String {
    format!("postgres://{USER}@127.0.0.1:{port}/{database}")
}

/// The programs, from the environment or where Debian has them.
fn program(name: &str) -> PathBuf {
    let from_environment = std::env::var_os("ATM_POSTGRES_BIN").map(PathBuf::from);
    let debian = || {
        let mut versions: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
            .into_iter()
            .flatten()
            .filter_map(|entry| {
                let path = entry.ok()?.path();
                Some((path.file_name()?.to_str()?.parse().ok()?, path.join("bin")))
            })
            .collect();
        versions.sort();
        versions.pop().map(|(_, path)| path)
    };
    let found = from_environment.or_else(debian).map(|directory| directory.join(name));
    found.filter(|path| path.exists()).unwrap_or_else(|| {
        panic!("PostgreSQL's {name} is missing: run `make tools` (apt-get install -y postgresql), or set ATM_POSTGRES_BIN")
    })
}

/// A command that root runs as another user, because PostgreSQL refuses root.
fn command(program: &Path) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid", unprivileged(), "--regid", unprivileged(), "--clear-groups", "--"]).arg(program);
    command
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0)
}

fn unprivileged() -> &'static str {
    let has_user = |name: &str| {
        fs::read_to_string("/etc/passwd").is_ok_and(|users| users.lines().any(|line| line.starts_with(name)))
    };
    if has_user("postgres:") { "postgres" } else { "nobody" }
}

fn run(command: &mut Command) -> Output {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} failed: {said}");
    output
}

/// A directory that the server's user owns.
fn give_away(directory: &Path) {
    if is_root() {
        run(Command::new("chown").arg(format!("{}:", unprivileged())).arg(directory));
    }
}

fn initialise(data: &Path) {
    run(command(&program("initdb"))
        .args([
            "--username",
            USER,
            "--auth",
            "trust",
            "--encoding",
            "UTF8",
            "--locale",
            "C",
            "--no-sync",
            "-D",
        ])
        .arg(data)
        .current_dir("/"));
}

fn create_database(port: u16, name: &str) {
    // createdb takes the template's lock: two at once may meet.
    let port = port.to_string();
    let started = Instant::now();
    loop {
        let output = Command::new(program("createdb"))
            .args(["-h", "127.0.0.1", "-p", &port, "-U", USER, "--no-password", name])
            .output()
            .expect("createdb runs");
        if output.status.success() {
            return;
        }
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(started.elapsed() < PATIENCE, "createdb: {said}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn server(data: &Path, port: u16, settings: &[&str], log: &Path) -> Command {
    let log = File::create(log).expect("a log file");
    let mut command = command(&program("postgres"));
    command.arg("-D").arg(data).args(["-p", &port.to_string()]).current_dir("/");
    for setting in SETTINGS.iter().chain(settings) {
        command.args(["-c", setting]);
    }
    command.stdin(Stdio::null()).stdout(log.try_clone().expect("a log file")).stderr(log);
    command
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("an address").port()
}

fn answers(port: u16) -> bool {
    Command::new(program("pg_isready"))
        .args(["-q", "-h", "127.0.0.1", "-p", &port.to_string(), "-t", "2"])
        .status()
        .is_ok_and(|status| status.success())
}

fn wait_for(what: &str, log: &Path, condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        let log = || fs::read_to_string(log).unwrap_or_default();
        assert!(started.elapsed() < PATIENCE, "PostgreSQL does not {what}: {}", log());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The port of the server that the processes of one test run share.
fn shared_port() -> u16 {
    static SHARED: OnceLock<(u16, File)> = OnceLock::new();
    SHARED.get_or_init(join_shared).0
}

/// Starts the server if there is none. The lock that is returned says until this process ends that it is used.
#[expect(clippy::zombie_processes, reason = "the server outlives this process, and init waits for it")]
fn join_shared() -> (u16, File) {
    // Outside of the clone, which may lie where the server's user cannot go; one for each clone.
    let clone: u64 = env!("CARGO_MANIFEST_DIR").bytes().fold(14_695_981_039_346_656_037, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(1_099_511_628_211)
    });
    let root = std::env::temp_dir().join(format!("atm-postgres-{clone:016x}"));
    fs::create_dir_all(&root).expect("a directory for PostgreSQL");
    let starting = File::create(root.join("starting")).expect("a lock file");
    starting.lock().expect("the lock of starting servers");
    let used = File::create(root.join("used")).expect("a lock file");
    used.lock_shared().expect("the lock of the server's users");
    let port_file = root.join("port");
    let known: Option<u16> = fs::read_to_string(&port_file).ok().and_then(|text| text.trim().parse().ok());
    if let Some(port) = known.filter(|port| answers(*port)) {
        return (port, used);
    }
    let (data, log) = (root.join("data"), root.join("log"));
    let _ = fs::remove_dir_all(&data);
    fs::create_dir(&data).expect("a data directory");
    give_away(&data);
    initialise(&data);
    let port = free_port();
    // Both outlive this process: the next test uses the server, and its end is the watchman's business.
    let mut server = server(&data, port, &UNSAFE_SETTINGS, &log);
    std::os::unix::process::CommandExt::process_group(&mut server, 0);
    let server = server.spawn().expect("postgres starts");
    watch(&root, server.id());
    wait_for("start", &log, || answers(port));
    fs::write(&port_file, port.to_string()).expect("the port file");
    (port, used)
}

/// Ends the server when nobody has used it for some seconds.
#[expect(clippy::zombie_processes, reason = "the watchman outlives this process, and init waits for it")]
fn watch(root: &Path, server: u32) {
    let script = format!(
        "idle=0; while [ $idle -lt 3 ]; do sleep 5; if flock -n used true; then idle=$((idle+1)); else idle=0; fi; done; \
         exec flock used sh -c 'rm -f port; kill -QUIT {server}; while kill -0 {server} 2>/dev/null; do sleep 0.1; done; \
         rm -rf data'"
    );
    let mut watchman = Command::new("sh");
    watchman.args(["-c", &script]).current_dir(root);
    watchman.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    std::os::unix::process::CommandExt::process_group(&mut watchman, 0);
    watchman.spawn().expect("sh starts");
}

/// A server of one's own, which writes what it acknowledges. Killed on drop.
#[derive(Debug)]
pub struct Server {
    process: Option<Child>,
    directory: TempDir,
    port: u16,
}

impl Server {
    /// Starts it with an empty data directory.
    pub fn start() -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        if is_root() {
            run(Command::new("chmod").arg("711").arg(directory.path()));
        }
        let data = directory.path().join("data");
        fs::create_dir(&data).expect("a data directory");
        give_away(&data);
        initialise(&data);
        let mut server = Self { process: None, directory, port: free_port() };
        server.restart();
        server
    }

    /// An empty database.
    pub fn database(&self, name: &str) -> String {
        create_database(self.port, name);
        url(self.port, name)
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// SIGKILL to the server and all of its processes: what is not on the disk is lost.
    pub fn kill(&mut self) {
        self.signal_all("-KILL");
        let Some(mut process) = self.process.take() else { return };
        let _ = process.wait();
        let started = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).is_ok() && started.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Starts it again on the same port and data.
    pub fn restart(&mut self) {
        self.kill();
        let (data, log) = (self.directory.path().join("data"), self.directory.path().join("log"));
        let _ = fs::remove_file(data.join("postmaster.pid"));
        let mut server = server(&data, self.port, &[], &log);
        std::os::unix::process::CommandExt::process_group(&mut server, 0);
        self.process = Some(server.spawn().expect("postgres starts"));
        let port = self.port;
        wait_for("start", &log, || answers(port));
    }

    /// Lets it hang (SIGSTOP to all of its processes): connections stay, and nothing answers.
    pub fn pause(&self) {
        self.signal_all("-STOP");
    }

    /// Ends [`Self::pause`].
    pub fn resume(&self) {
        self.signal_all("-CONT");
    }

    fn signal_all(&self, signal: &str) {
        let Some(process) = &self.process else { return };
        // The server first, so that it makes no more of them.
        let server = process.id().to_string();
        let _ = Command::new("kill").args([signal, &server]).status();
        let children = Command::new("pgrep").args(["-P", &server]).output().expect("pgrep runs");
        for child in String::from_utf8_lossy(&children.stdout).split_whitespace() {
            let _ = Command::new("kill").args([signal, child]).status();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.resume();
        self.kill();
    }
}
