//! Where everything is kept that took time to make.
//!
//! - `source-VERSION/`: the unpacked kernel with overlay and patches; `originals-VERSION/` has what they replaced
//! - `objects-CONFIG/`: the object tree of each configuration, which make brings up to date
//! - `images/CONFIG-KEY/`: finished kernels, by the hash of everything that went in
//! - `programs/`: compiled self-tests, by the hash of their source
//! - `runs/CONFIG-CPUS/`: initramfs and console log of the last boot of that kind
//! - `logs/`: what long steps have printed
//!
//! What belongs to the kernel without overlay and patches has `-unpatched` in its name.

use std::{
    env,
    fs::{self, File},
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};

/// The directory of the cache.
#[derive(Debug)]
pub(super) struct Cache {
    root: PathBuf,
}

/// While this exists, no other process changes a part of the cache.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

impl Cache {
    /// The user's cache.
    pub(super) fn open() -> Result<Self> {
        let root = if let Some(path) = env::var_os("PVX_KERNEL_CACHE").filter(|path| !path.is_empty()) {
            std::path::absolute(path)?
        } else if let Some(path) = env::var_os("XDG_CACHE_HOME").filter(|path| Path::new(path).is_absolute())
        {
            Path::new(&path).join("process-vm-exec/kernel")
        } else if let Some(home) = env::home_dir() {
            home.join(".cache/process-vm-exec/kernel")
        } else {
            bail!("no place for the cache: set PVX_KERNEL_CACHE to a directory");
        };
        Self::at(root)
    }

    /// The cache in the directory `root`.
    pub(super) fn at(root: PathBuf) -> Result<Self> {
        let cache = Self { root };
        for part in ["images", "programs", "runs", "logs"] {
            cache.directory(part)?;
        }
        Ok(cache)
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// A directory, made if it is not there.
    pub(super) fn directory(&self, name: &str) -> Result<PathBuf> {
        let path = self.path(name);
        fs::create_dir_all(&path).with_context(|| {
            format!("cannot make {}: set PVX_KERNEL_CACHE to another place", path.display())
        })?;
        Ok(path)
    }

    pub(super) fn log(&self, name: &str) -> PathBuf {
        self.root.join(format!("logs/{name}.log"))
    }

    /// Waits until nobody else changes `part`, which is a directory.
    pub(super) fn lock(&self, part: &str) -> Result<Lock> {
        let path = self.directory(part)?.join("lock");
        let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            eprintln!("another xtask is at work in {}; waiting for it", self.root.join(part).display());
            flock(&file, FlockOperation::LockExclusive).context("cannot lock the cache")?;
        }
        Ok(Lock { _file: file })
    }

    /// Removes all but the `keep` entries of `name` that were used last.
    pub(super) fn prune(&self, name: &str, keep: usize) -> Result<()> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(self.path(name))? {
            let entry = entry?;
            entries.push((entry.metadata()?.modified()?, entry.path()));
        }
        entries.sort();
        entries.reverse();
        for (_, path) in entries.into_iter().skip(keep) {
            if path.is_dir() { fs::remove_dir_all(path)? } else { fs::remove_file(path)? }
        }
        Ok(())
    }
}

/// Notes that the cache's entry `path` is in use, for [`Cache::prune`].
pub(super) fn touch(path: &Path) -> Result<()> {
    File::open(path)?.set_modified(SystemTime::now())?;
    Ok(())
}
