//! System calls to execute in another address space, and what they return.

use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};

use syscalls::Sysno;

use crate::descriptors::Descriptors;
use crate::registry::RegisteredFile;

/// A system call to execute in another address space.
///
/// Arguments that are not set are 0. Addresses are those of the other space. A descriptor of the caller's is passed
/// with [`fd`](Self::fd): the executing process gets a copy of it for as long as the call lasts.
///
/// ```
/// use process_vm_exec::{AddressSpace, Call, Sysno};
///
/// # fn main() -> process_vm_exec::Result<()> {
/// let space = AddressSpace::create()?;
/// let calls = [Call::new(Sysno::getpid), Call::new(Sysno::sysinfo).arg(0, 8)];
/// let results = space.batch(&calls)?;
/// assert!(results[0].is_ok());
/// assert_eq!(results[1], Err(process_vm_exec::Errno::FAULT));
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Call<'fd> {
    nr: Sysno,
    args: [u64; 6],
    files: [Option<File<'fd>>; 6],
    takes_numbers: bool,
}

/// A descriptor of the caller's.
#[derive(Clone, Copy, Debug)]
pub(crate) enum File<'fd> {
    /// To be passed for the call.
    Borrowed(BorrowedFd<'fd>),
    /// That the space has, or will have.
    Registered(RegisteredFile),
}

impl<'fd> Call<'fd> {
    /// The call with this number.
    pub const fn new(nr: Sysno) -> Self {
        Self::with_args(nr, [0; 6])
    }

    /// The call with these arguments.
    pub const fn with_args(nr: Sysno, args: [u64; 6]) -> Self {
        Self { nr, args, files: [None; 6], takes_numbers: false }
    }

    /// The call with these arguments, in which descriptors of the caller's are numbers, as in a call of libc's.
    ///
    /// # Safety
    /// The numbers among the arguments are of open descriptors with which the caller may do what the call does: that of a
    /// `close` is not used by anybody else, for example (see [`std::os::fd`], "I/O safety"). Nothing else is unsafe here: it
    /// matters for calls in a [`LiveProcess`](crate::LiveProcess) that take the caller's descriptors.
    pub const unsafe fn with_descriptor_numbers(nr: Sysno, args: [u64; 6]) -> Self {
        Self { takes_numbers: true, ..Self::with_args(nr, args) }
    }

    /// Sets the argument `index`, counted from 0.
    ///
    /// # Panics
    /// If `index` is not below 6.
    #[must_use]
    pub const fn arg(mut self, index: usize, value: u64) -> Self {
        self.args[index] = value;
        self.files[index] = None;
        self
    }

    /// Passes a descriptor of the caller's as the argument `index`, counted from 0. A call takes three at most.
    ///
    /// # Panics
    /// If `index` is not below 6.
    #[must_use]
    pub const fn fd(mut self, index: usize, fd: BorrowedFd<'fd>) -> Self {
        self.files[index] = Some(File::Borrowed(fd));
        self
    }

    /// Sets the argument `index`, counted from 0, to the descriptor that the space has of this file. In a
    /// [`LiveProcess`](crate::LiveProcess) it is passed, as [`fd`](Self::fd) does.
    ///
    /// # Panics
    /// If `index` is not below 6.
    #[must_use]
    pub const fn registered_file(mut self, index: usize, file: RegisteredFile) -> Self {
        self.args[index] = file.descriptor();
        self.files[index] = Some(File::Registered(file));
        self
    }

    pub(crate) const fn file(self, index: usize, file: File<'fd>) -> Self {
        match file {
            File::Borrowed(fd) => self.fd(index, fd),
            File::Registered(file) => self.registered_file(index, file),
        }
    }

    /// Its number.
    pub const fn nr(&self) -> Sysno {
        self.nr
    }

    /// Its arguments; those that are descriptors of the caller's have an unspecified value.
    pub const fn args(&self) -> [u64; 6] {
        self.args
    }

    /// Which of its arguments are descriptors, by the manual pages: numbers that are negative, as `AT_FDCWD` is, are none.
    /// Descriptors inside structures (sendmsg(2), ppoll(2)) are not found.
    pub fn descriptor_arguments(&self) -> impl Iterator<Item = usize> + use<> {
        Descriptors::of(self.nr, &self.args).among(self.args)
    }

    pub(crate) fn files(&self) -> impl Iterator<Item = (usize, BorrowedFd<'fd>)> + use<'fd> {
        self.files.into_iter().enumerate().filter_map(|(n, file)| match file? {
            File::Borrowed(file) => Some((n, file)),
            File::Registered(file) => Some((n, file.borrow_for_ever())),
        })
    }

    /// Those that have to be passed to a space which has the registered ones.
    pub(crate) fn borrowed_files(&self) -> impl Iterator<Item = (usize, BorrowedFd<'fd>)> + use<'fd> {
        self.files.into_iter().enumerate().filter_map(|(n, file)| match file? {
            File::Borrowed(file) => Some((n, file)),
            File::Registered(_) => None,
        })
    }

    pub(crate) fn has_borrowed_files(&self) -> bool {
        self.borrowed_files().next().is_some()
    }

    /// How many registered files, in order, a space must have for this call.
    pub(crate) fn registered_files(&self) -> usize {
        let registered = self.files.iter().flatten().map(|file| match file {
            File::Borrowed(_) => 0,
            File::Registered(file) => file.count(),
        });
        registered.max().unwrap_or(0)
    }

    pub(crate) fn has_files(&self) -> bool {
        self.files().next().is_some()
    }

    /// Do numbers among the arguments stand for descriptors of the caller's?
    pub(crate) fn takes_numbers(&self) -> bool {
        self.takes_numbers
    }
}

/// What a system call in a [`LiveProcess`](crate::LiveProcess) returned.
#[derive(Debug)]
#[non_exhaustive]
pub struct Returned {
    /// The call's result. If that is a descriptor which the caller gets, its number as long as it is among `files`.
    pub value: u64,
    /// The descriptors that the call made, which are the caller's now: one for open(2), two for pipe(2), none for others
    /// and where calls mean the target's descriptors.
    pub files: Vec<OwnedFd>,
}

impl Returned {
    pub(crate) fn number(value: u64) -> Self {
        Self { value, files: Vec::new() }
    }

    pub(crate) fn file(file: OwnedFd) -> Self {
        Self { value: u64::from(file.as_raw_fd().unsigned_abs()), files: vec![file] }
    }

    /// The one descriptor that the call made, if it made one.
    pub fn into_file(mut self) -> Option<OwnedFd> {
        if self.files.len() == 1 { self.files.pop() } else { None }
    }

    /// The call's result as a number. Descriptors that it made stay open: whoever knows their numbers owns them.
    pub fn into_number(self) -> u64 {
        for file in self.files {
            let _ = file.into_raw_fd();
        }
        self.value
    }
}
