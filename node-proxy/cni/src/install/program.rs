//! The plugin's program: this process' own, under the plugin's name.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use culvert_identity::files::{Stamp, about};

/// The plugin's program as it was last found right; comparing it takes reading both, so that is done when it changed.
#[derive(Debug, Default)]
pub struct Program {
    right: Option<Stamp>,
}

impl Program {
    /// Copies the program unless the same is there. A runtime that calls it meanwhile runs the old one or the new one.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub fn install(&mut self, directory: &Path) -> io::Result<()> {
        let to = directory.join(crate::PLUGIN);
        if self.right.is_some() && self.right == Stamp::of(&to).ok() {
            return Ok(());
        }
        let own = Path::new("/proc/self/exe");
        if !same(own, &to)? {
            copy(own, directory, &to)?;
        }
        self.right = Stamp::of(&to).ok();
        Ok(())
    }
}

fn copy(from: &Path, directory: &Path, to: &Path) -> io::Result<()> {
    let new = directory.join(format!(".{}.new", crate::PLUGIN));
    let copied = fs::copy(from, &new)
        .and_then(|_| fs::set_permissions(&new, fs::Permissions::from_mode(0o755)))
        .and_then(|()| File::open(&new)?.sync_all())
        .and_then(|()| fs::rename(&new, to));
    copied.map_err(|error| about(to, &error))
}

fn same(one: &Path, other: &Path) -> io::Result<bool> {
    let (mut one, mut other) = match (File::open(one)?, File::open(other)) {
        (_, Err(error)) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        (one, other) => (one, other?),
    };
    let meta = other.metadata()?;
    if one.metadata()?.len() != meta.len() || meta.permissions().mode() & 0o111 == 0 {
        return Ok(false);
    }
    let (mut left, mut right) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        let got = one.read(&mut left)?;
        if got == 0 {
            return Ok(true);
        }
        let Some(right) = right.get_mut(..got) else { return Ok(false) };
        if other.read_exact(right).is_err() || left.get(..got) != Some(&*right) {
            return Ok(false);
        }
    }
}
