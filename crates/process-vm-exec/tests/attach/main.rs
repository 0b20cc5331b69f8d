//! The suite of live processes: what attaching promises, as claims about targets.
//!
//! The target is mostly `target.c`, a program that checks itself all the time, and ends at the first thing that is not
//! as it should be. Tests about time take turns, as several targets at once would be late by themselves.
//!
//! `PVX_SOAK_SECONDS` lengthens each storm to so many seconds; `PVX_SLACK_MS` (5000) is how late a target's waits may
//! end.

mod allocator;
mod common;
mod target;
mod trace;

mod calls;
mod checks;
mod errands;
mod exposure;
mod killer;
mod kinds;
mod life;
mod programs;
mod refusals;
mod run;
mod threads;
mod variants;
