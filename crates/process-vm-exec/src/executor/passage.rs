//! The way by which files get into the descriptor table of a service task: SCM_RIGHTS (unix(7)).
//!
//! Each task has a pair of sockets of its own, so that what one does not take is never another's. What the guest can
//! write of a request's memory, a `msghdr` and its buffers, decides at most that files do not arrive.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::{PidfdFlags, PidfdGetfdFlags};

use super::arena::Slot;
use super::layout;
use super::service::{Entry, Outcome, Service};
use crate::call::Call;
use crate::error::{Error, Result};
use crate::registry::{self, FIRST_FILE};

/// As many files as one call can take.
const MAX_FILES: usize = 3;

/// A pair of sockets, and what a service task knows of it. To carry files through it takes the turn.
#[derive(Debug)]
pub(crate) struct Passage {
    ours: OwnedFd,
    /// The number that the first file gets: the lowest that is free there. The others follow.
    first: u64,
}

const _: () = assert!(FIRST_FILE == layout::ARENA_FD.unsigned_abs() as u64 + 1);

/// What our end is in the task's table, which has nothing else below [`layout::ARENA_FD`], and what theirs.
const OURS: i32 = 0;
const THEIRS: u64 = 1;

impl Passage {
    /// Has `service`, whose process is `pidfd`, make the pair. It has no descriptors that are not to be closed from
    /// `first` on.
    pub(crate) fn open(service: &Service, pidfd: impl AsFd, first: u64) -> Result<Self> {
        let ends = service.life.slot.address(layout::SCRATCH);
        let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC;
        let pair = [libc::AF_UNIX as u64, u64::from(kind.unsigned_abs()), 0, ends, 0, 0];
        let entries = [
            // Calls of which we do not know that they make descriptors may have left some, or a parent.
            Entry::new(libc::SYS_close_range, [0, THEIRS, 0, 0, 0, 0]),
            Entry::new(libc::SYS_close_range, [first, u64::from(u32::MAX), 0, 0, 0, 0]),
            Entry::new(libc::SYS_socketpair, pair),
        ];
        service.request(&entries)?[2].map_err(|errno| Error::Space { call: "socketpair", errno })?;
        let ours = rustix::process::pidfd_getfd(pidfd, OURS, PidfdGetfdFlags::empty())
            .map_err(Error::host("pidfd_getfd from the service task"))?;
        Ok(Self { ours, first })
    }

    /// Gives the task files that it keeps, with the numbers from the first on; the first is then another. They may not have
    /// arrived unless the result is `Ok`, and the passage is not used again.
    fn give(&mut self, service: &Service, files: &[BorrowedFd<'_>]) -> Result<()> {
        for files in files.chunks(MAX_FILES) {
            let mut turn = service.turn()?;
            let arrival = self.arrival(&service.life.slot);
            let mut entries = arrival.to_vec();
            // Has it come? A mapping of no bytes fails, but otherwise if there is no such descriptor.
            let look = |n| {
                let fd = self.number(n);
                let (nothing, private) = (libc::PROT_NONE as u64, libc::MAP_PRIVATE as u64);
                Entry::new(libc::SYS_mmap, [0, 0, nothing, private, fd, 0])
            };
            entries.extend((0..files.len()).map(look));
            self.send(files)?;
            let results = turn.request(&entries)?;
            let failed = |errno| Error::Space { call: "recvmsg of a registered file", errno };
            results[1].map_err(failed)?;
            if results[arrival.len()..].iter().any(|&result| result != Err(Errno::INVAL)) {
                return Err(failed(Errno::BADF));
            }
            self.first += files.len() as u64;
        }
        Ok(())
    }

    /// What the task does to receive files that have been sent.
    fn arrival(&self, slot: &Slot) -> [Entry; 2] {
        // A msghdr with room for one byte and the descriptors (cmsg(3)); the kernel writes to it.
        let at = |offset| slot.address(layout::SCRATCH + offset);
        slot.write(layout::SCRATCH, [0u64, 0, at(0x40), 1, at(0x80), 16 + 8 * MAX_FILES as u64, 0]);
        slot.write(layout::SCRATCH + 0x40, [at(0x60), 1]);
        let make_room = [self.number(0), self.number(MAX_FILES - 1), 0, 0, 0, 0];
        let receive = [THEIRS, at(0), libc::MSG_DONTWAIT as u64, 0, 0, 0];
        [Entry::new(libc::SYS_close_range, make_room), Entry::new(libc::SYS_recvmsg, receive)]
    }

    fn send(&self, files: &[BorrowedFd<'_>]) -> Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(files));
        // Who can take the other end, in a live process, can keep it full.
        sendmsg(&self.ours, &[IoSlice::new(&[0])], &mut ancillary, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)
            .map(drop)
            .map_err(Error::host("sendmsg of a file"))
    }

    /// The number that the n-th file has in the call that it is carried to.
    fn number(&self, n: usize) -> u64 {
        self.first + n as u64
    }

    /// Executes `call` with these files for arguments; the task has them no longer then.
    ///
    /// # Errors
    /// After all but [`Error::TooMany`] the passage is not used again: files may lie in it.
    pub(crate) fn carry<'fd>(
        &self,
        service: &Service,
        call: &Call<'_>,
        passed: impl Iterator<Item = (usize, BorrowedFd<'fd>)>,
    ) -> Result<Outcome> {
        let mut entry = Entry::from(call);
        let mut files = Vec::new();
        for (argument, file) in passed {
            entry.args[argument] = self.number(files.len());
            files.push(file);
        }
        if files.len() > MAX_FILES {
            return Err(Error::TooMany("descriptors in one call"));
        }
        let mut turn = service.turn()?;
        let mut entries = self.arrival(&service.life.slot).to_vec();
        entries.push(entry);
        let close = |n| Entry::new(libc::SYS_close, [self.number(n), 0, 0, 0, 0, 0]);
        entries.extend((0..files.len()).map(close));
        self.send(&files)?;
        let results = turn.request(&entries)?;
        results[1].map_err(|errno| Error::Space { call: "recvmsg of a file", errno })?;
        Ok(results[2])
    }
}

/// The files of a space's process: those that it has been given, and the way by which others come.
#[derive(Debug, Default)]
pub(crate) struct Files {
    passage: Option<Passage>,
    /// How many of the registered files it has, in order.
    registered: usize,
}

impl Files {
    /// The files of a process that is forked from one with these.
    pub(crate) fn fork(&self) -> Self {
        Self { passage: None, registered: self.registered }
    }

    /// Sees that the process of `service` has the first `count` registered files.
    pub(crate) fn require_registered(&mut self, service: &Service, count: usize) -> Result<()> {
        if self.registered >= count {
            return Ok(());
        }
        let mut passage = self.take_passage(service)?;
        passage.give(service, &registry::files(self.registered..count))?;
        self.registered = count;
        self.passage = Some(passage);
        Ok(())
    }

    /// Executes a call with the files that it has, of which those that are registered are there.
    pub(crate) fn carry(&mut self, service: &Service, call: &Call<'_>) -> Result<Outcome> {
        let passage = self.take_passage(service)?;
        let outcome = passage.carry(service, call, call.borrowed_files());
        if let Ok(_) | Err(Error::TooMany(_)) = outcome {
            self.passage = Some(passage);
        }
        outcome
    }

    fn take_passage(&mut self, service: &Service) -> Result<Passage> {
        if let Some(passage) = self.passage.take() {
            return Ok(passage);
        }
        let held = service.life.pid();
        let pidfd = rustix::process::pidfd_open(held.ok_or(Error::Dead)?, PidfdFlags::empty())
            .map_err(Error::host("pidfd_open of the space's process"))?;
        drop(held);
        Passage::open(service, pidfd, FIRST_FILE + self.registered as u64)
    }
}
