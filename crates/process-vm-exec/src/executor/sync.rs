//! The atomics of the hand-off: those of the processor, or loom's when it is model-checked.

#[cfg(loom)]
pub(crate) use loom::{
    hint::spin_loop as pause,
    sync::atomic::{AtomicU32, Ordering},
};
#[cfg(not(loom))]
pub(crate) use std::{
    hint::spin_loop as pause,
    sync::atomic::{AtomicU32, Ordering},
};
