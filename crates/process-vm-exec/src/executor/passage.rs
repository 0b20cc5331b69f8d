//! The way by which files get into the descriptor table of a service task: SCM_RIGHTS (unix(7)).

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Mutex;

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use super::layout;
use super::service::{Entry, Service};
use crate::error::{Error, Result};
use crate::sync::lock;

/// As many files as one call can take.
pub(crate) const MAX_FILES: usize = 3;

/// A pair of sockets, and what a service task knows of it.
#[derive(Debug)]
pub(crate) struct Passage {
    /// Our end, and a copy of theirs. The lock keeps files with the request that they belong to.
    ends: Mutex<(OwnedFd, OwnedFd)>,
    /// The number of their end, there.
    end: u64,
    /// The number that the first file gets: the lowest that is free there. The others follow.
    first: u64,
}

impl Passage {
    pub(crate) fn new(ours: OwnedFd, theirs: OwnedFd, end: u64, first: u64) -> Self {
        Self { ends: Mutex::new((ours, theirs)), end, first }
    }

    /// The number that the n-th file has in the call that it is carried to.
    pub(crate) fn number(&self, n: usize) -> u64 {
        self.first + n as u64
    }

    /// Executes `call`, in which [`number`](Self::number)s stand for `files`; the executor has them no longer.
    pub(crate) fn carry(
        &self,
        service: &Service,
        files: &[BorrowedFd<'_>],
        call: Entry,
    ) -> Result<std::result::Result<u64, Errno>> {
        // A msghdr with room for one byte and the descriptors (cmsg(3)); the kernel writes to it.
        let at = |offset| layout::BASE + layout::SCRATCH + offset;
        let slot = &service.life.slot;
        // The turn first: the ends are everybody's, and not to be kept from others while somebody's call goes on.
        let mut turn = service.turn()?;
        let ends = lock(&self.ends);
        let (ours, theirs) = &*ends;
        slot.write(layout::SCRATCH, [0u64, 0, at(0x40), 1, at(0x80), 16 + 8 * MAX_FILES as u64, 0]);
        slot.write(layout::SCRATCH + 0x40, [at(0x60), 1]);
        // Calls of which we do not know that they make descriptors may have left some at these numbers.
        let make_room = [self.number(0), self.number(MAX_FILES - 1), 0, 0, 0, 0];
        let receive = [self.end, at(0), libc::MSG_DONTWAIT as u64, 0, 0, 0];
        let mut entries =
            vec![Entry::new(libc::SYS_close_range, make_room), Entry::new(libc::SYS_recvmsg, receive), call];
        let close = |n| Entry::new(libc::SYS_close, [self.number(n), 0, 0, 0, 0, 0]);
        entries.extend((0..files.len()).map(close));
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(files));
        sendmsg(ours, &[IoSlice::new(&[0])], &mut ancillary, SendFlags::empty())
            .map_err(Error::host("sendmsg of a file"))?;
        let results = turn.request(&entries);
        // If nobody took them, whatever is said of that, they must not meet the next request.
        let mut byte = [0];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let _ = recvmsg(theirs, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::DONTWAIT);
        let results = results?;
        results[1].map_err(|errno| Error::Space { call: "recvmsg of a file", errno })?;
        Ok(results[2])
    }
}
