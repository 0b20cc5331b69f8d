//! The conformance suite: what every engine promises, as claims about guests.
//!
//! Each claim runs once per engine that works on this machine, as `subject::engine::claim`, for instance
//! `registers::rewrite::every_general_register_survives_a_system_call`. Where an engine does not work, its
//! variant prints `SKIP:` and why.
//!
//! `PVX_SOAK_SECONDS` lengthens the storms (2 seconds each by default).

mod common;

mod dispatch;
mod entries;
mod faults;
mod flags;
mod forgery;
mod hostile;
mod interrupts;
mod life;
mod mailboxes;
mod memory;
mod planned;
mod regions;
mod registers;
mod rewriting;
mod segments;
mod signals;
mod threads;
mod xstate;
