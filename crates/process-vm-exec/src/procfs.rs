//! Files of proc(5) as text.

use std::path::Path;
use std::{fs, io};

/// The file's text. The names of programs and files in it may be any bytes: what is no UTF-8 is replaced.
pub(crate) fn read(path: impl AsRef<Path>) -> io::Result<String> {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}
