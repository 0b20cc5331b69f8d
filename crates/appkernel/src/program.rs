//! Finding what to run: a path, perhaps a `#!` script, an ELF file and its interpreter, all of it read and
//! checked before an address space exists.

use std::{
    ffi::{CStr, CString},
    fs::File,
    os::fd::{AsFd, OwnedFd},
};

use object::ReadCache;
use rustix::{
    fs::{Access, AtFlags, CWD, FileType, Mode, OFlags},
    io::Errno,
};

use crate::{
    elf::{ElfError, Image, has_magic},
    files::{Object, host_path},
};

/// How many `#!` lines may lead to one another (Linux: `BINPRM_MAX_RECURSION`, fs/exec.c).
const SCRIPT_DEPTH_MAX: usize = 5;
/// How much of a script Linux looks at (`BINPRM_BUF_SIZE`, linux/binfmts.h).
const SCRIPT_LINE_MAX: usize = 256;

/// How an executable is opened. `O_NONBLOCK`: a FIFO must not keep us waiting for its other end.
pub(crate) const EXECUTABLE: OFlags =
    OFlags::RDONLY.union(OFlags::CLOEXEC).union(OFlags::NONBLOCK).union(OFlags::NOCTTY);

/// Finds the file at a path and opens it as [`EXECUTABLE`].
pub(crate) type Open<'a> = &'a dyn Fn(&CStr) -> Result<OwnedFd, Errno>;

/// Why a program cannot be started. The message says what, of which file, and why.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// The file cannot be opened.
    #[error("{path}: {errno}")]
    Open {
        /// The file.
        path: String,
        /// Why.
        errno: Errno,
    },
    /// It is a directory or a device.
    #[error("{path}: not a regular file")]
    NotAFile {
        /// The file.
        path: String,
    },
    /// The caller may not execute it.
    #[error("{path}: not executable: {errno}")]
    NotExecutable {
        /// The file.
        path: String,
        /// What execute permission failed with.
        errno: Errno,
    },
    /// It is no program that can run here.
    #[error("{path}: cannot run: {why}")]
    Elf {
        /// The file.
        path: String,
        /// Why.
        why: ElfError,
    },
    /// A script's first line cannot be used.
    #[error("{path}: cannot run: its `#!` line {why}")]
    Script {
        /// The script.
        path: String,
        /// What is wrong.
        why: &'static str,
    },
    /// The interpreter that a script or program asks for cannot be used.
    #[error("{path}: its interpreter: {source}")]
    Interpreter {
        /// The script or program.
        path: String,
        /// What is wrong with its interpreter.
        source: Box<ProgramError>,
    },
    /// Scripts that name scripts that name scripts.
    #[error("{path}: too many `#!` scripts name one another")]
    TooDeep {
        /// The last of them.
        path: String,
    },
}

impl ProgramError {
    /// The errno that `execve` gives for this.
    pub fn errno(&self) -> Errno {
        match self {
            Self::Open { errno, .. } | Self::NotExecutable { errno, .. } => *errno,
            Self::NotAFile { .. } => Errno::ACCESS,
            Self::Elf { .. } | Self::Script { .. } => Errno::NOEXEC,
            Self::Interpreter { source, .. } => match source.as_ref() {
                Self::Elf { .. } => Errno::from_raw_os_error(libc::ELIBBAD),
                other => other.errno(),
            },
            Self::TooDeep { .. } => Errno::LOOP,
        }
    }
}

/// An ELF file, opened and checked.
#[derive(Debug)]
pub(crate) struct Binary {
    pub(crate) file: File,
    pub(crate) image: Image,
}

/// A program ready to be loaded.
#[derive(Debug)]
pub struct Program {
    pub(crate) binary: Binary,
    pub(crate) interpreter: Option<Binary>,
    /// The path that was asked for (`AT_EXECFN`).
    pub(crate) execfn: Vec<u8>,
    /// The binary's path on the host, without links (`/proc/self/exe`).
    pub(crate) exe: Vec<u8>,
    /// The arguments that were asked for. Those that a script's interpreter gets are others.
    pub(crate) asked: Vec<CString>,
    pub(crate) args: Vec<CString>,
    pub(crate) env: Vec<CString>,
}

impl Program {
    /// Opens the program at `path` to be run with `args` (the first is its name for itself) and `env`.
    ///
    /// # Errors
    /// Missing files, files without permission, and files that are no x86-64 programs, each by its name.
    pub fn open(path: &CStr, args: Vec<CString>, env: Vec<CString>) -> Result<Self, ProgramError> {
        let open = |path: &CStr| rustix::fs::open(path, EXECUTABLE, Mode::empty());
        Self::open_by(&open, path, args, env)
    }

    /// As [`open`](Self::open), with `open` to find and open files.
    pub(crate) fn open_by(
        open: Open<'_>,
        path: &CStr,
        args: Vec<CString>,
        env: Vec<CString>,
    ) -> Result<Self, ProgramError> {
        let asked = args.clone();
        Self::open_script(open, path, args, env, SCRIPT_DEPTH_MAX).map(|program| Self { asked, ..program })
    }

    fn open_script(
        open: Open<'_>,
        path: &CStr,
        mut args: Vec<CString>,
        env: Vec<CString>,
        depth: usize,
    ) -> Result<Self, ProgramError> {
        let file = open_executable(open, path)?;
        let start = first_bytes(&file, path)?;
        if let Some(line) = start.strip_prefix(b"#!") {
            if depth == 0 {
                return Err(ProgramError::TooDeep { path: name(path) });
            }
            let line =
                ScriptLine::parse(line).map_err(|why| ProgramError::Script { path: name(path), why })?;
            let old_args = std::mem::take(&mut args);
            args.push(line.interpreter.clone());
            args.extend(line.argument);
            args.push(path.to_owned());
            args.extend(old_args.into_iter().skip(1));
            return Self::open_script(open, &line.interpreter, args, env, depth - 1)
                .map(|program| Self { execfn: path.to_bytes().to_vec(), ..program })
                .map_err(|source| ProgramError::Interpreter { path: name(path), source: Box::new(source) });
        }

        let binary = Binary::read(file, &start, path)?;
        let interpreter = match &binary.image.interpreter {
            None => None,
            Some(interpreter) => Some(open_interpreter(open, interpreter).map_err(|source| {
                ProgramError::Interpreter { path: name(path), source: Box::new(source) }
            })?),
        };
        let exe =
            host_path(binary.file.as_fd()).map_err(|errno| ProgramError::Open { path: name(path), errno })?;
        Ok(Self { binary, interpreter, execfn: path.to_bytes().to_vec(), exe, asked: Vec::new(), args, env })
    }
}

impl Binary {
    fn read(file: File, start: &[u8], path: &CStr) -> Result<Self, ProgramError> {
        let elf = |why| ProgramError::Elf { path: name(path), why };
        if !has_magic(start) {
            return Err(elf(ElfError::NotElf));
        }
        let cache = ReadCache::new(&file);
        let image = Image::parse(&cache).map_err(elf)?;
        Ok(Self { file, image })
    }
}

fn open_interpreter(open: Open<'_>, path: &[u8]) -> Result<Binary, ProgramError> {
    let path =
        CString::new(path).map_err(|_| ProgramError::Open { path: String::new(), errno: Errno::INVAL })?;
    let file = open_executable(open, &path)?;
    let start = first_bytes(&file, &path)?;
    Binary::read(file, &start, &path)
}

fn open_executable(open: Open<'_>, path: &CStr) -> Result<File, ProgramError> {
    let file = open(path).map_err(|errno| ProgramError::Open { path: name(path), errno })?;
    let status = rustix::fs::fstat(&file).map_err(|errno| ProgramError::Open { path: name(path), errno })?;
    if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
        return Err(ProgramError::NotAFile { path: name(path) });
    }
    let file = Object::host(file);
    rustix::fs::accessat(CWD, file.path(), Access::EXEC_OK, AtFlags::EACCESS)
        .map_err(|errno| ProgramError::NotExecutable { path: name(path), errno })?;
    Ok(File::from(file.file))
}

fn first_bytes(file: &File, path: &CStr) -> Result<Vec<u8>, ProgramError> {
    let mut start = vec![0; SCRIPT_LINE_MAX];
    let len = rustix::io::pread(file, &mut start[..], 0)
        .map_err(|errno| ProgramError::Open { path: name(path), errno })?;
    start.truncate(len);
    Ok(start)
}

fn name(path: &CStr) -> String {
    path.to_string_lossy().into_owned()
}

/// The first line of a script, after its `#!`.
#[derive(Debug, PartialEq, Eq)]
struct ScriptLine {
    interpreter: CString,
    /// Everything after the interpreter, as one argument.
    argument: Option<CString>,
}

impl ScriptLine {
    fn parse(bytes: &[u8]) -> Result<Self, &'static str> {
        let line = match bytes.iter().position(|&byte| byte == b'\n') {
            Some(end) => &bytes[..end],
            None if bytes.len() + 2 >= SCRIPT_LINE_MAX => return Err("is too long"),
            None => bytes,
        };
        let line = line.trim_ascii();
        let (interpreter, argument) = match line.iter().position(|byte| matches!(byte, b' ' | b'\t')) {
            Some(end) => (&line[..end], Some(line[end..].trim_ascii())),
            None => (line, None),
        };
        if interpreter.is_empty() {
            return Err("names no interpreter");
        }
        let string = |bytes| CString::new(bytes).map_err(|_| "contains a NUL");
        Ok(Self { interpreter: string(interpreter)?, argument: argument.map(string).transpose()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_line_has_an_interpreter_and_one_argument() {
        let line = ScriptLine::parse(b" /bin/sh -e -u \nrest").unwrap();
        assert_eq!(line.interpreter.to_bytes(), b"/bin/sh");
        assert_eq!(line.argument.unwrap().to_bytes(), b"-e -u");
        assert_eq!(ScriptLine::parse(b"/bin/sh").unwrap().argument, None);
        assert!(ScriptLine::parse(b"  \n").is_err());
        assert!(ScriptLine::parse(b"/a\0b\n").is_err());
    }
}
