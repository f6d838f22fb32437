//! A wall clock that a test steps, for one program: libfaketime beside it. Its monotonic clock goes on as it is.

use std::path::{Path, PathBuf};

use crate::process::Environment;

/// Where Debian's package `faketime` has the library, by architecture.
const LIBRARY: [&str; 2] = ["x86_64-linux-gnu", "aarch64-linux-gnu"];

/// The wall clock of the programs that are started with it.
#[derive(Debug, Clone)]
pub struct WallClock(PathBuf);

impl WallClock {
    /// A clock that shows the true time so far, kept in a file in `directory`.
    pub fn new(directory: &Path) -> Self {
        let clock = Self(directory.join("clock"));
        clock.step_to(0);
        clock
    }

    /// Shows the true time and so many seconds from now on, to programs that run, too.
    pub fn step_to(&self, seconds: i64) {
        let beside = self.0.with_extension("part");
        std::fs::write(&beside, format!("{seconds:+}")).expect("the clock's file is written");
        std::fs::rename(&beside, &self.0).expect("the clock's file is replaced");
    }

    /// What a program is started with to see this clock.
    pub fn environment(&self) -> Environment {
        let path =
            |architecture| PathBuf::from("/usr/lib").join(architecture).join("faketime/libfaketimeMT.so.1");
        let library = LIBRARY.into_iter().map(path).find(|library| library.exists());
        let library = library.expect("libfaketime is missing: run `make tools`");
        let variable = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        vec![
            variable("LD_PRELOAD", library.to_str().expect("a UTF-8 path")),
            variable("FAKETIME_TIMESTAMP_FILE", self.0.to_str().expect("a UTF-8 path")),
            variable("FAKETIME_NO_CACHE", "1"),
            variable("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
            variable("NO_FAKE_STAT", "1"),
        ]
    }
}
