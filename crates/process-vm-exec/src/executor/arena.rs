//! The memory file behind all control pages and mailboxes, cut into slots of one space each.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex};

use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags};
use rustix::process::{Pid, getpid};

use super::layout;
use super::region::Region;
use crate::error::{Error, Result};
use crate::sync::lock;

/// Length of a slot, as memory calls want it.
#[expect(clippy::cast_possible_truncation, reason = "x86-64 only")]
const SLOT_LEN: usize = layout::SIZE as usize;

/// As many slots as the file has, hence spaces that can be alive at once.
const SLOTS: u64 = 16384;

/// The memory file.
#[derive(Debug)]
pub(crate) struct Arena {
    file: OwnedFd,
    /// Where slots are in their spaces.
    region: Region,
    free: Mutex<FreeList>,
}

#[derive(Debug, Default)]
struct FreeList {
    returned: Vec<u64>,
    /// Slots from this one on have never been used.
    fresh: u64,
}

impl Arena {
    pub(crate) fn new(region: Region) -> Result<Arc<Self>> {
        let file = rustix::fs::memfd_create("process_vm_exec", MemfdFlags::CLOEXEC)
            .map_err(Error::host("memfd_create for the mailboxes"))?;
        rustix::fs::ftruncate(&file, SLOTS * layout::SIZE)
            .map_err(Error::host("ftruncate of the mailboxes to 4 TiB, nearly all of it holes"))?;
        Ok(Arc::new(Self { file, region, free: Mutex::default() }))
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// A slot full of zeroes.
    pub(crate) fn slot(self: &Arc<Self>) -> Result<Slot> {
        let index = {
            let mut free = lock(&self.free);
            match free.returned.pop() {
                Some(index) => index,
                None if free.fresh < SLOTS => {
                    free.fresh += 1;
                    free.fresh - 1
                }
                None => return Err(Error::TooMany("address spaces")),
            }
        };
        let base = map(&self.file, index * layout::SIZE).inspect_err(|_| self.put_back(index))?;
        Ok(Slot { place: Some((Arc::clone(self), index)), base, region: self.region, owner: getpid() })
    }

    fn put_back(&self, index: u64) {
        lock(&self.free).returned.push(index);
    }
}

/// Maps a slot that begins at `offset`.
fn map(file: &OwnedFd, offset: u64) -> Result<NonNull<u8>> {
    // SAFETY: a new mapping at an address of the kernel's choice touches no memory in use.
    let mapped = unsafe {
        rustix::mm::mmap(
            std::ptr::null_mut(),
            SLOT_LEN,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::SHARED,
            file,
            offset,
        )
    };
    let base = mapped.map_err(Error::host("mmap of a mailbox slot"))?;
    // SAFETY: the range is the mapping just made. A child of the supervisor has no use for it.
    unsafe { rustix::mm::madvise(base, SLOT_LEN, Advice::LinuxDontFork) }
        .map_err(Error::host("madvise of a mailbox slot"))?;
    Ok(NonNull::new(base.cast()).expect("mmap never returns null"))
}

/// One space's control pages and mailboxes, mapped in the supervisor. Offsets are those of [`layout`].
///
/// All access is atomic, or volatile and by copy: guests write here too, at any time.
#[derive(Debug)]
pub(crate) struct Slot {
    /// The arena that it goes back to, and its number there; none for a slot that is a whole file.
    place: Option<(Arc<Arena>, u64)>,
    base: NonNull<u8>,
    region: Region,
    /// The process that has it mapped: a forked child has not.
    owner: Pid,
}

// SAFETY: the mapping is shared memory that is accessed atomically or by volatile copies only.
unsafe impl Send for Slot {}
// SAFETY: as above.
unsafe impl Sync for Slot {}

impl Slot {
    /// A slot in a file of its own, which is made as long. It stays so: a shorter one, which others who have it could make
    /// of it at any time, would be a fault here.
    pub(crate) fn of_file(file: OwnedFd, region: Region) -> Result<Self> {
        let seal =
            |seals| rustix::fs::fcntl_add_seals(&file, seals).map_err(Error::host("sealing the mailboxes"));
        // From here on it only grows.
        seal(SealFlags::SHRINK)?;
        rustix::fs::ftruncate(&file, layout::SIZE).map_err(Error::host("ftruncate of the mailboxes"))?;
        seal(SealFlags::SEAL)?;
        // Nor is it another kind of file, of which a page may fail to come.
        let kind = rustix::fs::fstatfs(&file).map_err(Error::host("fstatfs of the mailboxes"))?.f_type;
        if kind != libc::TMPFS_MAGIC {
            return Err(Error::Host { call: "looking at the file of the mailboxes", errno: Errno::BADF });
        }
        Ok(Self { place: None, base: map(&file, 0)?, region, owner: getpid() })
    }

    /// Is this the process that has it, and not one that was forked from that, for whom nothing is there?
    pub(crate) fn is_ours(&self) -> bool {
        self.owner == getpid()
    }

    /// Where it is in its space.
    pub(crate) fn region(&self) -> Region {
        self.region
    }

    /// The address, in its space, of what lies at `offset`.
    pub(crate) fn address(&self, offset: u64) -> u64 {
        self.region.address(offset)
    }

    /// Where the slot begins in the memory file.
    pub(crate) fn file_offset(&self) -> u64 {
        self.place.as_ref().map_or(0, |(_, index)| index * layout::SIZE)
    }

    #[inline]
    fn at<T>(&self, offset: u64) -> *mut T {
        let offset = usize::try_from(offset).expect("64-bit");
        assert!(offset + size_of::<T>() <= SLOT_LEN && offset.is_multiple_of(align_of::<T>()));
        // SAFETY: the sum stays within the mapping.
        unsafe { self.base.as_ptr().add(offset).cast() }
    }

    #[inline]
    pub(crate) fn u32(&self, offset: u64) -> &AtomicU32 {
        // SAFETY: `at` gives an aligned address inside the mapping, which lives as long as `self` and is
        // accessed atomically only.
        unsafe { AtomicU32::from_ptr(self.at(offset)) }
    }

    /// The [`layout::HALF_LEN`] bytes from `offset` on, word by word.
    #[inline]
    pub(crate) fn words(&self, offset: u64) -> &[AtomicU32; layout::HALF_LEN / 4] {
        // SAFETY: `at` gives an aligned address, with room for all of them inside the mapping, which lives as long as
        // `self` and is accessed atomically only.
        unsafe { &*self.at::<[AtomicU32; layout::HALF_LEN / 4]>(offset) }
    }

    /// A copy of what is there now. `T` is made of integers only: any bytes are a valid value.
    #[inline]
    pub(crate) fn read<T: Plain>(&self, offset: u64) -> T {
        // SAFETY: inside the mapping, aligned, and any bytes are a valid `T`.
        unsafe { self.at::<T>(offset).read_volatile() }
    }

    /// Writes `value` there.
    #[inline]
    pub(crate) fn write<T: Plain>(&self, offset: u64, value: T) {
        // SAFETY: inside the mapping and aligned.
        unsafe { self.at::<T>(offset).write_volatile(value) }
    }

    pub(crate) fn read_bytes(&self, offset: u64, buffer: &mut [u8]) {
        for (i, word) in buffer.chunks_exact_mut(8).enumerate() {
            word.copy_from_slice(&self.read::<u64>(offset + 8 * i as u64).to_ne_bytes());
        }
    }

    /// Writes `bytes`, whose length is a multiple of 8.
    pub(crate) fn write_bytes(&self, offset: u64, bytes: &[u8]) {
        for (i, word) in bytes.chunks_exact(8).enumerate() {
            let word = u64::from_ne_bytes(word.try_into().expect("chunks of 8"));
            self.write(offset + 8 * i as u64, word);
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if !self.is_ours() {
            // What may be at its address here is something else, and the file is still in use.
            return;
        }
        // SAFETY: the mapping is ours, and with `self` the last way to it goes.
        let unmapped = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), SLOT_LEN) };
        debug_assert!(unmapped.is_ok());
        let Some((arena, index)) = &self.place else { return };
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let punched = rustix::fs::fallocate(&arena.file, flags, self.file_offset(), layout::SIZE);
        // A slot that still has its old contents is not used again.
        if punched.is_ok() {
            arena.put_back(*index);
        }
    }
}

/// Types of which any bytes are a valid value.
///
/// # Safety
/// The type has no padding and no invalid bit patterns.
pub(crate) unsafe trait Plain: Copy {}
// SAFETY: an integer.
unsafe impl Plain for u32 {}
// SAFETY: an integer.
unsafe impl Plain for u64 {}
// SAFETY: integers.
unsafe impl<const N: usize> Plain for [u64; N] {}
// SAFETY: `repr(C)` and made of `u64` only.
unsafe impl Plain for crate::arch::x86_64::Registers {}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    const LAST: u64 = layout::SIZE - 8;

    /// The executor in a live process has such a file open, and whoever may trace that can take it.
    #[test]
    fn the_file_of_a_slot_cannot_be_made_shorter_by_others_who_have_it() {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = rustix::fs::memfd_create("slot", flags).expect("a memory file");
        let others = file.try_clone().expect("another descriptor");
        let slot = Slot::of_file(file, Region::DEFAULT).expect("a slot");
        for len in [0, layout::SIZE - 4096] {
            assert_eq!(rustix::fs::ftruncate(&others, len), Err(Errno::PERM));
        }
        // Nor can they forbid us to write to it.
        assert_eq!(rustix::fs::fcntl_add_seals(&others, SealFlags::FUTURE_WRITE), Err(Errno::PERM));
        slot.write(LAST, 1u64);
        assert_eq!(slot.read::<u64>(LAST), 1);
    }

    #[test]
    fn nor_while_it_is_made_a_slot() {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        for _ in 0..500 {
            let file = rustix::fs::memfd_create("slot", flags).expect("a memory file");
            let others = file.try_clone().expect("another descriptor");
            let [has_begun, is_over] = [const { AtomicBool::new(false) }; 2];
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    while !is_over.load(Ordering::Relaxed) {
                        let _ = rustix::fs::ftruncate(&others, 0);
                        has_begun.store(true, Ordering::Relaxed);
                    }
                });
                while !has_begun.load(Ordering::Relaxed) {
                    std::thread::yield_now();
                }
                let slot = Slot::of_file(file, Region::DEFAULT);
                is_over.store(true, Ordering::Relaxed);
                assert_eq!(
                    rustix::fs::fstat(&others).expect("its size").st_size.unsigned_abs(),
                    layout::SIZE
                );
                slot.expect("a slot").write(LAST, 1u64);
            });
        }
    }

    #[test]
    fn a_file_whose_pages_may_fail_to_come_is_no_slot() {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | MemfdFlags::HUGETLB;
        let Ok(file) = rustix::fs::memfd_create("slot", flags) else {
            return println!("SKIP: this kernel has no huge pages");
        };
        assert!(Slot::of_file(file, Region::DEFAULT).is_err());
    }

    #[test]
    fn a_slot_that_is_used_again_has_nothing_of_its_last_space() {
        let arena = Arena::new(Region::DEFAULT).expect("an arena");
        let first = arena.slot().expect("a slot");
        let place = first.file_offset();
        let other = arena.slot().expect("another one");
        for slot in [&first, &other] {
            slot.write(0, 1u64);
            slot.write(LAST, 1u64);
        }
        drop(first);
        let again = arena.slot().expect("a slot");
        assert_eq!(again.file_offset(), place);
        assert_eq!([again.read::<u64>(0), again.read(LAST)], [0, 0]);
        assert_eq!([other.read::<u64>(0), other.read(LAST)], [1, 1], "its neighbour is untouched");
    }
}
