//! The janitor is a fork of a process with threads, any of which may have had the allocator's lock: it allocates nothing.
//! Here, whoever allocates in a process that has not done so from the start ends, and what it was to remove stays.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    process,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
};

struct OfOneProcess {
    /// Which, once it has allocated.
    process: AtomicU32,
}

#[global_allocator]
static ALLOCATOR: OfOneProcess = OfOneProcess { process: AtomicU32::new(0) };

impl OfOneProcess {
    fn check(&self) {
        let this = process::id();
        if self.process.compare_exchange(0, this, Relaxed, Relaxed).is_err_and(|process| process != this) {
            process::abort();
        }
    }
}

// SAFETY: the system's allocator, for processes that may use it.
unsafe impl GlobalAlloc for OfOneProcess {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.check();
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        self.check();
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(memory, layout) }
    }
}
