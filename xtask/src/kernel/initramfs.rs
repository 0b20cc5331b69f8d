//! The file system that the kernel boots with: a cpio archive in the format "newc", which
//! Documentation/driver-api/early-userspace/buffer-format.rst in the kernel's source describes.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

use crate::step;

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const LINK: u32 = 0o120_777;
const END: &str = "TRAILER!!!";

/// Files to be, by their path without a leading slash.
#[derive(Debug, Default)]
pub(super) struct Archive(BTreeMap<PathBuf, (u32, Vec<u8>)>);

impl Archive {
    pub(super) fn file(&mut self, path: &str, content: &[u8]) {
        self.add(Path::new(path), PROGRAM, content.to_vec());
    }

    pub(super) fn link(&mut self, path: &str, target: &str) {
        self.add(Path::new(path), LINK, target.into());
    }

    /// A program of this machine, without debug information, and the libraries that it needs.
    pub(super) fn program(&mut self, path: &str, program: &Path) -> Result<()> {
        self.file(path, &stripped(program)?);
        for library in libraries(program)? {
            let place = library.strip_prefix("/").expect("an absolute path");
            if !self.0.contains_key(place) {
                let content =
                    fs::read(&library).with_context(|| format!("cannot read {}", library.display()))?;
                self.add(place, PROGRAM, content);
            }
        }
        Ok(())
    }

    fn add(&mut self, path: &Path, mode: u32, content: Vec<u8>) {
        let parents = path.ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty());
        for parent in parents {
            self.0.entry(parent.to_owned()).or_insert((DIRECTORY, Vec::new()));
        }
        self.0.insert(path.to_owned(), (mode, content));
    }

    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        let mut writer = BufWriter::new(file);
        self.write_to(&mut writer).with_context(|| format!("cannot write {}", path.display()))
    }

    fn write_to(&self, writer: &mut impl Write) -> Result<()> {
        // A directory is less than what is in it, so it comes first, as the kernel needs it.
        for (inode, (path, (mode, content))) in (1..).zip(&self.0) {
            entry(writer, inode, path.to_str().context("a name that is not UTF-8")?, *mode, content)?;
        }
        entry(writer, 0, END, 0, &[])?;
        Ok(writer.flush()?)
    }
}

/// One file: a header of numbers with eight hexadecimal digits, the name, the content.
fn entry(writer: &mut impl Write, inode: u32, name: &str, mode: u32, content: &[u8]) -> Result<()> {
    let size = u32::try_from(content.len()).with_context(|| format!("{name} is too large"))?;
    let name_size = u32::try_from(name.len() + 1)?;
    let (links, owner, group, time, device) = (1, 0, 0, 0, 0);
    write!(writer, "070701")?;
    for number in [inode, mode, owner, group, links, time, size, device, device, device, device, name_size, 0]
    {
        write!(writer, "{number:08x}")?;
    }
    const HEADER: usize = 6 + 13 * 8;
    write!(writer, "{name}\0")?;
    pad(writer, HEADER + name.len() + 1)?;
    writer.write_all(content)?;
    pad(writer, content.len())
}

fn pad(writer: &mut impl Write, written: usize) -> Result<()> {
    Ok(writer.write_all(&[0; 3][..written.next_multiple_of(4) - written])?)
}

fn stripped(program: &Path) -> Result<Vec<u8>> {
    let place = tempfile::NamedTempFile::new()?;
    let mut strip = Command::new("strip");
    step::output(strip.arg("-o").arg(place.path()).arg(program))?;
    Ok(fs::read(place.path())?)
}

/// The libraries that the dynamic linker would load; none for a static program.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("cannot start ldd")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(said.contains("not a dynamic executable"), "ldd {}: {said}", program.display());
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        // "libc.so.6 => /lib/libc.so.6 (0x7f...)", "/lib64/ld-linux-x86-64.so.2 (0x7f...)", "linux-vdso.so.1 (0x7f...)"
        if line.contains("not found") {
            bail!("{} needs a library that is not installed: {}", program.display(), line.trim());
        }
        found.extend(line.split_whitespace().find(|word| word.starts_with('/')).map(PathBuf::from));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpio_finds_what_was_put_in() {
        let mut archive = Archive::default();
        archive.file("bin/tool", b"#!/bin/sh\n");
        archive.link("bin/link", "tool");
        archive.file("plan", b"");
        let mut bytes = Vec::new();
        archive.write_to(&mut bytes).expect("an archive");
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8(bytes).expect("text, as it happens");
        let names: Vec<_> =
            text.split("070701").skip(1).map(|entry| entry[104..].split('\0').next()).collect();
        assert_eq!(names, ["bin", "bin/link", "bin/tool", "plan", END].map(Some));
    }
}
