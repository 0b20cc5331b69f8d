//! The way by which files get into the descriptor table of a service task: SCM_RIGHTS (unix(7)).
//!
//! Each task has a pair of sockets of its own, so that what one does not take is never another's. What the guest can
//! write of a request's memory, a `msghdr` and its buffers, decides at most that files do not arrive.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::PidfdGetfdFlags;

use super::layout;
use super::service::{Entry, Outcome, Service};
use crate::call::Call;
use crate::error::{Error, Result};

/// As many files as one call can take.
const MAX_FILES: usize = 3;

/// A pair of sockets, and what a service task knows of it. To carry files through it takes the turn.
#[derive(Debug)]
pub(crate) struct Passage {
    ours: OwnedFd,
    /// The number that the first file gets: the lowest that is free there. The others follow.
    first: u64,
}

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

    /// The number that the n-th file has in the call that it is carried to.
    fn number(&self, n: usize) -> u64 {
        self.first + n as u64
    }

    /// Executes `call` with its files; the task has them no longer then.
    ///
    /// # Errors
    /// After all but [`Error::Host`] and [`Error::TooMany`], with which nothing was sent, the passage is not used again: files may lie in it.
    pub(crate) fn carry(&self, service: &Service, call: &Call<'_>) -> Result<Outcome> {
        let mut entry = Entry::from(call);
        let mut files = Vec::new();
        for (argument, file) in call.files() {
            entry.args[argument] = self.number(files.len());
            files.push(file);
        }
        if files.len() > MAX_FILES {
            return Err(Error::TooMany("descriptors in one call"));
        }
        let mut turn = service.turn()?;
        // A msghdr with room for one byte and the descriptors (cmsg(3)); the kernel writes to it.
        let slot = &service.life.slot;
        let at = |offset| slot.address(layout::SCRATCH + offset);
        slot.write(layout::SCRATCH, [0u64, 0, at(0x40), 1, at(0x80), 16 + 8 * MAX_FILES as u64, 0]);
        slot.write(layout::SCRATCH + 0x40, [at(0x60), 1]);
        let make_room = [self.number(0), self.number(MAX_FILES - 1), 0, 0, 0, 0];
        let receive = [THEIRS, at(0), libc::MSG_DONTWAIT as u64, 0, 0, 0];
        let mut entries =
            vec![Entry::new(libc::SYS_close_range, make_room), Entry::new(libc::SYS_recvmsg, receive), entry];
        let close = |n| Entry::new(libc::SYS_close, [self.number(n), 0, 0, 0, 0, 0]);
        entries.extend((0..files.len()).map(close));
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(&files));
        sendmsg(&self.ours, &[IoSlice::new(&[0])], &mut ancillary, SendFlags::NOSIGNAL)
            .map_err(Error::host("sendmsg of a file"))?;
        let results = turn.request(&entries)?;
        results[1].map_err(|errno| Error::Space { call: "recvmsg of a file", errno })?;
        Ok(results[2])
    }
}
