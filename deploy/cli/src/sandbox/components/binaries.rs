//! Where the programs are that the sandbox starts.

use std::io;
use std::path::{Path, PathBuf};

/// The directory of the mesh's programs.
#[derive(Clone, Debug)]
pub struct Binaries {
    directory: PathBuf,
}

/// A program that is not there.
#[derive(Debug, thiserror::Error)]
#[error(
    "{} is missing in {}; build it with `cargo build -p {name}` or say where it is with --bin-dir",
    name,
    directory.display()
)]
pub struct BinaryMissing {
    name: String,
    directory: PathBuf,
}

/// Every program that a sandbox needs besides this one.
pub const NEEDED: [&str; 4] = ["culvert-ca", "culvert-controller", "culvert-node-proxy", "culvert-echo"];

impl Binaries {
    /// In the given directory, else beside the running program.
    ///
    /// # Errors
    /// When the running program's own file cannot be named.
    pub fn locate(given: Option<&Path>) -> io::Result<Self> {
        let directory = match given {
            Some(directory) => std::path::absolute(directory)?,
            None => {
                let own = std::env::current_exe()?;
                own.parent().map(Path::to_owned).ok_or(io::ErrorKind::NotFound)?
            }
        };
        Ok(Self { directory })
    }

    /// The directory itself.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The program of that name.
    ///
    /// # Errors
    /// Names the command that builds it.
    pub fn find(&self, name: &str) -> Result<PathBuf, BinaryMissing> {
        let path = self.directory.join(name);
        match path.is_file() {
            true => Ok(path),
            false => Err(BinaryMissing { name: name.to_owned(), directory: self.directory.clone() }),
        }
    }

    /// Whether all of them are there.
    ///
    /// # Errors
    /// Names the first that is missing.
    pub fn check(&self) -> Result<(), BinaryMissing> {
        NEEDED.iter().try_for_each(|name| self.find(name).map(drop))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_comes_with_the_command_that_builds_it() {
        let dir = tempfile::tempdir().unwrap();
        let binaries = Binaries::locate(Some(dir.path())).unwrap();
        let error = binaries.check().unwrap_err().to_string();
        assert!(error.contains("cargo build -p culvert-ca"), "{error}");
        for name in NEEDED {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        binaries.check().unwrap();
    }
}
