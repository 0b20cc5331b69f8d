//! Threads that compute all the time, for measurements beside them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result};

use super::cpus::Cpus;

/// One on each CPU that this process may use, until the value is dropped.
#[derive(Debug)]
pub(super) struct Hogs {
    is_over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Hogs {
    pub(super) fn start() -> Result<Self> {
        let mut hogs = Self { is_over: Arc::default(), threads: Vec::new() };
        for cpu in Cpus::all_numbers()? {
            let is_over = Arc::clone(&hogs.is_over);
            let compute = move || {
                let _ = Cpus::pin_to_number(cpu);
                while !is_over.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            };
            let thread = thread::Builder::new().name("hog".into()).spawn(compute);
            hogs.threads.push(thread.context("starting a hog")?);
        }
        Ok(hogs)
    }
}

impl Drop for Hogs {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
