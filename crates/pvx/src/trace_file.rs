//! The file that a trace goes to. It remembers that something could not be written.

use std::{
    fs::File,
    io::{self, Write},
    path::Path,
    sync::{Arc, OnceLock},
};

use anyhow::{Context as _, Result};
use process_vm_exec::Errno;

/// A trace's file.
#[derive(Debug)]
pub(crate) struct TraceFile {
    file: File,
    gap: Gap,
}

/// Why a trace is not complete, once it is not.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gap(Arc<OnceLock<Errno>>);

impl TraceFile {
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| {
            format!("{}: the trace cannot be written there; choose another --trace-file", path.display())
        })?;
        Ok(Self { file, gap: Gap::default() })
    }

    /// It tells also when the file is somebody else's.
    pub(crate) fn gap(&self) -> Gap {
        self.gap.clone()
    }
}

impl Gap {
    pub(crate) fn why(&self) -> Option<Errno> {
        self.0.get().copied()
    }

    fn note(&self, error: &io::Error) {
        match Errno::from_io_error(error).unwrap_or(Errno::IO) {
            // It is tried again, or whoever reads has read enough.
            Errno::INTR | Errno::PIPE => {}
            errno => {
                let _ = self.0.set(errno);
            }
        }
    }
}

impl Write for TraceFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes).inspect_err(|error| self.gap.note(error))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
