//! A disk that is really full: a small file system in memory, mounted over a directory.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A mounted file system; unmounted on drop.
#[derive(Debug)]
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts one of so many mebibytes at `directory`, which is made; none where the machine does not allow it.
    pub fn mount(directory: &Path, mebibytes: u64) -> Option<Self> {
        std::fs::create_dir_all(directory).expect("a directory to mount at");
        let size = format!("size={mebibytes}m");
        let at = directory.to_str().expect("a UTF-8 path");
        run("mount", &["-t", "tmpfs", "-o", &size, "atm-tests", at]).then(|| Self(directory.to_owned()))
    }

    /// Leaves no byte free.
    pub fn fill(&self) {
        let mut ballast = File::create(self.ballast()).expect("the ballast's file");
        for size in [1 << 20, 4 << 10, 1] {
            let zeros = vec![0; size];
            while ballast.write_all(&zeros).is_ok() {}
        }
    }

    /// Gives the room back.
    pub fn free(&self) {
        let _ = std::fs::remove_file(self.ballast()); // it may not have been filled
    }

    fn ballast(&self) -> PathBuf {
        self.0.join("ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        run("umount", &["--lazy", self.0.to_str().expect("a UTF-8 path")]);
    }
}

fn run(program: &str, arguments: &[&str]) -> bool {
    let status = Command::new(program).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}
